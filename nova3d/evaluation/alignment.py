"""Bringing a predicted mesh to its reference before scoring: every way under its own name, none of them silent.

Aligning forgives what a user would see (a wrong size, a turned object), so an aligned score never stands alone: the
tables print it beside the one in the known frame. No alignment here ever mirrors: a mirrored mesh stays wrong.
"""

from collections.abc import Sequence

import numpy as np
import trimesh
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.evaluation.mesh_metrics import Surface, box_to_unit, nearest, sample_surface, to_unit
from nova3d.evaluation.protocols import ALIGNMENTS

Floats = NDArray[np.float64]

YAW_STEP_DEG = 15.0
_SAMPLES = 4000  # points of each mesh for the search; what is found is applied to the mesh itself
_ICP_STEPS = 50
_ICP_SETTLED = 1e-7  # longest sides; the change of the mean distance at which ICP stops


def align(pred: trimesh.Trimesh, ref: trimesh.Trimesh, wanted: Sequence[str], seed: int = 0) -> dict[str, Floats]:
    """Name -> similarity [4,4] to apply to `pred`, for each of `wanted` (protocols.ALIGNMENTS).

    `ref` is in the unit frame (box centred, longest side 1), in which all is measured.
    known: nothing. bbox: the prediction's own box is centred and scaled to longest side 1. bbox_yaw: it is turned about
    +Y by the multiple of 15 degrees, then boxed likewise, that gives the least two-way distance. bbox_yaw_icp: from
    there rigid ICP; bbox_yaw_icp_scale: ICP with scale. Raises InputError for another name or a mesh without surface.
    """
    if unknown := [name for name in wanted if name not in ALIGNMENTS]:
        raise InputError(f"alignment '{unknown[0]}' is not one of {', '.join(ALIGNMENTS)}")
    found = {"known": np.eye(4)}
    if any(name != "known" for name in wanted):
        found["bbox"] = to_unit(pred)
    if any(name.startswith("bbox_yaw") for name in wanted):
        points = sample_surface(pred, _SAMPLES, seed).in_z_order().points
        target = sample_surface(ref, _SAMPLES, seed + 1).in_z_order()
        found["bbox_yaw"] = _best_yaw(pred, points, target)
        for name, scale in (("bbox_yaw_icp", False), ("bbox_yaw_icp_scale", True)):
            if name in wanted:
                found[name] = icp(points, target, found["bbox_yaw"], scale)
    return {name: found[name] for name in wanted}


def icp(points: Floats, target: Surface, start: Floats, scale: bool) -> Floats:
    """[4,4] similarity that brings `points` [n,3] to those of `target`, by iterative closest points from `start`.

    Pairs are formed both ways, so that neither a part of the target nor, with `scale`, a shrunken prediction can win;
    the least-squares motion of each step is trimesh's Procrustes, without reflection (Besl and McKay 1992).
    """
    transform, last = start, np.inf
    for _ in range(_ICP_STEPS):
        here = _apply(points, transform)
        to_target, of_target = nearest(here, target.tree)
        to_points, of_points = nearest(target.points, here)
        mean = (to_target.mean() + to_points.mean()) / 2
        if last - mean < _ICP_SETTLED:
            break
        last = mean
        sources = np.concatenate([here, here[of_points]])
        goals = np.concatenate([target.points[of_target], target.points])
        step = trimesh.registration.procrustes(sources, goals, reflection=False, scale=scale, return_cost=False)
        transform = np.asarray(step) @ transform
    return transform


def _best_yaw(pred: trimesh.Trimesh, points: Floats, target: Surface) -> Floats:
    best, least = np.eye(4), np.inf
    corners = pred.vertices[pred.referenced_vertices]
    for angle in np.radians(np.arange(0, 360, YAW_STEP_DEG)):
        turn = trimesh.transformations.rotation_matrix(angle, [0, 1, 0])
        turned = _apply(corners, turn)
        transform = box_to_unit(turned.min(axis=0), turned.max(axis=0)) @ turn
        here = _apply(points, transform)
        distance = nearest(here, target.tree)[0].mean() + nearest(target.points, here)[0].mean()
        if distance < least:
            best, least = transform, distance
    return best


def _apply(points: Floats, transform: Floats) -> Floats:
    return points @ transform[:3, :3].T + transform[:3, 3]
