"""Scores of meshes: a group of columns per alignment, named in the column.

Alignment hides errors that a user would see, such as a wrong size or a turned object. So tables print an aligned score
beside the one in the known frame. No alignment mirrors, so a mirrored mesh keeps its error.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.evaluation import baselines
from nova3d.evaluation import mesh_metrics as metrics
from nova3d.evaluation.folders import ObjectFolder, mesh_turn
from nova3d.evaluation.protocols import MESH_REGISTRATIONS, MeshRules, Protocol
from nova3d.evaluation.shape_figures import FrontView, front_view, shape_figures

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Row = dict[str, float]

YAW_STEP_DEG = 15.0
_SAMPLES = 4000  # points of each mesh for the search; its result is applied to the whole mesh
_ICP_STEPS = 50
_ICP_SETTLED = 1e-7  # longest sides; the change of the mean distance at which ICP stops
_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])  # left and right as the input camera sees them
_OTHER_UNITS = 3.0  # ratio of longest sides, above which other units are assumed
_SAME = 1e-9  # longest sides; alignments that differ by less share one measurement


class MeshScorer:
    """Scores the predicted mesh of one object; the reference is read once.

    Raises InputError where the reference is missing or has no surface.
    """

    def __init__(self, name: str, references: ObjectFolder, protocol: Protocol):
        self.name, self.rules, self.seed = name, protocol.meshes, protocol.seed
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        self.ref = MeshReference.prepare(metrics.read_surface(references.mesh(name)), self.rules, self.seed)

    def score(self, prediction: ObjectFolder) -> Row:
        """Column -> value; raises InputError where the prediction is missing or unusable."""
        turn = np.eye(4)
        turn[:3, :3] = mesh_turn(prediction.axes)
        pred = metrics.moved(metrics.read_surface(prediction.mesh(self.name)), turn)
        if line := units_fault(pred, self.ref, self.rules):
            log.warning("%s: %s", self.name, line)
        row, missing = score_meshes(pred, self.ref, self.rules, self.seed)
        self.missing |= missing
        return row

    def score_failure(self) -> Row:
        """The row of a failed prediction: a tiny cube."""
        return score_unit(baselines.speck(), self.ref, self.rules, self.seed)[0]

    def score_baselines(self) -> Iterator[tuple[str, Row]]:
        """Name and row of every baseline."""
        for label, mesh in baselines.mesh_baselines(self.ref.mesh, self.hull_cells):
            yield label, score_unit(mesh, self.ref, self.rules, self.seed)[0]


@dataclass(frozen=True)
class MeshReference:
    """A reference mesh in the unit frame (box centred, longest side 1), measured once for all predictions."""

    mesh: trimesh.Trimesh
    transform: Floats
    """[4,4] from the file's frame to the unit frame."""
    surface: metrics.SurfaceSamples | None
    """Area-weighted samples; None where the rules do not need them."""
    visible: Floats | None
    """[n,3] the points that 16 cameras see; None where the rules do not need them."""
    front: FrontView
    """What the input view's camera sees."""

    @staticmethod
    def prepare(mesh: trimesh.Trimesh, rules: MeshRules, seed: int) -> "MeshReference":
        """Measure a mesh in its file's frame for the rules; raises InputError where it has no surface."""
        transform = metrics.to_unit(mesh)
        unit = metrics.moved(mesh, transform)
        area, visible = ("area" in rules.points or rules.mirror_margin), "visible16" in rules.points
        surface = metrics.sample_surface(unit, rules.surface_samples, seed + 1).in_z_order() if area else None
        seen = metrics.visible_points(unit) if visible else None
        return MeshReference(unit, transform, surface, seen, front_view(unit))


def score_meshes(
    pred: trimesh.Trimesh, ref: MeshReference, rules: MeshRules, seed: int = 0
) -> tuple[dict[str, float], dict[str, str]]:
    """Score the mesh of one object.

    Args:
        pred: the predicted mesh, in the frame that `rules.frame` names.
        ref: the reference.
        rules: which alignments, points and metrics.
        seed: of the surface samples.

    Returns:
        Column -> value, and column -> reason for what could not be computed (nan among the values). The known frame's
        columns bear the metric's name alone, those of an alignment end in its name. `watertight` is 1 or 0 for the
        prediction; read the IoU beside it. `shape_figures` are of the known frame.

    Raises:
        InputError: where the prediction has no surface.
    """
    return score_unit(metrics.moved(pred, ref.transform) if rules.frame == "shared" else pred, ref, rules, seed)


def units_fault(pred: trimesh.Trimesh, ref: MeshReference, rules: MeshRules) -> str:
    """Why a prediction and its reference seem to be in different units, "" where they do not.

    Args:
        pred: the predicted mesh, in the frame that `rules.frame` names.
        ref: the reference.
        rules: their `frame` is the one that the prediction must be in.

    Returns:
        A sentence where one is more than three times as long as the other.
    """
    shown = metrics.moved(pred, ref.transform) if rules.frame == "shared" else pred
    ratio = float(shown.extents.max())  # the reference's longest side is 1
    if 1 / _OTHER_UNITS <= ratio <= _OTHER_UNITS:
        return ""
    return (
        f"the predicted mesh is {ratio:.3g} times as long as the reference: are they in different units or frames? "
        "Distances in the known frame mean little then, and the columns *_bbox compare both at one size; a mesh of "
        "`generate` belongs beside a reference whose longest side is 1 around the origin"
    )


def score_unit(
    pred: trimesh.Trimesh, ref: MeshReference, rules: MeshRules, seed: int = 0
) -> tuple[dict[str, float], dict[str, str]]:
    """`score_meshes` of a prediction that is in the unit frame."""
    surface = None
    if ref.surface is not None:
        surface = metrics.sample_surface(pred, rules.surface_samples, seed).in_z_order()
    row: dict[str, float] = {}
    missing: dict[str, str] = {}
    scored: list[tuple[Floats, dict[str, float], dict[str, str]]] = []
    for name, transform in align(pred, ref.mesh, rules.alignments, seed).items():
        found = next((s for s in scored if float(np.abs(s[0] - transform).max()) < _SAME), None)
        if found is None:
            found = (transform, *_score_aligned(pred, surface, transform, ref, rules))
            scored.append(found)
        ending = "" if name == "known" else f"_{name}"
        row |= {f"{column}{ending}": value for column, value in found[1].items()}
        missing |= {f"{column}{ending}": reason for column, reason in found[2].items()}
    if rules.mirror_margin and surface is not None and ref.surface is not None:
        own = row.get(_chamfer_column(rules))
        own = metrics.match_points(surface, ref.surface).chamfer() if own is None else own
        row["mirror_margin"] = metrics.match_points(surface.moved(_MIRROR), ref.surface).chamfer() - own
    row["watertight"] = float(metrics.is_closed(pred))
    row |= shape_figures(pred, ref.mesh, ref.front)
    return row, missing


def _score_aligned(
    pred: trimesh.Trimesh,
    surface: metrics.SurfaceSamples | None,
    transform: Floats,
    ref: MeshReference,
    rules: MeshRules,
) -> tuple[dict[str, float], dict[str, str]]:
    """The columns of one alignment without its ending, and why some could not be computed."""
    row: dict[str, float] = {}
    missing: dict[str, str] = {}
    placed = metrics.moved(pred, transform)
    if "area" in rules.points and surface is not None and ref.surface is not None:
        matched = metrics.match_points(surface.moved(transform), ref.surface)
        row[_chamfer_column(rules)] = matched.chamfer()
        row |= {f"f_score_{limit:g}": matched.f_score(limit) for limit in rules.f_score_thresholds}
        row["normal_consistency"] = matched.normal_consistency()
    if ref.visible is not None:
        row["cd_l2_visible16_v001"] = metrics.visible_chamfer(metrics.visible_points(placed), ref.visible)
    for iou in rules.ious:
        try:
            row[iou] = _iou(iou)(placed, ref.mesh)
        except metrics.PackageUnavailable as error:
            row[iou], missing[iou] = math.nan, str(error)
    return row, missing


def _iou(name: str) -> Callable[[trimesh.Trimesh, trimesh.Trimesh], float]:
    if name == "iou64_mesh2sdf":
        return metrics.mesh2sdf_iou
    resolution = int(name.removeprefix("iou").removesuffix("_flood"))
    return lambda pred, ref: metrics.volume_iou(pred, ref, resolution)


def _chamfer_column(rules: MeshRules) -> str:
    samples = rules.surface_samples
    return f"cd_l2_area{samples // 1000}k" if samples % 1000 == 0 else f"cd_l2_area{samples}"


def align(pred: trimesh.Trimesh, ref: trimesh.Trimesh, wanted: Sequence[str], seed: int = 0) -> dict[str, Floats]:
    """Align a prediction to its reference.

    Args:
        pred: the predicted mesh.
        ref: the reference in the unit frame (box centred, longest side 1), the frame of the scores.
        wanted: names of protocols.MESH_REGISTRATIONS.
            known: no change.
            bbox: the prediction's own box is centred and scaled to longest side 1.
            bbox_yaw: it is turned about +Y, then boxed likewise; the multiple of 15 degrees with the least two-way
                distance is taken.
            bbox_yaw_icp: rigid ICP from there. bbox_yaw_icp_scale: ICP with scale.
        seed: of the surface samples.

    Returns:
        Name -> similarity [4,4] to apply to `pred`.

    Raises:
        InputError: for another name, or a mesh without surface.
    """
    if unknown := [name for name in wanted if name not in MESH_REGISTRATIONS]:
        raise InputError(f"alignment '{unknown[0]}' is not one of {', '.join(MESH_REGISTRATIONS)}")
    found = {"known": np.eye(4)}
    if any(name != "known" for name in wanted):
        found["bbox"] = metrics.to_unit(pred)
    if any(name.startswith("bbox_yaw") for name in wanted):
        points = metrics.sample_surface(pred, _SAMPLES, seed).in_z_order().points
        target = metrics.sample_surface(ref, _SAMPLES, seed + 1).in_z_order()
        found["bbox_yaw"] = _best_yaw(pred, points, target)
        for name, scale in (("bbox_yaw_icp", False), ("bbox_yaw_icp_scale", True)):
            if name in wanted:
                found[name] = icp(points, target, found["bbox_yaw"], scale)
    return {name: found[name] for name in wanted}


def icp(points: Floats, target: metrics.SurfaceSamples, start: Floats, scale: bool) -> Floats:
    """[4,4] similarity that brings `points` [n,3] to those of `target`, by iterative closest points from `start`.

    Pairs are formed both ways, so that neither a part of the target nor, with `scale`, a shrunken prediction can win;
    the least-squares motion of each step is trimesh's Procrustes, without reflection (Besl and McKay 1992).
    """
    transform, last = start, np.inf
    for _ in range(_ICP_STEPS):
        here = _apply(points, transform)
        to_target, of_target = metrics.nearest(here, target.tree)
        to_points, of_points = metrics.nearest(target.points, here)
        mean = (to_target.mean() + to_points.mean()) / 2
        if last - mean < _ICP_SETTLED:
            break
        last = mean
        sources = np.concatenate([here, here[of_points]])
        goals = np.concatenate([target.points[of_target], target.points])
        step = trimesh.registration.procrustes(sources, goals, reflection=False, scale=scale, return_cost=False)
        transform = np.asarray(step) @ transform
    return transform


def _best_yaw(pred: trimesh.Trimesh, points: Floats, target: metrics.SurfaceSamples) -> Floats:
    best, least = np.eye(4), np.inf
    corners = pred.vertices[pred.referenced_vertices]
    for angle in np.radians(np.arange(0, 360, YAW_STEP_DEG)):
        turn = trimesh.transformations.rotation_matrix(angle, [0, 1, 0])
        turned = _apply(corners, turn)
        transform = metrics.box_to_unit(turned.min(axis=0), turned.max(axis=0)) @ turn
        here = _apply(points, transform)
        distance = metrics.nearest(here, target.tree)[0].mean() + metrics.nearest(target.points, here)[0].mean()
        if distance < least:
            best, least = transform, distance
    return best


def _apply(points: Floats, transform: Floats) -> Floats:
    return points @ transform[:3, :3].T + transform[:3, 3]
