"""Layouts with one file per view and normals: Wonder3D, Era3D, Envision3D.

Facts from the repositories' own writers and readers: xxlong0/Wonder3D (MIT), pengHTYX/Era3D (AGPL-3.0: file names and
numbers only), PKU-YuanGroup/Envision3D (no licence: file names and numbers only). docs/layouts.md says where.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.layouts import pictures
from nova3d.layouts.base import Assume, Orbit, rig
from nova3d.layouts.placement import Placement
from nova3d.views import ViewSet, read_picture

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


def is_wonder3d(folder: Path) -> bool:
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
    pictures.require(colour + (normal if has_normals else []), folder)
    maps = [read_picture(path) for path in normal] if has_normals else None
    found = [read_picture(path) for path in colour]
    alphas = [path for path in masked if path.is_file()]
    cutters = maps if maps and all(pictures.has_alpha(m) for m in maps) else None
    if cutters is None and len(alphas) == len(masked):
        cutters = [read_picture(path) for path in masked]
    found = _with_alpha_of(found, cutters, colour) if cutters else found
    return _front_views("wonder3d", names, found, maps, WONDER3D_SPAN, colour, size, assume)


def is_era3d(folder: Path) -> bool:
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
    pictures.require(colour + normal, folder)
    maps = [read_picture(path) for path in normal]
    found = [read_picture(path) for path in colour]
    if all(pictures.has_alpha(m) for m in maps):
        found = _with_alpha_of(found, maps, colour)
    return _front_views("era3d", names, found, maps, ERA3D_SPAN, colour, size, assume)


def _read_era3d_sheet(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    sheets = _era3d_sheets(folder)
    if not sheets:
        raise InputError(
            f"'{folder}' has neither color_front_masked.png nor a picture of 9, 13 or 17 squares side by side"
        )
    path = pick(sheets, assume.sample, "era3d")
    sheet = read_picture(path)[..., :3]
    parts = pictures.tiles(sheet, sheet.shape[1] // sheet.shape[0], str(path))[1:]  # the first is the input
    names = RIGS[len(parts) // 2]
    shown = [path.with_name(f"{path.name} ({name})") for name in names]
    return _front_views("era3d", names, parts[0::2], parts[1::2], ERA3D_SPAN, shown, size, assume)


def _era3d_sheets(folder: Path) -> list[Path]:
    return [path for path in pictures.pictures_in(folder) if picture_ratio(path) in {1 + 2 * n for n in RIGS}]


def picture_ratio(path: Path) -> int | None:
    """How many squares side by side a picture file holds; None where that is no whole number or it is no picture."""
    w, h = pictures.picture_size(path)
    return w // h if h and w % h == 0 else None


def pick(paths: Sequence[Path], sample: int, layout: str) -> Path:
    """The `sample`-th of several samples, logged; raises InputError where there are fewer."""
    if not 0 <= sample < len(paths):
        raise InputError(f"sample {sample} does not exist: '{paths[0].parent}' holds {len(paths)} (from 0)")
    if len(paths) > 1:
        log.info("%s: %d samples, number %d is read: %s", layout, len(paths), sample, paths[sample].name)
    return paths[sample]


def is_envision3d(folder: Path) -> bool:
    return (folder / "rgb0.png").is_file() and (folder / "rgb4.png").is_file()


def read_envision3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """Stage 1's rgb0.png, rgb4.png ... rgb28.png with normal<k>.png (RGBA) and masked_rgb/, 256x256; stage 2's other
    24 views, which have no normals, from the same folder or from the sibling s2_val_out/<scene>.

    Normals are stored with X to the front, Y to the right and Z up, in one frame for all views.
    """
    second = folder.parent.parent / "s2_val_out" / folder.name
    places = [folder, second] if folder.parent.name == "s1_val_out" and second.is_dir() else [folder]
    anchors = list(range(0, 32, 4))
    everything = [_first(places, f"rgb{k}.png") for k in range(32)]
    rest = [k for k in range(32) if k % 4]
    if any(everything[k].is_file() for k in rest):
        pictures.require([everything[k] for k in range(32)], folder if len(places) == 1 else folder.parent.parent)
        index = list(range(32))
    else:
        pictures.require([everything[k] for k in anchors], folder)
        log.info("envision3d: only the 8 views of the first stage are there")
        index = anchors
    found, maps = [], []
    has_normals = (folder / "normal0.png").is_file()
    if has_normals:
        pictures.require([folder / f"normal{k}.png" for k in anchors], folder)
    for k in index:
        picture = read_picture(everything[k])
        normal = read_picture(folder / f"normal{k}.png") if has_normals and k % 4 == 0 else None
        masked = [_first(places, f"{name}/rgb{k}.png") for name in ("masked_rgb", "s2_masked_rgb")]
        cutter = normal if normal is not None and pictures.has_alpha(normal) else None
        if cutter is None and (path := next((m for m in masked if m.is_file()), None)):
            cutter = read_picture(path)
        found.append(_with_alpha_of([picture], [cutter], [everything[k]])[0] if cutter is not None else picture)
        maps.append(torch.zeros_like(picture[..., :3]) if normal is None else _decode(normal)[..., [1, 2, 0]])
    h, w = found[0].shape[:2]
    default = Orbit([11.25 * k for k in index], "perspective", 0.0, _ENVISION3D_RADIUS, _fov_deg(_ENVISION3D_FOCAL))
    cameras = rig("envision3d", default, w, h, assume)
    names = [str(everything[k]) for k in index]
    rgba = pictures.cut_out(found, names, "envision3d")
    return _finish(rgba, maps if has_normals else None, cameras, size, names)


def _first(places: Sequence[Path], name: str) -> Path:
    return next((place / name for place in places if (place / name).is_file()), places[-1] / name)


def _fov_deg(focal: float) -> float:
    return float(torch.rad2deg(2 * torch.atan(torch.tensor(0.5 / focal, dtype=torch.float64))))


def _present(folder: Path, pattern: str, layout: str) -> tuple[str, ...]:
    """The names of the smallest rig that has every view the folder has."""
    there = {name for name in AZIMUTHS if (folder / pattern.format(name)).is_file()}
    for names in (RIGS[4], RIGS[6], RIGS[8]):
        if there <= set(names):
            pictures.require([folder / pattern.format(name) for name in names], folder)
            return names
    raise InputError(f"'{folder}': views {', '.join(sorted(there))} are no {layout} set")


def _with_alpha_of(found: Sequence[Tensor], cutters: Sequence[Tensor], names: Sequence[Path]) -> list[Tensor]:
    """The pictures cut out by the alphas of `cutters`; those without an alpha of their own are on white."""
    for picture, cutter, name in zip(found, cutters, names, strict=True):
        if cutter.shape[-1] != 4:
            raise InputError(f"the mask picture of '{name}' has no transparency")
        if cutter.shape[:2] != picture.shape[:2]:
            raise InputError(f"'{name}' and its normal map or mask differ in size")
    return [
        images.off_white(p, c[..., 3:]) if p.shape[-1] == 3 else torch.cat([p[..., :3], c[..., 3:]], dim=-1)
        for p, c in zip(found, cutters, strict=True)
    ]


def _decode(picture: Tensor) -> Tensor:
    """The unit normals [h,w,3] of a map coloured (n + 1) / 2, zero where it is (half) transparent or grey."""
    unit, _ = normals.decode(picture[..., :3])
    return unit * (picture[..., 3:] > 0.5) if picture.shape[-1] == 4 else unit


def _front_views(
    layout: str,
    names: Sequence[str],
    found: Sequence[Tensor],
    maps: Sequence[Tensor] | None,
    span: float,
    paths: Sequence[Path],
    size: int | None,
    assume: Assume,
) -> tuple[ViewSet, Placement]:
    """Orthographic views by name, their normals in the front camera's frame."""
    h, w = found[0].shape[:2]
    cameras = rig(layout, Orbit([AZIMUTHS[n] for n in names], "orthographic", span=span), w, h, assume)
    shown = [str(path) for path in paths]
    rgba = pictures.cut_out(found, shown, layout)
    return _finish(rgba, [_decode(m) for m in maps] if maps is not None else None, cameras, size, shown)


def _finish(
    rgba: list[Tensor], maps: list[Tensor] | None, cameras: Cameras, size: int | None, names: list[str]
) -> tuple[ViewSet, Placement]:
    if maps is not None:
        for normal, picture, name in zip(maps, rgba, names, strict=True):
            if normal.shape[:2] != picture.shape[:2]:
                raise InputError(f"'{name}' and its normal map differ in size")
        # The front camera's frame is the world's unless it was told to stand elsewhere.
        front = cameras.c2w[0, :3, :3]
        maps = [normals.rotate(m, front) for m in maps]
    return pictures.assemble(rgba, maps, cameras, size, names), Placement.identity()
