"""From two meshes to a row: one group of columns per alignment, every choice in the column's name."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from nova3d.evaluation import mesh_sync, meshes
from nova3d.evaluation.alignment import align
from nova3d.evaluation.protocols import MeshRules

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])  # left and right as the input camera sees them


@dataclass(frozen=True)
class Reference:
    """A reference mesh and what is measured on it once for all predictions, in the unit frame.

    transform: [4,4] from the file's frame to the unit frame. surface: its samples; visible: [n,3] its visible points;
    either is None where the rules do not ask for it.
    """

    mesh: trimesh.Trimesh
    transform: NDArray[np.float64]
    surface: meshes.Surface | None
    visible: NDArray[np.float64] | None

    @staticmethod
    def of(mesh: trimesh.Trimesh, rules: MeshRules, seed: int) -> "Reference":
        """Raises InputError where the mesh has no surface."""
        transform = meshes.to_unit(mesh)
        unit = meshes.moved(mesh, transform)
        area, visible = ("area" in rules.points or rules.mirror_margin), "visible16" in rules.points
        surface = meshes.sample_surface(unit, rules.surface_samples, seed + 1) if area else None
        return Reference(unit, transform, surface, mesh_sync.visible_points(unit) if visible else None)


def score_meshes(
    pred: trimesh.Trimesh, ref: Reference, rules: MeshRules, seed: int = 0
) -> tuple[dict[str, float], dict[str, str]]:
    """Column -> value for one object, and column -> reason for what could not be computed (nan in the row).

    The known frame's columns bear the metric's name alone, those of an alignment end in its name. `watertight` is 1 or
    0 for the prediction, to read the IoU by. Raises InputError where the prediction has no surface.
    """
    return score_unit(meshes.moved(pred, ref.transform) if rules.frame == "shared" else pred, ref, rules, seed)


def score_unit(
    pred: trimesh.Trimesh, ref: Reference, rules: MeshRules, seed: int = 0
) -> tuple[dict[str, float], dict[str, str]]:
    """`score_meshes` of a prediction that is in the unit frame."""
    surface = None if ref.surface is None else meshes.sample_surface(pred, rules.surface_samples, seed)
    row: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, transform in align(pred, ref.mesh, rules.alignments, seed).items():
        ending = "" if name == "known" else f"_{name}"
        placed = meshes.moved(pred, transform)
        if "area" in rules.points and surface is not None and ref.surface is not None:
            matched = meshes.match_points(surface.moved(transform), ref.surface)
            row[f"cd_l2_area{_short(rules.surface_samples)}{ending}"] = matched.chamfer()
            row |= {f"f_score_{limit:g}{ending}": matched.f_score(limit) for limit in rules.f_score_thresholds}
            row[f"normal_consistency{ending}"] = matched.normal_consistency()
        if ref.visible is not None:
            row[f"cd_l2_visible16_v001{ending}"] = mesh_sync.visible_chamfer(
                mesh_sync.visible_points(placed), ref.visible
            )
        for iou in rules.ious:
            try:
                row[f"{iou}{ending}"] = _iou(iou)(placed, ref.mesh)
            except mesh_sync.NotInstalled as error:
                row[f"{iou}{ending}"], missing[f"{iou}{ending}"] = math.nan, str(error)
    if rules.mirror_margin and surface is not None and ref.surface is not None:
        own, mirrored = (meshes.match_points(s, ref.surface).chamfer() for s in (surface, surface.moved(_MIRROR)))
        row["mirror_margin"] = mirrored - own
    row["watertight"] = float(meshes.is_closed(pred))
    return row, missing


def _iou(name: str) -> Callable[[trimesh.Trimesh, trimesh.Trimesh], float]:
    if name == "iou64_mesh2sdf":
        return mesh_sync.mesh2sdf_iou
    resolution = int(name.removeprefix("iou").removesuffix("_flood"))
    return lambda pred, ref: meshes.volume_iou(pred, ref, resolution)


def _short(samples: int) -> str:
    return f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
