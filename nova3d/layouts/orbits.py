"""Layouts that are one orbit of pictures and nothing else: SyncDreamer, SV3D, V3D, and numbered frames of anyone.

Facts from liuyuan-pal/SyncDreamer (MIT), Stability-AI/generative-models (code MIT) and heheyas/V3D (no licence: names
and numbers only); docs/layouts.md says where. None of them writes masks, normals or cameras.
"""

import logging
import math
from pathlib import Path

from torch import Tensor

from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.layouts import pictures
from nova3d.layouts.base import Assume, Orbit, rig
from nova3d.layouts.named import pick, picture_ratio
from nova3d.layouts.placement import Placement
from nova3d.views import ViewSet, read_picture

log = logging.getLogger(__name__)

SYNCDREAMER_VIEWS = 16
SV3D_VIEWS = 21
V3D_VIEWS = (18, 24)  # the released V3D_512 config has 18, the training config svd_mv 24
_MOVING = pictures.ANIMATIONS + pictures.VIDEOS


def is_syncdreamer(folder: Path) -> bool:
    return bool(_strips(folder))


def read_syncdreamer(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.png, one per sample: 16 views of 256x256 side by side, on white; elevation 30, focal 280 px, radius 1.5."""
    strips = _strips(folder)
    if not strips:
        raise InputError(f"'{folder}' has no picture of {SYNCDREAMER_VIEWS} squares side by side")
    path = pick(strips, assume.sample, "syncdreamer")
    found = pictures.tiles(read_picture(path), SYNCDREAMER_VIEWS, str(path))
    fov = math.degrees(2 * math.atan(128 / 280))
    azimuths = [360 / SYNCDREAMER_VIEWS * k for k in range(SYNCDREAMER_VIEWS)]
    default = Orbit(azimuths, "perspective", 30.0, 1.5, fov)
    names = [f"{path} (view {k})" for k in range(SYNCDREAMER_VIEWS)]
    return _views("syncdreamer", found, names, default, size, assume)


def _strips(folder: Path) -> list[Path]:
    return [path for path in pictures.pictures_in(folder) if picture_ratio(path) == SYNCDREAMER_VIEWS]


def is_sv3d(folder: Path) -> bool:
    """A video with the input picture beside it under the same name, or 21 frames."""
    videos = pictures.pictures_in(folder, _MOVING)
    return any(video.with_suffix(".jpg").is_file() for video in videos) or _frame_count(folder) == SV3D_VIEWS


def read_sv3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.mp4 (and <n>.jpg, the input) or 21 frames, 576x576 on white; frame k is at azimuth 360 (k + 1) / 21.

    The last frame is the input view; it becomes view 0. Field of view 33.8 degrees, radius 2. The elevation is that
    of the input (SV3D_u) or was chosen (SV3D_p, by default 10), which no file says: 0 unless `elevation_deg`.
    """
    found, names = _frames(folder, assume, "sv3d")
    if len(found) != SV3D_VIEWS:
        raise InputError(f"'{names[0]}': SV3D makes {SV3D_VIEWS} frames, there are {len(found)}")
    found, names = [found[-1], *found[:-1]], [names[-1], *names[:-1]]
    log.info("sv3d: the last frame is the input view and becomes view 0")
    azimuths = [360 / SV3D_VIEWS * k for k in range(SV3D_VIEWS)]
    return _views("sv3d", found, names, Orbit(azimuths, "perspective", 0.0, 2.0, 33.8), size, assume)


def is_v3d(folder: Path) -> bool:
    return _frame_count(folder) in V3D_VIEWS


def read_v3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.mp4 or its frames, 18 or 24 of 512x512 on white, the input view first; field of view 60 degrees, radius 2,
    elevation 0."""
    found, names = _frames(folder, assume, "v3d")
    azimuths = [360 / len(found) * k for k in range(len(found))]
    return _views("v3d", found, names, Orbit(azimuths, "perspective", 0.0, 2.0, 60.0), size, assume)


def read_frames(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """Numbered pictures, or one video, of any number of views in the order of the camera preset that `assume` names."""
    if assume.cameras is None:
        raise InputError(
            f"'{folder}' says nothing of cameras: name a preset as `cameras`, for example ortho16, persp21 or "
            "syncdreamer16, with one view per picture in the same order"
        )
    found, names = _frames(folder, assume, "frames")
    if len(found) != len(preset(assume.cameras)):
        raise InputError(
            f"camera preset '{assume.cameras}' has {len(preset(assume.cameras))} views, '{folder}' has {len(found)}"
        )
    azimuths = [360 / len(found) * k for k in range(len(found))]
    return _views("frames", found, names, Orbit(azimuths, preset(assume.cameras).model), size, assume)


def _frame_count(folder: Path) -> int:
    """Frames of the folder's only animation or, without one, its pictures; 0 for a video that cannot be opened."""
    moving = pictures.pictures_in(folder, _MOVING)
    if not moving:
        return len(pictures.pictures_in(folder))
    return len(pictures.frames(moving[0]))


def _frames(folder: Path, assume: Assume, layout: str) -> tuple[list[Tensor], list[str]]:
    moving = pictures.pictures_in(folder, _MOVING)
    if moving:
        path = pick(moving, assume.sample, layout)
        found = pictures.frames(path)
        return found, [f"{path} (frame {k})" for k in range(len(found))]
    paths = pictures.pictures_in(folder)
    if not paths:
        raise InputError(f"'{folder}' holds no pictures and no video")
    return [read_picture(path) for path in paths], [str(path) for path in paths]


def _views(
    layout: str, found: list[Tensor], names: list[str], default: Orbit, size: int | None, assume: Assume
) -> tuple[ViewSet, Placement]:
    h, w = found[0].shape[:2]
    cameras = rig(layout, default, w, h, assume)
    return pictures.assemble(pictures.cut_out(found, names, layout), None, cameras, size, names), Placement.identity()
