"""Layouts without a camera file, whose rig is known: that of a published method, or a camera preset by its name.

Each is a pair `is_<name>`, `read_<name>`; `nova3d.layouts.base.Layout` has their arguments and results. Facts are from
the repositories' own writers and readers, of which docs/reference/layout-sources.md names the files:
xxlong0/Wonder3D (MIT), liuyuan-pal/SyncDreamer (MIT), Stability-AI/generative-models (code MIT);
file names and numbers only: pengHTYX/Era3D (AGPL-3.0), PKU-YuanGroup/Envision3D and heheyas/V3D (no licence).
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.images import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from nova3d.layouts.base import (
    Assume,
    Orbit,
    frame_count,
    frames_in,
    has_alpha,
    numbered,
    orbit_views,
    pick_sample,
    require_files,
    split_tiles,
    squares_side_by_side,
)
from nova3d.layouts.placement import Placement
from nova3d.utils.files import files_in
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

# Azimuth by view name, in both systems' order. From the fixed world-to-camera poses: "right" is the camera on the
# front camera's +X side, so azimuth grows to the right as ours does.
AZIMUTHS = {
    "front": 0.0,
    "front_right": 45.0,
    "right": 90.0,
    "back_right": 135.0,
    "back": 180.0,
    "back_left": 225.0,
    "left": 270.0,
    "front_left": 315.0,
}
# By number of views, in the order in which Era3D's wide pictures have them.
RIGS: dict[int, tuple[str, ...]] = {
    4: ("front", "right", "back", "left"),
    6: ("front", "front_right", "right", "back", "left", "front_left"),
    8: tuple(AZIMUTHS),
}
WONDER3D_SPAN = 1.35  # export.ortho_scale of its reconstruction
ERA3D_SPAN = 1.0  # the same of Era3D, and cam.data.ortho_scale of its renders
_ENVISION3D_FOCAL = 1422.4 / 1024  # of the picture's width, as in its reconstruction's camera_params
_ENVISION3D_RADIUS = 1.5  # its camera_poses; with the images given, the radius only sets the world's unit
SYNCDREAMER_VIEWS = 16
SV3D_VIEWS = 21
V3D_VIEWS = (18, 24)  # the released V3D_512 config has 18, the training config svd_mv 24


def is_wonder3d(folder: Path) -> bool:
    """The colours or the normals of the front view are there."""
    return (folder / "rgb_000_front.png").is_file() or (folder / "normals_000_front.png").is_file()


def read_wonder3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """rgb_000_<view>.png, normals_000_<view>.png (RGBA) and masked_colors/rgb_000_<view>.png, 256x256, 6 or 4 views.

    The mask is the alpha of the normal map, as in Wonder3D's own reconstruction, else that of the masked colours.
    """
    names = _present(folder, "rgb_000_{}.png", "wonder3d")
    colour = [folder / f"rgb_000_{name}.png" for name in names]
    masked = [folder / f"masked_colors/rgb_000_{name}.png" for name in names]
    normal = [folder / f"normals_000_{name}.png" for name in names]
    has_normals = any(path.is_file() for path in normal)
    require_files(colour + (normal if has_normals else []), folder)
    normal_maps = images.read_images(normal, assume.max_megapixels) if has_normals else None
    pictures = images.read_images(colour, assume.max_megapixels)
    alphas = [path for path in masked if path.is_file()]
    matted = normal_maps if normal_maps and all(has_alpha(m) for m in normal_maps) else None
    if matted is None and len(alphas) == len(masked):
        matted = images.read_images(masked, assume.max_megapixels)
    pictures = _with_alpha_of(pictures, matted, colour) if matted else pictures
    orbit = Orbit([AZIMUTHS[name] for name in names], "orthographic", span=WONDER3D_SPAN)
    surface = [_decode(picture) for picture in normal_maps] if normal_maps else None
    return orbit_views("wonder3d", pictures, colour, orbit, size, assume, surface)


def is_era3d(folder: Path) -> bool:
    """The front view is there, or a picture of all views side by side."""
    return (folder / "color_front_masked.png").is_file() or bool(_era3d_sheets(folder))


def read_era3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """color_<view>_masked.png and normals_<view>_masked.png (RGBA, or RGB on white), 512x512, 6, 4 or 8 views.

    Or its "concat" mode: one wide picture with the input, then colour and normal of each view side by side.
    """
    if not (folder / "color_front_masked.png").is_file():
        return _read_era3d_sheet(folder, size, assume)
    names = _present(folder, "color_{}_masked.png", "era3d")
    colour = [folder / f"color_{name}_masked.png" for name in names]
    normal = [folder / f"normals_{name}_masked.png" for name in names]
    require_files(colour + normal, folder)
    normal_maps = images.read_images(normal, assume.max_megapixels)
    pictures = images.read_images(colour, assume.max_megapixels)
    if all(has_alpha(m) for m in normal_maps):
        pictures = _with_alpha_of(pictures, normal_maps, colour)
    orbit = Orbit([AZIMUTHS[name] for name in names], "orthographic", span=ERA3D_SPAN)
    return orbit_views("era3d", pictures, colour, orbit, size, assume, [_decode(m) for m in normal_maps])


def _read_era3d_sheet(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    sheets = _era3d_sheets(folder)
    if not sheets:
        raise InputError(
            f"'{folder}' has neither color_front_masked.png nor a picture of 9, 13 or 17 squares side by side"
        )
    path = pick_sample(sheets, assume.sample, "era3d")
    sheet = images.read_image(path, max_megapixels=assume.max_megapixels)[..., :3]
    parts = split_tiles(sheet, sheet.shape[1] // sheet.shape[0], str(path))[1:]  # the first is the input
    names = RIGS[len(parts) // 2]
    shown = [f"{path} ({name})" for name in names]
    orbit = Orbit([AZIMUTHS[name] for name in names], "orthographic", span=ERA3D_SPAN)
    return orbit_views("era3d", parts[0::2], shown, orbit, size, assume, [_decode(part) for part in parts[1::2]])


def _era3d_sheets(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if squares_side_by_side(path) in {1 + 2 * n for n in RIGS}]


def is_envision3d(folder: Path) -> bool:
    """The first two views of stage 1 are there."""
    return (folder / "rgb0.png").is_file() and (folder / "rgb4.png").is_file()


def read_envision3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """rgb0.png, rgb4.png ... rgb28.png of stage 1 with normal<k>.png (RGBA) and masked_rgb/, 256x256.

    The other 24 views of stage 2, which have no normals, come from the same folder or from the sibling
    s2_val_out/<scene>. Normals are stored with X to the front, Y to the right and Z up, in one frame for all views.
    """
    second = folder.parent.parent / "s2_val_out" / folder.name
    places = [folder, second] if folder.parent.name == "s1_val_out" and second.is_dir() else [folder]
    anchors = list(range(0, 32, 4))
    everything = [_first(places, f"rgb{k}.png") for k in range(32)]
    rest = [k for k in range(32) if k % 4]
    if any(everything[k].is_file() for k in rest):
        require_files([everything[k] for k in range(32)], folder if len(places) == 1 else folder.parent.parent)
        index = list(range(32))
    else:
        require_files([everything[k] for k in anchors], folder)
        log.info("envision3d: only the 8 views of the first stage are there")
        index = anchors
    pictures, normal_maps = [], []
    has_normals = (folder / "normal0.png").is_file()
    if has_normals:
        require_files([folder / f"normal{k}.png" for k in anchors], folder)
    most = assume.max_megapixels
    for k, picture in zip(index, images.read_images([everything[k] for k in index], most), strict=True):
        shaded = has_normals and k % 4 == 0
        normal = images.read_image(folder / f"normal{k}.png", max_megapixels=most) if shaded else None
        masked = [_first(places, f"{name}/rgb{k}.png") for name in ("masked_rgb", "s2_masked_rgb")]
        matte = normal if normal is not None and has_alpha(normal) else None
        if matte is None and (path := next((m for m in masked if m.is_file()), None)):
            matte = images.read_image(path, max_megapixels=most)
        pictures.append(_with_alpha_of([picture], [matte], [everything[k]])[0] if matte is not None else picture)
        normal_maps.append(torch.zeros_like(picture[..., :3]) if normal is None else _decode(normal)[..., [1, 2, 0]])
    orbit = Orbit([11.25 * k for k in index], "perspective", 0.0, _ENVISION3D_RADIUS, _fov_deg(_ENVISION3D_FOCAL))
    names = [everything[k] for k in index]
    return orbit_views("envision3d", pictures, names, orbit, size, assume, normal_maps if has_normals else None)


def _first(places: Sequence[Path], name: str) -> Path:
    return next((place / name for place in places if (place / name).is_file()), places[-1] / name)


def _fov_deg(focal: float) -> float:
    return float(torch.rad2deg(2 * torch.atan(torch.tensor(0.5 / focal, dtype=torch.float64))))


def _present(folder: Path, pattern: str, layout: str) -> tuple[str, ...]:
    """The names of the smallest rig that has every view the folder has."""
    there = {name for name in AZIMUTHS if (folder / pattern.format(name)).is_file()}
    for names in (RIGS[4], RIGS[6], RIGS[8]):
        if there <= set(names):
            require_files([folder / pattern.format(name) for name in names], folder)
            return names
    raise InputError(f"'{folder}': views {', '.join(sorted(there))} are not a {layout} set")


def _with_alpha_of(pictures: Sequence[Tensor], matted: Sequence[Tensor], names: Sequence[Path]) -> list[Tensor]:
    """The pictures cut out by the alphas of `matted`; those without an alpha of their own are on white."""
    for picture, matte, name in zip(pictures, matted, names, strict=True):
        if matte.shape[-1] != 4:
            raise InputError(f"the mask picture of '{name}' has no transparency")
        if matte.shape[:2] != picture.shape[:2]:
            raise InputError(f"'{name}' and its normal map or mask differ in size")
    return [
        images.uncomposite(p, c[..., 3:]) if p.shape[-1] == 3 else torch.cat([p[..., :3], c[..., 3:]], dim=-1)
        for p, c in zip(pictures, matted, strict=True)
    ]


def _decode(picture: Tensor) -> Tensor:
    """The unit normals [h,w,3] of a map coloured (n + 1) / 2, zero where it is (half) transparent or grey."""
    unit, _ = normals.decode(picture[..., :3])
    return unit * (picture[..., 3:] > 0.5) if picture.shape[-1] == 4 else unit


def is_syncdreamer(folder: Path) -> bool:
    """There is a picture of 16 squares side by side."""
    return bool(_strips(folder))


def read_syncdreamer(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.png, one per sample: 16 views of 256x256 side by side, on white; elevation 30, focal 280 px, radius 1.5."""
    strips = _strips(folder)
    if not strips:
        raise InputError(f"'{folder}' has no picture of {SYNCDREAMER_VIEWS} squares side by side")
    path = pick_sample(strips, assume.sample, "syncdreamer")
    sheet = images.read_image(path, max_megapixels=assume.max_megapixels)
    pictures = split_tiles(sheet, SYNCDREAMER_VIEWS, str(path))
    fov = math.degrees(2 * math.atan(128 / 280))
    azimuths = [360 / SYNCDREAMER_VIEWS * k for k in range(SYNCDREAMER_VIEWS)]
    orbit = Orbit(azimuths, "perspective", 30.0, 1.5, fov)
    names = [f"{path} (view {k})" for k in range(SYNCDREAMER_VIEWS)]
    return orbit_views("syncdreamer", pictures, names, orbit, size, assume)


def _strips(folder: Path) -> list[Path]:
    return numbered([path for path in files_in(folder) if squares_side_by_side(path) == SYNCDREAMER_VIEWS])


def is_sv3d(folder: Path) -> bool:
    """A video with the input picture beside it under the same name, or 21 frames."""
    videos = files_in(folder, ANIMATION_SUFFIXES + VIDEO_SUFFIXES)
    return any(video.with_suffix(".jpg").is_file() for video in videos) or frame_count(folder) == SV3D_VIEWS


def read_sv3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.mp4 (and <n>.jpg, the input) or 21 frames, 576x576 on white; frame k is at azimuth 360 (k + 1) / 21.

    The last frame is the input view; it becomes view 0. Field of view 33.8 degrees, radius 2. The elevation is that
    of the input (SV3D_u) or was chosen (SV3D_p, by default 10). No file holds it: 0 unless `elevation_deg` is given.
    """
    pictures, names = frames_in(folder, "sv3d", assume)
    if len(pictures) != SV3D_VIEWS:
        raise InputError(f"'{names[0]}': SV3D makes {SV3D_VIEWS} frames, there are {len(pictures)}")
    pictures, names = [pictures[-1], *pictures[:-1]], [names[-1], *names[:-1]]
    log.info("sv3d: the last frame is the input view and becomes view 0")
    azimuths = [360 / SV3D_VIEWS * k for k in range(SV3D_VIEWS)]
    return orbit_views("sv3d", pictures, names, Orbit(azimuths, "perspective", 0.0, 2.0, 33.8), size, assume)


def is_v3d(folder: Path) -> bool:
    """A video, or pictures, of 18 or 24 frames."""
    return frame_count(folder) in V3D_VIEWS


def read_v3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<n>.mp4 or its frames, 18 or 24 of 512x512 on white, the input view first.

    Field of view 60 degrees, radius 2, elevation 0.
    """
    pictures, names = frames_in(folder, "v3d", assume)
    azimuths = [360 / len(pictures) * k for k in range(len(pictures))]
    return orbit_views("v3d", pictures, names, Orbit(azimuths, "perspective", 0.0, 2.0, 60.0), size, assume)


def read_frames(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """Numbered pictures, or one video, of any number of views in the order of the camera preset that `assume` names."""
    if assume.cameras is None:
        raise InputError(
            f"'{folder}' does not give its cameras: name a preset as `cameras`, for example ortho16, persp21 or "
            "syncdreamer16, with one view per picture in the same order"
        )
    pictures, names = frames_in(folder, "frames", assume)
    if len(pictures) != len(preset(assume.cameras)):
        raise InputError(
            f"camera preset '{assume.cameras}' has {len(preset(assume.cameras))} views, '{folder}' has {len(pictures)}"
        )
    azimuths = [360 / len(pictures) * k for k in range(len(pictures))]
    return orbit_views("frames", pictures, names, Orbit(azimuths, preset(assume.cameras).model), size, assume)
