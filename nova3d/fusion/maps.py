"""Where the views contradict each other: H and the colour residual of every pixel, on the finished surface."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d.fusion import texture
from nova3d.fusion.conflict import CLOSED_FORM, MLP, TRIMMED, closed_form
from nova3d.fusion.losses import colour_loss
from nova3d.fusion.state import Fit
from nova3d.views import ViewSet

_CHUNK = 1 << 16
_WEISZFELD = 3  # iterations; five to seven views see a point, and most of them agree
_APART = 0.01  # colours nearer than this are one: keeps Weiszfeld's weights finite
_LEAST_OTHERS = 2  # of two views that differ, nobody can say which is wrong


@dataclass(frozen=True)
class SurfacePixels:
    """The n pixels of all views, one view after another, in which the mesh is seen on the object.

    hit bool [v,h,w]; view [n]; points, directions, normals [n,3] in the world; rgb [n,3] and mask [n,1] of the
    pictures.
    """

    hit: Tensor
    view: Tensor
    points: Tensor
    directions: Tensor
    normals: Tensor
    rgb: Tensor
    mask: Tensor

    def residual(self, colours: Tensor) -> Tensor:
        """[n] ||C - C^||_2 of straight colours [n,3] against the pictures, whose background is white."""
        return (colours * self.mask + 1 - self.mask - self.rgb).norm(dim=-1)

    def picture(self, values: Tensor) -> Tensor:
        """Values [n] as pictures [v,h,w], 0 elsewhere."""
        full = torch.zeros(self.hit.shape)
        full[self.hit] = values
        return full


def conflict_maps(state: Fit, mesh: trimesh.Trimesh, views: ViewSet) -> tuple[Tensor, Tensor]:
    """H and the colour residual [v,h,w] where each view's rays (by its refined cameras) meet the mesh, 0 elsewhere.

    residual: of the fit's own colours. H: the volume-rendered f_psi of a sharp surface; of the ablation arms,
    "closed_form" has H* of the residual, "trimmed" 1 for the share with the largest residuals, "none" 0.

    With `conflict.consensus` (not in the paper) H rests on what the other views show at the same point instead of on
    the fit's colours, which are too soft to tell a fault from fine texture: f_psi learns on by eq. 5 against it.
    """
    config = state.config.conflict
    pixels = surface_pixels(mesh, views)
    residual = evidence = pixels.residual(state.colours(pixels.points.to(_device(state))).cpu())
    lambda_0 = state.lambda_0
    if config.consensus and config.mode in (MLP, CLOSED_FORM, TRIMMED) and len(residual):
        equal = replace(state.config.texture, input_view=1.0)  # in a vote every view counts alike
        seen_by = texture.projector(views, views.cameras, mesh, torch.zeros_like(views.mask), equal)
        colours, others = consensus(pixels, seen_by)
        evidence = torch.where(others >= _LEAST_OTHERS, pixels.residual(colours), residual)
        lambda_0 = max(config.lambda_end, config.floor * float(evidence.mean()))
    conflict = torch.zeros_like(residual)
    if config.mode == MLP:
        points, directions, view = (t.to(_device(state)) for t in (pixels.points, pixels.directions, pixels.view))
        inputs = (*state.conflict_inputs(points), directions, view, points)
        if config.consensus and len(evidence):
            _learn(state, inputs, evidence.to(points.device), lambda_0)
        conflict = state.conflicts(*inputs)
    elif config.mode == CLOSED_FORM:
        conflict = closed_form(evidence, lambda_0)
    elif config.mode == TRIMMED and bool((evidence > 0).any()):
        # numpy: torch.quantile refuses this many numbers
        conflict = (evidence > float(np.quantile(evidence.numpy(), 1 - config.trim))).float()
    return pixels.picture(conflict.cpu()), pixels.picture(residual)


def surface_pixels(mesh: trimesh.Trimesh, views: ViewSet) -> SurfacePixels:
    """The pixels of `views` (on the CPU, with refined cameras) in which `mesh` is seen on the object."""
    cameras = views.cameras
    depth = texture.depth_maps(mesh, cameras)
    hit = (depth > 0) & (views.mask > 0.5)
    origins, directions = (rays[hit] for rays in cameras.rays())
    view = torch.nonzero(hit)[:, 0]
    c2w = cameras.c2w[view]
    back = c2w[:, :3, 2]
    # Depth is along the camera's axis, a perspective ray is slanted against it.
    offset = ((c2w[:, :3, 3] - origins) * back).sum(dim=-1)
    along = -(directions * back).sum(dim=-1)
    points = origins + ((depth[hit] - offset) / along)[:, None] * directions
    # A vertex lies within a pixel or two: near enough for what views see, and by how much.
    nearest = cKDTree(np.asarray(mesh.vertices)).query(points.numpy())[1] if len(points) else []
    normals = torch.from_numpy(np.array(mesh.vertex_normals)[nearest]).float().reshape(-1, 3)
    return SurfacePixels(hit, view, points, directions, normals, views.rgb[hit], views.mask[hit][:, None])


def consensus(pixels: SurfacePixels, seen_by: texture.Projector) -> tuple[Tensor, Tensor]:
    """What the other views show at each pixel's point: colours [n,3], straight, and how many views [n] those are.

    The geometric median (Weiszfeld 1937), weighted as the texture is: where a point's colour is free, the un-squared
    norm of eq. 5 asks for that one. A pixel's own view is left out, or it would vouch for itself.
    """
    colours, others = [], []
    parts = (t.split(_CHUNK) for t in (pixels.view, pixels.points, pixels.normals))
    for view, points, normals in zip(*parts, strict=True):
        shown, weight = texture.project(points, normals, seen_by)  # v n 3, v n
        weight[view, torch.arange(len(view))] = 0
        median = (shown * weight[..., None]).sum(dim=0) / weight.sum(dim=0).clamp_min(1e-8)[:, None]
        for _ in range(_WEISZFELD):
            near = weight / (shown - median).norm(dim=-1).clamp_min(_APART)
            median = (shown * near[..., None]).sum(dim=0) / near.sum(dim=0).clamp_min(1e-8)[:, None]
        colours.append(median)
        others.append((weight > 0).sum(dim=0))
    return torch.cat(colours), torch.cat(others)


def _learn(state: Fit, inputs: tuple[Tensor, ...], evidence: Tensor, lambda_0: float) -> None:
    """f_psi, of `inputs` [n,...], learns on by eq. 5 with everything else at rest: evidence [n] in the place of
    ||C - C^||_2."""
    config = state.config.conflict
    optimizer = torch.optim.Adam(state.conflict.parameters(), lr=state.config.optim.lr_conflict)
    generator = torch.Generator().manual_seed(state.config.optim.seed)
    for step in range(config.polish_steps):
        for group in optimizer.param_groups:
            group["lr"] = state.config.optim.lr_conflict * (1 - step / config.polish_steps)
        ids = torch.randint(len(evidence), (config.polish_rays,), generator=generator).to(evidence.device)
        h = state.conflict(*(tensor.index_select(0, ids) for tensor in inputs))
        loss = colour_loss(evidence.index_select(0, ids), h, lambda_0, torch.ones_like(h))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _device(state: Fit) -> torch.device:
    return state.sdf.weight_in.device
