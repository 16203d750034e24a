"""A real object with what is known of it, and how near a mesh comes to it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from nova3d.cameras import Cameras, orbit, preset
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.evaluation.mesh_metrics import Surface, match_points, sample_surface
from nova3d.rendering.mesh_files import MESH_SUFFIXES
from nova3d.rendering.meshes import from_trimesh, load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

RIG, SIZE = "ortho16", 256
_SAMPLES = 200_000  # points of each surface
_DEPTH_SIZE = 512
_SLACK = 0.01  # world units by which a point may lie behind the nearest surface and still count as seen
_MIN_COS = 0.1
_SOLID = 0.5


@dataclass(frozen=True)
class Truth:
    """views: 16 true views at elevation 0; between: 16 more at the azimuths in the middle. surface, seen: points of
    the true surface and whether any of the 16 views sees them."""

    name: str
    views: ViewSet
    between: ViewSet
    surface: Surface
    seen: NDArray[np.bool_]


def meshes_in(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The mesh files of a folder, by name, or those called `names`; raises InputError for what is not there."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in MESH_SUFFIXES)
    if not found:
        raise InputError(f"'{folder}' holds no mesh ({', '.join(MESH_SUFFIXES)})")
    if missing := sorted(set(names) - {path.stem for path in found}):
        raise InputError(f"'{folder}' has no object {', '.join(missing)}")
    return [path for path in found if not names or path.stem in names]


def load_truth(path: Path, cache: Path) -> Truth:
    """Render `path` (a mesh file) and sample its surface; kept in the folder `cache` for the next time."""
    kept = cache / f"{path.stem}.pt"
    mesh = load_mesh(path).normalised()
    plain = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    surface = sample_surface(plain, _SAMPLES, 0)
    if kept.is_file():
        content = torch.load(kept, weights_only=True)
        views, between = (_unpacked(content[key]) for key in ("views", "between"))
        return Truth(path.stem, views, between, surface, content["seen"].numpy())
    views = render_object(path, preset(RIG, SIZE), light="flat")
    between = render_object(path, orbit(16, size=SIZE, start_azimuth_deg=180 / 16), light="flat")
    # Scans have open sheets and faces turned inside: either side counts.
    either = Surface(np.tile(surface.points, (2, 1)), np.concatenate([surface.normals, -surface.normals]))
    seen: NDArray[np.bool_] = np.logical_or(*visible(either, plain).reshape(2, -1))
    cache.mkdir(parents=True, exist_ok=True)
    aside = kept.with_suffix(".part")
    torch.save({"views": _packed(views), "between": _packed(between), "seen": torch.from_numpy(seen)}, aside)
    aside.replace(kept)
    return Truth(path.stem, views, between, surface, seen)


def _packed(views: ViewSet) -> dict[str, Tensor]:
    return {"rgb": views.rgb, "normals": views.normals, "mask": views.mask, "c2w": views.cameras.c2w}


def _unpacked(content: dict[str, Tensor]) -> ViewSet:
    rig = preset(RIG, SIZE)
    cameras = Cameras(content["c2w"], rig.intrinsics, rig.width, rig.height, rig.model)
    return ViewSet(content["rgb"], content["normals"], content["mask"], cameras)


def visible(surface: Surface, mesh: trimesh.Trimesh) -> NDArray[np.bool_]:
    """Whether any of the rig's 16 views sees each point [n] of `mesh`, from the side its normal is on."""
    rig = preset(RIG, _DEPTH_SIZE)
    depth = rasterize(from_trimesh([mesh]), rig, supersample=1, light="flat").depth  # v h w
    points, normals = (torch.from_numpy(np.array(part)).float() for part in (surface.points, surface.normals))
    pixels, z = rig.project(points)
    column, row = pixels.floor().long().clamp(0, _DEPTH_SIZE - 1).unbind(dim=-1)
    nearest = depth[torch.arange(len(rig))[:, None], row, column]
    facing = torch.einsum("vc,nc->vn", rig.c2w[:, :3, 2], normals) > _MIN_COS
    return ((z < nearest + _SLACK) & (nearest > 0) & facing).any(dim=0).numpy()


def geometry(truth: Truth, mesh: trimesh.Trimesh) -> dict[str, float]:
    """Chamfer distance (mean of both directions, unsquared, longest side 1) and |cos| of normals, of the whole
    surface and of what the 16 views see of either mesh."""
    ours = sample_surface(mesh, _SAMPLES, 1)
    match, seen = match_points(ours, truth.surface), visible(ours, mesh)
    return {
        "chamfer": match.chamfer(),
        "chamfer_seen": float(match.to_ref[seen].mean() + match.to_pred[truth.seen].mean()) / 2,
        "normals": match.normal_consistency(),
        "normals_seen": float(match.agreement_ref[seen].mean() + match.agreement_pred[truth.seen].mean()) / 2,
        "f_score_0.01": match.f_score(0.01),
    }


def texture(truth: Truth, written: Path) -> dict[str, float]:
    """PSNR in dB of a mesh file rendered again at the 16 views and at the 16 in between, over pixels that either of
    the two covers: background would flatter the figure."""
    found = {}
    for name, views in (("psnr", truth.views), ("psnr_between", truth.between)):
        ours = render_object(written, views.cameras, light="flat", normalise=False)
        both = (ours.mask > _SOLID) | (views.mask > _SOLID)
        found[name] = float(-10 * torch.log10((ours.rgb - views.rgb)[both].square().mean()))
    return found


def auroc(score: Tensor, positive: Tensor, negative: Tensor) -> float:
    """The chance that a pixel of `positive` scores higher than one of `negative`, ties half; nan without both."""
    a, b = score[positive].numpy(), score[negative].numpy()
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    ranks = rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))
