"""What every layout's reader shares: what may be assumed, the rig of an orbit, and what a reading gives."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nova3d.cameras import ORTHO_SPAN, CameraModel, Cameras, look_from, preset
from nova3d.errors import InputError
from nova3d.layouts.placement import Placement
from nova3d.views import ViewSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assume:
    """What a layout does not say. None (or "auto") takes the layout's own default, which the log states.

    cameras: a preset's name (`nova3d.cameras.preset`) instead of the layout's rig. elevation_deg, radius, fov_deg
    (perspective), span (orthographic, world units across the image): single numbers of the rig. azimuth_deg: azimuth
    of view 0, the input view. sample: which sample of several in the folder (files sorted by name).
    Of a transforms.json only: up, the world's up axis, "z", "y" or "cameras" (the mean of the cameras' own up);
    front, the index of the view that becomes view 0 at azimuth 0.
    """

    cameras: str | None = None
    elevation_deg: float | None = None
    azimuth_deg: float | None = None
    radius: float | None = None
    fov_deg: float | None = None
    span: float | None = None
    sample: int = 0
    up: str = "auto"
    front: int | None = None


@dataclass(frozen=True)
class Loaded:
    """views, the layout they were read as, and the placement: from the source's frame to ours."""

    views: ViewSet
    layout: str
    placement: Placement


@dataclass(frozen=True)
class Orbit:
    """A rig of one elevation: azimuths_deg of the views in order, all facing the origin."""

    azimuths_deg: Sequence[float]
    model: CameraModel
    elevation_deg: float = 0.0
    radius: float = 1.5
    fov_deg: float = 33.8
    span: float = ORTHO_SPAN

    def cameras(self, width: int, height: int) -> Cameras:
        """The rig for width x height pictures; `span` and `fov_deg` hold across the width."""
        azimuth = torch.deg2rad(torch.tensor(self.azimuths_deg, dtype=torch.float64))
        elevation = torch.full_like(azimuth, math.radians(self.elevation_deg))
        c2w = look_from(azimuth, elevation, self.radius).float()
        across = self.span if self.model == "orthographic" else 2 * math.tan(math.radians(self.fov_deg) / 2)
        focal = width / across
        intrinsics = torch.tensor([focal, focal, width / 2, height / 2]).repeat(len(azimuth), 1)
        return Cameras(c2w, intrinsics, width, height, self.model)


def rig(layout: str, default: Orbit, width: int, height: int, assume: Assume) -> Cameras:
    """`default` with what `assume` says instead, logged; raises InputError where a preset has another view count."""
    count = len(default.azimuths_deg)
    given = [name for name in ("elevation_deg", "radius", "fov_deg", "span") if getattr(assume, name) is not None]
    if assume.cameras is not None:
        if given or assume.azimuth_deg is not None:
            raise InputError("give either the preset `cameras` or single numbers of the rig, not both")
        cameras = preset(assume.cameras, width)
        if len(cameras) != count:
            raise InputError(f"camera preset '{assume.cameras}' has {len(cameras)} views, the folder has {count}")
        if width != height:
            raise InputError(f"camera presets are for square pictures, these are {width}x{height}")
        log.info("%s: cameras of the preset '%s'", layout, assume.cameras)
        return cameras
    _check_numbers(default.model, assume)
    orbit = replace(default, **{name: getattr(assume, name) for name in given})
    if assume.azimuth_deg is not None:
        turn = assume.azimuth_deg - default.azimuths_deg[0]
        orbit = replace(orbit, azimuths_deg=[a + turn for a in default.azimuths_deg])
    lens = f"span {orbit.span:g}" if orbit.model == "orthographic" else f"field of view {orbit.fov_deg:g} degrees"
    log.info(
        "%s: the files name no cameras; %s, %d views, elevation %g degrees, radius %g, %s%s",
        layout,
        orbit.model,
        count,
        orbit.elevation_deg,
        orbit.radius,
        lens,
        f" ({', '.join(given)} as given)" if given else " (the layout's published values)",
    )
    return orbit.cameras(width, height)


def _check_numbers(model: CameraModel, assume: Assume) -> None:
    values = {name: getattr(assume, name) for name in ("elevation_deg", "azimuth_deg", "radius", "fov_deg", "span")}
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value}")
    for name in ("radius", "span"):
        if values[name] is not None and values[name] <= 0:
            raise InputError(f"{name} must be positive, not {values[name]:g}")
    if values["fov_deg"] is not None and not 0 < values["fov_deg"] < 180:
        raise InputError(f"fov_deg must be between 0 and 180, not {values['fov_deg']:g}")
    wrong = "fov_deg" if model == "orthographic" else "span"
    if values[wrong] is not None:
        raise InputError(f"these cameras are {model}: '{wrong}' means nothing to them")
