"""From the field to a clean triangle mesh: marching cubes near the surface, main parts, outward faces, few faces."""

import logging
from collections.abc import Callable
from typing import cast

import fast_simplification
import numpy as np
import torch
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.config import ExtractConfig

log = logging.getLogger(__name__)

_CHUNK = 1 << 17
# Share of the face budget and eagerness: eager passes may pinch the surface, patient ones may stop short of the budget.
_TRIES = ((1.0, 5), (1.0, 4), (1.0, 3), (0.95, 5), (0.95, 4), (0.9, 5), (0.9, 4), (0.85, 5), (0.8, 5))


def extract(sdf: Callable[[Tensor], Tensor], box: Tensor, config: ExtractConfig, radius: float) -> trimesh.Trimesh:
    """The zero level of `sdf` ([n,3] world -> [n], negative inside) within the box [2,3], cleaned and decimated.

    Faces look outward (counter-clockwise from outside). Raises InputError where the level set is empty.
    """
    volume, origin, step = sample_volume(sdf, box, config, radius)
    if not (volume < 0).any():
        raise InputError(
            "the fit found no surface (empty isosurface): check that masks and cameras agree, or use more optim.steps"
        )
    # skimage would call a solid of negative values "ascent", but turns its faces inward: "descent" is outward here.
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
    mesh = trimesh.Trimesh(vertices * step + origin, faces, process=False)
    return decimate(clean(mesh, config.min_component), config.faces)


def sample_volume(
    sdf: Callable[[Tensor], Tensor], box: Tensor, config: ExtractConfig, radius: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """SDF on a node grid [x,y,z] around `box`, with its origin [3] and step; positive on the border.

    A coarse grid is read first; only nodes within 1.5 coarse cells of a sign change or a small value are read finely,
    the others keep the coarse value, whose sign is sure.
    """
    step = 2 * radius / config.resolution
    factor = max(1, config.resolution // config.coarse)
    low, high = box[0].cpu().numpy(), box[1].cpu().numpy()
    cells = np.ceil((high - low) / (step * factor)).astype(int) + 2  # one coarse cell of air on either side
    origin = (low + high) / 2 - cells * step * factor / 2
    coarse = _read(sdf, _nodes(cells + 1, origin, step * factor, box.device)).reshape(cells + 1)
    near = np.abs(coarse) < 1.5 * step * factor * np.sqrt(3)
    inside = coarse < 0
    near |= ndimage.binary_dilation(inside) & ndimage.binary_dilation(~inside)
    near = ndimage.binary_dilation(near)
    shape = cells * factor + 1
    # Order-0 blow-up: every fine node takes its nearest coarse node's value and flag.
    index = [np.minimum(np.round(np.arange(n) / factor).astype(int), c) for n, c in zip(shape, cells, strict=True)]
    volume = coarse[np.ix_(*index)].copy()
    fine = near[np.ix_(*index)]
    where = np.argwhere(fine)
    points = torch.from_numpy((where * step + origin).astype(np.float32)).to(box.device)
    volume[fine] = _read(sdf, points)
    for axis in range(3):
        border = np.moveaxis(volume, axis, 0)
        border[0] = np.maximum(border[0], step)
        border[-1] = np.maximum(border[-1], step)
    return volume, origin, step


def clean(mesh: trimesh.Trimesh, min_component: float) -> trimesh.Trimesh:
    """Keep parts with at least `min_component` of the largest part's area, drop cavities, turn faces outward."""
    parts = mesh.split(only_watertight=False)
    if len(parts) == 0:
        raise InputError("the fit found no surface: the isosurface has no faces")
    areas = np.array([part.area for part in parts])
    # A closed part with negative volume is a bubble inside the solid: no view can have seen it.
    solid = np.array([part.volume > 0 or not part.is_watertight for part in parts])
    if not solid.any():
        solid[:] = True
    largest = areas[solid].max()
    kept = [p for p, a, s in zip(parts, areas, solid, strict=True) if s and a >= min_component * largest]
    if len(kept) < len(parts):
        log.info("dropped %d of %d parts (smaller than %.0f %%, or cavities)", len(parts) - len(kept), len(parts),
                 100 * min_component)  # fmt: skip
    joined = cast(trimesh.Trimesh, trimesh.util.concatenate(kept))
    return trimesh.Trimesh(joined.vertices, joined.faces, process=False)


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """Quadric decimation to at most `faces` faces; of several tries the first that keeps a closed mesh closed."""
    if len(mesh.faces) <= faces:
        return mesh
    must_close = mesh.is_watertight
    tried = []
    for share, eagerness in _TRIES:
        vertices, triangles = fast_simplification.simplify(
            np.asarray(mesh.vertices, dtype=np.float32),
            np.asarray(mesh.faces, dtype=np.int32),
            target_count=round(share * faces),
            agg=eagerness,
        )
        smaller = trimesh.Trimesh(vertices, triangles, process=False)
        smaller.remove_unreferenced_vertices()
        if len(triangles) <= 1.05 * faces and (smaller.is_watertight or not must_close):
            return smaller
        tried.append(smaller)
    log.warning("decimation to %d faces pinched the surface: the mesh is not quite closed", faces)
    return tried[0]


def health(mesh: trimesh.Trimesh) -> dict[str, float | int | bool]:
    """What a user asks of a mesh: vertices, faces, parts, whether it is closed and its volume (world units^3)."""
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "components": int(mesh.body_count),
        "watertight": bool(mesh.is_watertight),
        "volume": float(mesh.volume),
    }


def _nodes(shape: np.ndarray, origin: np.ndarray, step: float, device: torch.device) -> Tensor:
    axes = [torch.from_numpy((o + step * np.arange(n)).astype(np.float32)) for n, o in zip(shape, origin, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3).to(device)


@torch.no_grad()
def _read(sdf: Callable[[Tensor], Tensor], points: Tensor) -> np.ndarray:
    values = [sdf(part) for part in points.split(_CHUNK)]
    return torch.cat(values).cpu().numpy() if values else np.zeros(0, dtype=np.float32)
