"""Layouts with a camera file: our own view folder, and the transforms.json of any tool.

The format is in `nova3d.transforms`. Facts on other tools' files are from docs.nerf.studio/quickstart/data_conventions
(Apache-2.0) and instant-ngp's documentation. Their world's up is +Z. `applied_transform` and `applied_scale` are in
the poses already and are left alone: the source's frame is the frame of the file's poses.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.layouts.base import Assume, log_keyed, require_files, unkeyed, with_alpha
from nova3d.layouts.placement import Placement
from nova3d.transforms import camera_model, frames_of, intrinsics, poses, read_transforms, up_axis
from nova3d.utils.files import is_file
from nova3d.utils.text import shorten
from nova3d.views import ViewSet, scaled_size, yaw_rotation

log = logging.getLogger(__name__)

FILES = ("transforms.json", "transforms_train.json")  # the second is the synthetic NeRF set's training split
_AXES = {"z": (0.0, 0.0, 1.0), "y": (0.0, 1.0, 0.0)}
_LEAN_DEG = 15.0  # of horizontal camera axes out of the horizontal plane: more is another up axis, or cameras on edge


def is_nova3d(folder: Path) -> bool:
    """A transforms.json with `normal_path` in its first frame, or a `normal/` folder beside it."""
    path = folder / FILES[0]
    if not path.is_file():
        return False
    frames = read_transforms(path).get("frames")
    first = frames[0] if isinstance(frames, list) and frames and isinstance(frames[0], dict) else {}
    return "normal_path" in first or (folder / "normal").is_dir()


def read_nova3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """A view folder of our own, unchanged but for its size; nothing may be assumed."""
    if replace(assume, as_they_are=False, max_megapixels=Assume.max_megapixels) != Assume():
        raise InputError(f"'{folder}' is a nova3d view folder, which has all that is needed: nothing may be assumed")
    return ViewSet.load(folder, assume.as_they_are, assume.max_megapixels).resized(size), Placement.identity()


def is_transforms(folder: Path) -> bool:
    """A folder with one of FILES, or a JSON file itself."""
    return _find(folder) is not None


def _find(folder: Path) -> Path | None:
    """The transforms file of a folder, or the file itself; None where there is none."""
    if folder.is_file():
        return folder if folder.suffix.lower() == ".json" else None
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_transforms_views(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """The views of any tool's transforms.json.

    Args:
        folder: the folder, or the file itself.
        size: pixels of the pictures' longer side in the result; None keeps the files' own.
        assume: `up`, `front`, `as_they_are` and `max_megapixels` are used.

    Returns:
        The views in our frame, without normals, and the placement from the file's frame.

    Raises:
        InputError: naming the file and frame, for everything that cannot be read faithfully: distortion, fisheye,
            poses that are not rigid, missing intrinsics or pictures, pictures without any way to tell the object.
    """
    path = _find(folder)
    if path is None:
        raise InputError(f"'{folder}' has no {FILES[0]}")
    source = str(path)
    transforms = read_transforms(path)
    model = camera_model(transforms, source)
    frames = frames_of(transforms, source)
    c2w = poses(frames, source)
    files = [_picture_path(path.parent, frame, i, source) for i, frame in enumerate(frames)]
    require_files(files, path.parent)
    masks = _mask_paths(path.parent, frames)
    sizes = [images.image_size(file) for file in files]
    if size is not None:
        sizes = [scaled_size(*each, size) for each in sizes if all(each)]
    images.check_together(sizes, source, assume.max_megapixels)
    rgba, lenses, keyed = [], [], []
    for i, (frame, file) in enumerate(zip(frames, files, strict=True)):
        picture = _read_frame(file, {**transforms, **frame}, assume.max_megapixels)
        h, w = picture.shape[:2]
        lens = intrinsics(transforms, frame, w, h, model, f"{source}: frame {i}")
        if masks:
            cut, was_keyed = _with_mask(picture, file, masks[i], assume.max_megapixels), False
        else:
            cut, was_keyed = with_alpha(picture, str(file), assume.as_they_are)
        keyed.append(was_keyed)
        if size is not None:
            # At once: a capture of photographs does not fit in memory.
            cut = images.resize(cut, *scaled_size(w, h, size))
        lenses.append(lens * torch.tensor([cut.shape[1] / w, cut.shape[0] / h] * 2))
        rgba.append(cut)
    log_keyed(sum(keyed), len(rgba), "transforms")
    _log_assumed_lens(transforms, frames, source)
    rgba, lens_rows = _one_size(rgba, torch.stack(lenses), files)
    cameras = Cameras(c2w, lens_rows, rgba[0].shape[1], rgba[0].shape[0], model)
    views = ViewSet.from_rgba(torch.stack(rgba), None, cameras)
    if assume.as_they_are:
        views = replace(views, rgb=unkeyed(views.rgb, torch.stack(rgba), keyed))
    return _to_our_frame(views, _up(transforms, cameras, assume, source), assume)


def _read_frame(file: Path, said: dict[str, Any], most: float) -> Tensor:
    """The picture of a frame, upright by its EXIF orientation unless `w` and `h` are those of its stored pixels."""
    picture = images.read_image(file, max_megapixels=most)
    h, w = picture.shape[:2]
    if h != w and (said.get("w"), said.get("h")) == (h, w):
        stored = images.read_image(file, upright=False, max_megapixels=most)
        if stored.shape[:2] == (w, h):
            log.info("transforms: '%s' is not turned by its EXIF orientation: w and h are of its stored pixels", file)
            return stored
    return picture


def _picture_path(folder: Path, frame: dict[str, Any], index: int, source: str) -> Path:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: frame {index}: key 'file_path' is missing")
    if "\0" in name:
        raise InputError(f"{source}: frame {index}: file_path holds a NUL")
    if "\\" in name and not is_file(folder / name):
        name = name.replace("\\", "/")  # a path of Windows
    path = folder / name
    if path.suffix.lower() in images.IMAGE_SUFFIXES or is_file(path):
        return path
    if path.suffix.lower() in images.PICTURE_SUFFIXES:
        raise InputError(f"{source}: frame {index}: '{shorten(name)}' does not exist")
    candidates = [path.with_name(path.name + suffix) for suffix in images.IMAGE_SUFFIXES]
    return next((candidate for candidate in candidates if is_file(candidate)), candidates[0])


def _mask_paths(folder: Path, frames: list[dict[str, Any]]) -> list[Path]:
    """The masks of `mask_path`, one per frame; empty where no frame names one."""
    named = [frame.get("mask_path") for frame in frames]
    if not any(named):
        return []
    if not all(isinstance(name, str) and name for name in named):
        without = [i for i, name in enumerate(named) if not name]
        raise InputError(f"'{folder}': frames {without[:6]} have no mask_path and others have: give all or none")
    log.info("transforms: masks of mask_path, white is object")
    paths = [folder / str(name) for name in named]
    require_files(paths, folder)
    return paths


def _with_mask(picture: Tensor, file: Path, mask_path: Path, most: float) -> Tensor:
    mask = images.read_image(mask_path, max_megapixels=most)
    if mask.shape[:2] != picture.shape[:2]:
        raise InputError(
            f"mask '{mask_path}' is {mask.shape[1]}x{mask.shape[0]}, its picture '{file.name}' is "
            f"{picture.shape[1]}x{picture.shape[0]}"
        )
    level = mask[..., :1]
    if 0 < float(level.max()) < 1.5 / 255:  # 0 and 1 in 8 bits, as label tools write them
        level = (level > 0).to(level)
    return torch.cat([picture[..., :3], level], dim=-1)


def _log_assumed_lens(transforms: dict[str, Any], frames: list[dict[str, Any]], source: str) -> None:
    given = {**transforms, **frames[0]}
    if given.get("cx") is None or given.get("cy") is None:
        log.info("transforms: %s names no principal point: the middle of the picture is taken", source)


def _one_size(rgba: list[Tensor], lens_rows: Tensor, files: list[Path]) -> tuple[list[Tensor], Tensor]:
    """All pictures, and their intrinsics [v,4], at the size of the smallest picture.

    Raises InputError where the pictures differ in shape and not only in size.
    """
    heights, widths = [p.shape[0] for p in rgba], [p.shape[1] for p in rgba]
    smallest = min(range(len(rgba)), key=widths.__getitem__)
    w, h = widths[smallest], heights[smallest]
    if len(set(zip(widths, heights, strict=True))) == 1:
        return rgba, lens_rows
    for file, width, height in zip(files, widths, heights, strict=True):
        if abs(height * w / width - h) > 1:
            raise InputError(
                f"'{file}' is {width}x{height} and '{files[smallest]}' is {w}x{h}: pictures of different shapes are "
                "not read; pad or crop them to one shape (and move cx, cy along)"
            )
    log.info("transforms: pictures of several sizes, all resized to the smallest, %dx%d", w, h)
    share = torch.tensor([[w / width, h / height] * 2 for width, height in zip(widths, heights, strict=True)])
    return [images.resize(p, w, h) for p in rgba], lens_rows * share


def _up(transforms: dict[str, Any], cameras: Cameras, assume: Assume, source: str) -> Tensor:
    """[3] float64, the world's up axis: as assumed, as the file gives it, or +Z, which a leaning world overrules."""
    axes = {name: torch.tensor(axis, dtype=torch.float64) for name, axis in _AXES.items()}
    if assume.up not in ("auto", "cameras", *axes):
        raise InputError(f"up '{assume.up}' is not one of auto, {', '.join(axes)}, cameras")
    named = up_axis(transforms, source)
    if assume.up in axes:
        up, why = axes[assume.up], "as given"
    elif assume.up == "cameras":
        up, why = _mean_up(cameras), "the mean of the cameras' up axes, as given"
    elif named is not None:
        up, why = named, "the file's key 'up'"
    elif str(transforms.get("camera_model", "")).upper() == "ORTHOGRAPHIC":
        up, why = axes["y"], "an earlier version of this project wrote that camera_model"
    elif (lean := _lean(cameras, axes["z"])) < _LEAN_DEG:
        up, why = axes["z"], "as other tools have it"
    else:
        up, why = _upright(cameras, lean, source), f"the cameras lean by {lean:.0f} degrees from +Z"
    shown = {(0.0, 0.0, 1.0): "+Z", (0.0, 1.0, 0.0): "+Y"}.get(tuple(up.tolist()))
    shown = shown or f"({', '.join(f'{value:.3g}' for value in up.tolist())})"
    log.info("transforms: the world's up axis is taken to be %s (%s)", shown, why)
    return up


def _lean(cameras: Cameras, up: Tensor) -> float:
    """How far the cameras' horizontal axes are from being horizontal, in degrees, as a median over the views."""
    rise = (cameras.c2w[:, :3, 0].double() @ up).abs().clamp(max=1)
    return math.degrees(math.asin(float(rise.median())))


def _upright(cameras: Cameras, lean: float, source: str) -> Tensor:
    """The axis to which the cameras' horizontal axes are perpendicular. Raises InputError where there is none."""
    right = cameras.c2w[:, :3, 0].double()
    _, spread, axes = torch.linalg.svd(right, full_matrices=len(right) < 3)
    up, toward = axes[-1], cameras.c2w[:, :3, 1].double().mean(dim=0)
    if len(right) < 3 or spread[2] > 0.2 * spread[1] or _lean(cameras, up) > _LEAN_DEG or abs(float(up @ toward)) < 0.1:
        raise InputError(
            f"{source}: the cameras lean by {lean:.0f} degrees from the world's +Z and have no up axis in common: give "
            "it as the key 'up' of the file, or assume up=z, y or cameras"
        )
    return up * torch.sign(up @ toward)


def _mean_up(cameras: Cameras) -> Tensor:
    mean = cameras.c2w[:, :3, 1].double().mean(dim=0)
    if float(mean.norm()) < 0.1:
        raise InputError("the cameras' up axes cancel out: give the world's up axis, z or y")
    return mean / mean.norm()


def _to_our_frame(views: ViewSet, up: Tensor, assume: Assume) -> tuple[ViewSet, Placement]:
    """Turn the world so that `up` is +Y, and the view `front` to azimuth 0."""
    turn = _to_up(up)
    views = views.rotated(turn.float())
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = turn
    if assume.front is not None:
        if not 0 <= assume.front < len(views):
            raise InputError(f"front view {assume.front} is not one of the {len(views)} views (0 to {len(views) - 1})")
        yaw = yaw_rotation(-views.cameras.azimuth_elevation()[assume.front, 0]).double()
        views = views.rotated_to(assume.front)
        matrix[:3, :3] = yaw @ matrix[:3, :3]
    return views, Placement(matrix)


def _to_up(axis: Tensor) -> Tensor:
    """[3,3] float64 rotation that brings the source's up axis, a unit vector, to +Y."""
    if axis.tolist() == [0.0, 1.0, 0.0]:
        return torch.eye(3, dtype=torch.float64)
    if axis.tolist() == [0.0, 0.0, 1.0]:  # Blender to glTF: x, y, z -> x, z, -y; what faced -Y faces +Z
        return torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    # Gram-Schmidt with the axis that is farthest from up; the yaw is arbitrary.
    helper = torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())]
    right = torch.linalg.cross(axis, helper)
    right = right / right.norm()
    return torch.stack([right, axis, torch.linalg.cross(right, axis)])
