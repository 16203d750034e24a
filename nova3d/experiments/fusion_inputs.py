"""Inputs of the fusion suite: true views of real objects, and faults injected into them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from nova3d.cameras import Cameras, orbit, preset
from nova3d.data import render_object
from nova3d.evaluation.mesh_metrics import SurfaceSamples, sample_surface
from nova3d.experiments.objects import mesh_file, mesh_hash
from nova3d.fusion.poses import rotation_matrix
from nova3d.rendering.meshes import from_trimesh, load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.utils.files import replacing
from nova3d.views import ViewSet

RIG, SIZE = "ortho16", 256
SURFACE_SAMPLES = 200_000  # points of each surface
_DEPTH_SIZE = 512
_SLACK = 0.01  # world units by which a point may lie behind the nearest surface and still count as seen
_MIN_COS = 0.1
_CHANGED = 0.05  # ||change of colour|| from which a pixel counts as injected: less is within ordinary residuals
_FOREGROUND = 0.99


@dataclass(frozen=True)
class GroundTruth:
    """A real object with its true views and surface."""

    name: str
    views: ViewSet
    """16 true views at elevation 0."""
    between: ViewSet
    """16 more at the azimuths in the middle."""
    surface: SurfaceSamples
    """Points of the true surface."""
    seen: NDArray[np.bool_]
    """[n] whether any of the 16 views sees each of them."""


def load_ground_truth(source: Path, name: str, cache: Path) -> GroundTruth:
    """Render an object's mesh and sample its surface.

    The result is cached in the folder `cache`, and made anew where the mesh has changed.

    Args:
        source: a folder of meshes, as `nova3d.experiments.objects.object_names` reads it.
        name: one of its names.
        cache: the folder of the cache; it is made where it is missing.

    Returns:
        The object with its views and its surface.

    Raises:
        InputError: where the mesh cannot be read or drawn, or lacks a texture.
    """
    kept, key = cache / f"{name}.pt", mesh_hash(source, name)
    with mesh_file(source, name) as path:
        mesh = load_mesh(path).normalised()
        plain = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        surface = sample_surface(plain, SURFACE_SAMPLES, 0)
        if kept.is_file():
            content = torch.load(kept, weights_only=True)
            if content.get("mesh") == key:
                views, between = (_unpack(content[part]) for part in ("views", "between"))
                return GroundTruth(name, views, between, surface, content["seen"].numpy())
        views = render_object(path, preset(RIG, SIZE), light="flat")
        between = render_object(path, orbit(16, size=SIZE, start_azimuth_deg=180 / 16), light="flat")
    # Scans have open sheets and faces turned inside: either side counts.
    either = SurfaceSamples(np.tile(surface.points, (2, 1)), np.concatenate([surface.normals, -surface.normals]))
    seen: NDArray[np.bool_] = np.logical_or(*visible(either, plain).reshape(2, -1))
    content = {"mesh": key, "views": _pack(views), "between": _pack(between), "seen": torch.from_numpy(seen)}
    with replacing(kept) as aside:
        torch.save(content, aside)
    return GroundTruth(name, views, between, surface, seen)


def _pack(views: ViewSet) -> dict[str, Tensor]:
    return {"rgb": views.rgb, "normals": views.normals, "mask": views.mask, "c2w": views.cameras.c2w}


def _unpack(content: dict[str, Tensor]) -> ViewSet:
    rig = preset(RIG, SIZE)
    cameras = Cameras(content["c2w"], rig.intrinsics, rig.width, rig.height, rig.model)
    return ViewSet(content["rgb"], content["normals"], content["mask"], cameras)


def visible(surface: SurfaceSamples, mesh: trimesh.Trimesh) -> NDArray[np.bool_]:
    """Whether any of the rig's 16 views sees each point [n] of `mesh`, from the side its normal is on."""
    rig = preset(RIG, _DEPTH_SIZE)
    depth = rasterize(from_trimesh([mesh]), rig, supersample=1, light="flat").depth  # v h w
    points, normals = (torch.from_numpy(np.array(part)).float() for part in (surface.points, surface.normals))
    pixels, z = rig.project(points)
    column, row = pixels.floor().long().clamp(0, _DEPTH_SIZE - 1).unbind(dim=-1)
    nearest = depth[torch.arange(len(rig))[:, None], row, column]
    facing = torch.einsum("vc,nc->vn", rig.c2w[:, :3, 2], normals) > _MIN_COS
    return ((z < nearest + _SLACK) & (nearest > 0) & facing).any(dim=0).numpy()


def perturb_poses(views: ViewSet, degrees: float, shift: float, seed: int) -> ViewSet:
    """Every camera but view 0's turned by `degrees` about a random axis through the origin, and moved by `shift`.

    The shift (world units) has a random direction perpendicular to the viewing axis: along that axis an orthographic
    picture does not change. The pictures are unchanged, so the cameras are wrong.

    Args:
        views: v views.
        degrees: the angle.
        shift: the length.
        seed: of the axes and the directions.

    Returns:
        The same pictures, rgb [v,h,w,3], normals [v,h,w,3] and mask [v,h,w], with other c2w [v,4,4].
    """
    generator = torch.Generator().manual_seed(seed)
    v = len(views)
    axis = F.normalize(torch.randn(v, 3, generator=generator), dim=-1)
    axis[0] = 0
    c2w = views.cameras.c2w.clone()
    angle = torch.rand(v, generator=generator) * 2 * math.pi
    across = angle.cos()[:, None] * c2w[:, :3, 0] + angle.sin()[:, None] * c2w[:, :3, 1]
    across[0] = 0
    turn = rotation_matrix(axis * math.radians(degrees)).to(c2w)
    moved = c2w.clone()
    moved[:, :3] = turn @ c2w[:, :3]
    moved[:, :3, 3] += shift * across
    return replace(views, cameras=replace(views.cameras, c2w=moved))


def plant_conflicts(views: ViewSet, seed: int, count: int = 4) -> tuple[ViewSet, Tensor, Tensor]:
    """`count` views, never view 0, each with three faults on the object; the others keep every pixel.

    A patch of another hue, a patch of another brightness (half or 1.8 times), and a patch whose colours and normals
    are warped by 2 to 4 pixels (at 256), each a disc over about an eighth of the object's height. Pixels of a patch
    that did not visibly change count neither as conflict nor as clean.

    Args:
        views: v views of h x w pixels.
        seed: of the views and the patches.
        count: how many views get faults, at most v - 1.

    Returns:
        The views with other rgb [v,h,w,3] and normals [v,h,w,3]; bool [v,h,w] of the pixels whose colour changed; and
        bool [v,h,w] of all pixels of the patches.
    """
    generator = torch.Generator().manual_seed(seed)
    v, h, w = views.mask.shape
    rgb, normals = views.rgb.clone(), views.normals.clone()
    patches = torch.zeros(v, h, w, dtype=torch.bool)
    chosen = (torch.randperm(v - 1, generator=generator)[:count] + 1).tolist()
    for view in chosen:
        solid = views.mask[view] > _FOREGROUND
        inside = torch.nonzero(solid)
        if len(inside) == 0:
            continue
        radius = max(3.0, float(inside[:, 0].max() - inside[:, 0].min()) / 8)
        for kind in ("hue", "gain", "warp"):
            centre = inside[int(torch.randint(len(inside), (1,), generator=generator))]
            disc = solid & (_distance(centre, h, w) < radius)
            patches[view] |= disc
            if kind == "warp":
                angle = float(torch.rand(1, generator=generator)) * 2 * math.pi
                length = (2 + 2 * float(torch.rand(1, generator=generator))) * h / 256
                shift = torch.tensor([math.cos(angle), math.sin(angle)]) * length
                for images in (rgb, normals):
                    images[view][disc] = _shift(images[view], shift)[disc]
                normals[view] = F.normalize(normals[view], dim=-1)
            else:
                roll = 1 + int(torch.randint(2, (1,), generator=generator))
                gain = 0.5 if roll == 1 else 1.8
                pixels = rgb[view][disc]
                rgb[view][disc] = pixels.roll(roll, dims=-1) if kind == "hue" else (pixels * gain).clamp(0, 1)
    changed = patches & ((rgb - views.rgb).norm(dim=-1) > _CHANGED)
    return replace(views, rgb=rgb, normals=normals), changed, patches


def _distance(centre: Tensor, h: int, w: int) -> Tensor:
    """[h,w] distance in pixels to `centre` (row, column)."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return ((rows - centre[0]).float() ** 2 + (columns - centre[1]).float() ** 2).sqrt()


def _shift(image: Tensor, shift: Tensor) -> Tensor:
    """[h,w,c] read `shift` (x, y) pixels away, bilinearly."""
    h, w = image.shape[:2]
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    grid = torch.stack([(columns + shift[0]) / w, (rows + shift[1]) / h], dim=-1) * 2 - 1
    found = F.grid_sample(image.permute(2, 0, 1)[None], grid[None], padding_mode="border", align_corners=False)
    return found[0].permute(1, 2, 0)
