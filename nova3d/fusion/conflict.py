"""Conflict maps: H and the colour residual of every pixel (paper III), on the finished surface.

H is high where a view contradicts the others. Shapes: v views, h w pixels, n pixels in which the surface is seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d.fusion import texture
from nova3d.fusion.config import CLOSED_FORM, MLP, TRIMMED
from nova3d.fusion.losses import closed_form_conflict, colour_loss
from nova3d.fusion.state import FusionState
from nova3d.views import ViewSet

_CHUNK = 1 << 16  # points at a time
_WEISZFELD_STEPS = 3  # enough for the five to seven views that see a point, most of which agree
_MIN_DISTANCE = 0.01  # between colours; keeps Weiszfeld's weights finite
_MIN_OTHERS = 2  # with only one other view, it is open which of the two is wrong


@dataclass(frozen=True)
class SurfacePixels:
    """The n pixels of all views, one view after another, in which the mesh is seen on the object.

    Attributes:
        hit: [v,h,w] bool, where these pixels are.
        view: [n] int64, the view's number.
        points: [n,3] float32 surface points, world frame.
        directions: [n,3] float32 unit vectors of the rays.
        normals: [n,3] float32 unit vectors of the surface.
        rgb: [n,3] float32 in [0,1], the pictures' colours on white.
        mask: [n,1] float32 in [0,1], the pictures' coverage.
    """

    hit: Tensor
    view: Tensor
    points: Tensor
    directions: Tensor
    normals: Tensor
    rgb: Tensor
    mask: Tensor

    def residual(self, colours: Tensor) -> Tensor:
        """||C - C^||_2 [n] of straight colours [n,3] against the pictures, whose background is white."""
        return (colours * self.mask + 1 - self.mask - self.rgb).norm(dim=-1)

    def scatter(self, values: Tensor) -> Tensor:
        """Values [n] as maps [v,h,w], 0 elsewhere."""
        maps = torch.zeros(self.hit.shape)
        maps[self.hit] = values
        return maps


def conflict_maps(state: FusionState, mesh: trimesh.Trimesh, views: ViewSet) -> tuple[Tensor, Tensor]:
    """H and the colour residual where each view's rays meet the mesh, 0 elsewhere.

    With `conflict.consensus` (not in the paper) the residual that H depends on is against what the other views show at
    the same point. The fit's colours are too soft to separate a fault from fine texture. f_psi is then trained further
    by eq. 5 with that residual.

    Args:
        state: the finished fit.
        mesh: its surface.
        views: the pictures with refined cameras, on the CPU.

    Returns:
        conflict: [v,h,w] float32 in [0,1]. By `conflict.mode`: mlp, the volume-rendered f_psi of a sharp surface;
            closed_form, H* of the residual; trimmed, 1 for the share with the largest residuals; none, 0. It is 0 in
            views that are trusted among others.
        residual: [v,h,w] float32, ||C - C^||_2 of the fit's own colours.
    """
    config = state.config.conflict
    pixels = surface_pixels(mesh, views)
    trusted = views.trusted_among_others[pixels.view]
    points = pixels.points.to(state.device)
    colours, f_c, f_g = state.surface_features(points)
    residual = evidence = pixels.residual(colours.cpu())
    lambda_0 = state.lambda_0
    if config.consensus and config.mode in (MLP, CLOSED_FORM, TRIMMED) and len(residual):
        unweighted = torch.zeros_like(views.mask)
        projector = texture.make_projector(views, mesh, unweighted, state.config.texture)
        colours, others = consensus(pixels, projector, views.trusted_among_others)
        evidence = torch.where(others >= _MIN_OTHERS, pixels.residual(colours), residual)
        evidence = torch.where(trusted, 0.0, evidence)
        lambda_0 = max(config.lambda_end, config.floor * float(evidence.mean()))
    conflict = torch.zeros_like(residual)
    if config.mode == MLP:
        inputs = (f_c, f_g, pixels.directions.to(state.device), pixels.view.to(state.device), points)
        if config.consensus and len(evidence):
            train_conflict(state, inputs, evidence.to(state.device), lambda_0)
        conflict = state.surface_conflict(*inputs)
    elif config.mode == CLOSED_FORM:
        conflict = closed_form_conflict(evidence, lambda_0)
    elif config.mode == TRIMMED and bool((evidence > 0).any()):
        # numpy, because torch.quantile refuses this many numbers
        conflict = (evidence > float(np.quantile(evidence.numpy(), 1 - config.trim))).float()
    conflict = torch.where(trusted, 0.0, conflict.cpu())
    return pixels.scatter(conflict), pixels.scatter(residual)


def surface_pixels(mesh: trimesh.Trimesh, views: ViewSet) -> SurfacePixels:
    """Find the pixels of the object in which a mesh is seen.

    Args:
        mesh: the surface.
        views: the pictures with refined cameras, on the CPU.

    Returns:
        The pixels with their surface points.
    """
    cameras = views.cameras
    depth = texture.depth_maps(mesh, cameras)
    hit = (depth > 0) & (views.mask > 0.5)
    origins, directions = (rays[hit] for rays in cameras.rays())
    view = torch.nonzero(hit)[:, 0]
    c2w = cameras.c2w[view]
    back = c2w[:, :3, 2]
    # Depth is along the camera's axis; a perspective ray is oblique to it.
    offset = ((c2w[:, :3, 3] - origins) * back).sum(dim=-1)
    along = -(directions * back).sum(dim=-1)
    points = origins + ((depth[hit] - offset) / along)[:, None] * directions
    # The nearest vertex is within a pixel or two, so its normal will do.
    nearest = cKDTree(np.asarray(mesh.vertices)).query(points.numpy())[1] if len(points) else []
    normals = torch.from_numpy(np.array(mesh.vertex_normals)[nearest]).float().reshape(-1, 3)
    return SurfacePixels(hit, view, points, directions, normals, views.rgb[hit], views.mask[hit][:, None])


def consensus(pixels: SurfacePixels, projector: texture.Projector, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """The geometric median of the colours that the other views show at each pixel's point (Weiszfeld 1937).

    Views are weighted as in the texture. Where a point's colour is free, this median minimises the un-squared norm of
    eq. 5. A pixel's own view is left out, so that it cannot confirm itself. Where a trusted view sees the point, only
    trusted views count: no number of generated views outvotes the input picture.

    Args:
        pixels: the n pixels.
        projector: the views.
        trusted: bool [v], `ViewSet.trusted_among_others`.

    Returns:
        colours: [n,3] float32, straight, in [0,1].
        others: [n] int64, how many views these are; one trusted view counts as `_MIN_OTHERS`.
    """
    colours, others = [], []
    parts = (t.split(_CHUNK) for t in (pixels.view, pixels.points, pixels.normals))
    for view, points, normals in zip(*parts, strict=True):
        shown, weight = texture.project(points, normals, projector)  # v n 3, v n
        weight[view, torch.arange(len(view))] = 0
        decided = (weight[trusted] > 0).any(dim=0)
        weight[~trusted] *= ~decided
        median = (shown * weight[..., None]).sum(dim=0) / weight.sum(dim=0).clamp_min(1e-8)[:, None]
        for _ in range(_WEISZFELD_STEPS):
            near = weight / (shown - median).norm(dim=-1).clamp_min(_MIN_DISTANCE)
            median = (shown * near[..., None]).sum(dim=0) / near.sum(dim=0).clamp_min(1e-8)[:, None]
        colours.append(median)
        others.append((weight > 0).sum(dim=0).clamp_min(_MIN_OTHERS * decided))
    return torch.cat(colours), torch.cat(others)


def train_conflict(state: FusionState, inputs: tuple[Tensor, ...], residual: Tensor, lambda_0: float) -> None:
    """Train f_psi alone by eq. 5, with a given residual.

    Args:
        state: its `conflict` is updated.
        inputs: arguments of `ConflictField.forward`, each [n,...].
        residual: [n] float32 in the place of ||C - C^||_2.
        lambda_0: the penalty.
    """
    config, rate = state.config.conflict, state.config.optim.lr_conflict
    optimizer = torch.optim.Adam(state.conflict.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(state.config.optim.seed)
    for step in range(config.polish_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / config.polish_steps)
        ids = torch.randint(len(residual), (config.polish_rays,), generator=generator).to(residual.device)
        h = state.conflict(*(tensor.index_select(0, ids) for tensor in inputs))
        loss = colour_loss(residual.index_select(0, ids), h, lambda_0, torch.ones_like(h))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
