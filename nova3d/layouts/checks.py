"""Checks of views before they are fused to a mesh; each fault is one line."""

import logging
import math

import torch
from torch import Tensor

from nova3d.cameras import pose_fault
from nova3d.errors import InputError
from nova3d.hull import MASK_LEVEL
from nova3d.layouts.placement import BOX, ORTHO_CLEARANCE
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

MIN_SPREAD_DEG = 5.0  # viewing directions nearer to one another than this see one side
FEW_VIEWS = 4
_FULL = 0.99  # share of object pixels above which the background was not removed


def check_for_fusion(views: ViewSet) -> None:
    """Check that views can be fused; log a warning where the result will be poor.

    Args:
        views: in our frame, with the object around the origin (see `normalise`).

    Raises:
        InputError: in one line, where numbers are not finite or out of range, normals are not unit, poses are not
            rigid, there are fewer than two views, masks are all empty or all full, all views are one picture, or the
            cameras all look from one side or past the object's box.
    """
    _check_numbers(views)
    if len(views) < 2:
        raise InputError("one view does not tell a shape: give at least two views from different sides")
    shown = (views.mask > MASK_LEVEL).flatten(1)
    if not bool(shown.any()):
        raise InputError("the views show no object: every mask is empty")
    if bool((shown.float().mean(dim=1) > _FULL).all()):
        raise InputError("the masks fill every picture: the background was not removed")
    if _all_one_picture(views):
        raise InputError(f"all {len(views)} views are one and the same picture: they cannot be views of one object")
    _check_directions(views, shown.any(dim=1))
    _check_in_sight(views, shown.any(dim=1))
    if len(views) < FEW_VIEWS:
        log.warning("only %d views: what none of them sees will be guessed", len(views))
    if not views.has_normals:
        log.info("the views have no normals: the shape comes from masks and colours alone")


def _check_numbers(views: ViewSet) -> None:
    parts = {"rgb": views.rgb, "normals": views.normals, "mask": views.mask}
    for name, values in parts.items():
        _refuse(~torch.isfinite(values), f"{name} of views {{}} holds numbers that are not finite")
    for name in ("rgb", "mask"):
        _refuse((parts[name] < -1e-3) | (parts[name] > 1 + 1e-3), f"{name} of views {{}} is not in the range 0 to 1")
    length = views.normals.norm(dim=-1)
    _refuse((length > 1e-3) & ((length - 1).abs() > 0.05), "normals of views {} are neither unit vectors nor zero")
    rows = {"poses": views.cameras.c2w, "intrinsics": views.cameras.intrinsics}
    for name, values in rows.items():
        _refuse(~torch.isfinite(values), f"the {name} of views {{}} are not finite")
    _refuse(views.cameras.intrinsics[:, :2] <= 0, "the focal lengths of views {} are not positive")
    for i, pose in enumerate(views.cameras.c2w.cpu()):
        if fault := pose_fault(pose):
            raise InputError(f"the pose of view {i} {fault}")


def _refuse(bad: Tensor, line: str) -> None:
    """Raise InputError with the numbers of the views (first axis of `bad`) put into `line`, if there are any."""
    found = torch.nonzero(bad.flatten(1).any(dim=1))[:, 0].tolist()
    if found:
        raise InputError(line.format(", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")))


def _all_one_picture(views: ViewSet) -> bool:
    return bool((views.rgb == views.rgb[:1]).all()) and bool((views.mask == views.mask[:1]).all())


def _check_directions(views: ViewSet, used: Tensor) -> None:
    back = views.cameras.c2w[used, :3, 2]
    cosine = (back @ back.mT).clamp(-1, 1).min()
    spread = math.degrees(math.acos(float(cosine)))
    if spread < MIN_SPREAD_DEG:
        raise InputError(
            f"all views that show the object look from one side (within {spread:.1f} degrees): give views from "
            "different sides, or check that the poses differ"
        )


def _check_in_sight(views: ViewSet, used: Tensor) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-BOX, BOX])] * 3).to(views.rgb)
    points = torch.cat([corners, corners.new_zeros(1, 3)])
    pixels, depth = views.cameras.project(points)
    numbers = torch.nonzero(used)[:, 0].tolist()
    away = [i for i in numbers if bool((depth[i] <= 0).all())]
    if away:
        raise InputError(
            f"the cameras of views {away[:6]} look away from the origin, where the object must be: check the poses' "
            "axes (OpenGL: looking along -Z), or place the object with nova3d.layouts.normalise"
        )
    position, back = views.cameras.c2w[:, :3, 3], views.cameras.c2w[:, :3, 2]
    if views.cameras.model == "perspective":
        within = position.abs().amax(dim=-1) < BOX
    else:
        within = (position * back).sum(dim=-1) < ORTHO_CLEARANCE
    inside = [i for i in numbers if bool(within[i])]
    if inside:
        raise InputError(
            f"the cameras of views {inside[:6]} stand in the box of half side {BOX} around the origin that the object "
            "must fill: place it with nova3d.layouts.normalise"
        )
    low, high = pixels.amin(dim=1), pixels.amax(dim=1)
    past = []
    for i in numbers:
        if bool((depth[i] <= 0).any()):  # a camera this near sees the box all around it
            continue
        rows, columns = torch.nonzero(views.mask[i] > MASK_LEVEL, as_tuple=True)
        overlap = (
            low[i, 0] <= columns.max() + 1
            and high[i, 0] >= columns.min()
            and low[i, 1] <= rows.max() + 1
            and high[i, 1] >= rows.min()
        )
        if not bool(overlap):
            past.append(i)
    if past:
        raise InputError(
            f"views {past[:6]} show the object outside the box of half side {BOX} around the origin: place it with "
            "nova3d.layouts.normalise"
        )
