"""From two meshes to a row: one group of columns per alignment, every choice in the column's name."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from nova3d.evaluation import mesh_metrics as meshes
from nova3d.evaluation import mesh_sync
from nova3d.evaluation.alignment import align
from nova3d.evaluation.protocols import MeshRules

Floats = NDArray[np.float64]

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])  # left and right as the input camera sees them
_SAME = 1e-9  # longest sides; an alignment that differs by less from another scores what that one does


@dataclass(frozen=True)
class Reference:
    """A reference mesh and what is measured on it once for all predictions, in the unit frame.

    transform: [4,4] from the file's frame to the unit frame. surface: its samples; visible: [n,3] its visible points;
    either is None where the rules do not ask for it.
    """

    mesh: trimesh.Trimesh
    transform: Floats
    surface: meshes.Surface | None
    visible: Floats | None

    @staticmethod
    def of(mesh: trimesh.Trimesh, rules: MeshRules, seed: int) -> "Reference":
        """Raises InputError where the mesh has no surface."""
        transform = meshes.to_unit(mesh)
        unit = meshes.moved(mesh, transform)
        area, visible = ("area" in rules.points or rules.mirror_margin), "visible16" in rules.points
        surface = meshes.sample_surface(unit, rules.surface_samples, seed + 1).in_z_order() if area else None
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
    surface = None
    if ref.surface is not None:
        surface = meshes.sample_surface(pred, rules.surface_samples, seed).in_z_order()
    row: dict[str, float] = {}
    missing: dict[str, str] = {}
    scored: list[tuple[Floats, dict[str, float], dict[str, str]]] = []
    for name, transform in align(pred, ref.mesh, rules.alignments, seed).items():
        found = next((s for s in scored if float(np.abs(s[0] - transform).max()) < _SAME), None)
        if found is None:
            found = (transform, *_placed(pred, surface, transform, ref, rules))
            scored.append(found)
        ending = "" if name == "known" else f"_{name}"
        row |= {f"{column}{ending}": value for column, value in found[1].items()}
        missing |= {f"{column}{ending}": reason for column, reason in found[2].items()}
    if rules.mirror_margin and surface is not None and ref.surface is not None:
        own = row.get(_chamfer_column(rules))
        own = meshes.match_points(surface, ref.surface).chamfer() if own is None else own
        row["mirror_margin"] = meshes.match_points(surface.moved(_MIRROR), ref.surface).chamfer() - own
    row["watertight"] = float(meshes.is_closed(pred))
    return row, missing


def _placed(
    pred: trimesh.Trimesh, surface: meshes.Surface | None, transform: Floats, ref: Reference, rules: MeshRules
) -> tuple[dict[str, float], dict[str, str]]:
    """The columns of one alignment without its ending, and why some could not be computed."""
    row: dict[str, float] = {}
    missing: dict[str, str] = {}
    placed = meshes.moved(pred, transform)
    if "area" in rules.points and surface is not None and ref.surface is not None:
        matched = meshes.match_points(surface.moved(transform), ref.surface)
        row[_chamfer_column(rules)] = matched.chamfer()
        row |= {f"f_score_{limit:g}": matched.f_score(limit) for limit in rules.f_score_thresholds}
        row["normal_consistency"] = matched.normal_consistency()
    if ref.visible is not None:
        row["cd_l2_visible16_v001"] = mesh_sync.visible_chamfer(mesh_sync.visible_points(placed), ref.visible)
    for iou in rules.ious:
        try:
            row[iou] = _iou(iou)(placed, ref.mesh)
        except mesh_sync.NotInstalled as error:
            row[iou], missing[iou] = math.nan, str(error)
    return row, missing


def _iou(name: str) -> Callable[[trimesh.Trimesh, trimesh.Trimesh], float]:
    if name == "iou64_mesh2sdf":
        return mesh_sync.mesh2sdf_iou
    resolution = int(name.removeprefix("iou").removesuffix("_flood"))
    return lambda pred, ref: meshes.volume_iou(pred, ref, resolution)


def _chamfer_column(rules: MeshRules) -> str:
    samples = rules.surface_samples
    return f"cd_l2_area{samples // 1000}k" if samples % 1000 == 0 else f"cd_l2_area{samples}"
