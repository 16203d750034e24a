"""Layouts with a camera file: our own view folder, and the transforms.json of any tool.

The format is in `nova3d.transforms`. Facts on other tools' files are from docs.nerf.studio/quickstart/data_conventions
(Apache-2.0) and instant-ngp's documentation. Their world's up is +Z. `applied_transform` and `applied_scale` are in
the poses already and are left alone: the source's frame is the frame of the file's poses.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nova3d import images
from nova3d.cameras import CameraModel, Cameras
from nova3d.errors import InputError
from nova3d.layouts.base import Assume, log_keyed, require_files, with_alpha
from nova3d.layouts.placement import Placement
from nova3d.transforms import camera_model, frames_of, intrinsics, poses, read_transforms
from nova3d.views import ViewSet, scaled_size, yaw_rotation

log = logging.getLogger(__name__)

FILES = ("transforms.json", "transforms_train.json")  # the second is the synthetic NeRF set's training split
_UPS = ("auto", "z", "y", "cameras")


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
    if assume != Assume():
        raise InputError(f"'{folder}' is a nova3d view folder, which says everything itself: nothing may be assumed")
    return ViewSet.load(folder).resized(size), Placement.identity()


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
        assume: `up` and `front` are used.

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
    rgba, lenses, keyed = [], [], 0
    for i, (frame, file) in enumerate(zip(frames, files, strict=True)):
        picture = images.read_image(file)
        h, w = picture.shape[:2]
        lens = intrinsics(transforms, frame, w, h, model, f"{source}: frame {i}")
        if masks:
            cut = _with_mask(picture, file, masks[i])
        else:
            cut, was_keyed = with_alpha(picture, str(file))
            keyed += was_keyed
        if size is not None:
            # At once: a capture of photographs does not fit in memory.
            cut = images.resize(cut, *scaled_size(w, h, size))
        lenses.append(lens * torch.tensor([cut.shape[1] / w, cut.shape[0] / h] * 2))
        rgba.append(cut)
    log_keyed(keyed, len(rgba), "transforms")
    _log_assumed_lens(transforms, frames, source)
    rgba, lens_rows = _one_size(rgba, torch.stack(lenses), files)
    cameras = Cameras(c2w, lens_rows, rgba[0].shape[1], rgba[0].shape[0], model)
    return _to_our_frame(ViewSet.from_rgba(torch.stack(rgba), None, cameras), model, assume)


def _picture_path(folder: Path, frame: dict[str, Any], index: int, source: str) -> Path:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: frame {index}: key 'file_path' is missing")
    path = folder / name
    if path.suffix.lower() in images.IMAGE_SUFFIXES:
        return path
    candidates = [path.with_name(path.name + suffix) for suffix in images.IMAGE_SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


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


def _with_mask(picture: Tensor, file: Path, mask_path: Path) -> Tensor:
    mask = images.read_image(mask_path)
    if mask.shape[:2] != picture.shape[:2]:
        raise InputError(
            f"mask '{mask_path}' is {mask.shape[1]}x{mask.shape[0]}, its picture '{file.name}' is "
            f"{picture.shape[1]}x{picture.shape[0]}"
        )
    return torch.cat([picture[..., :3], mask[..., :1]], dim=-1)


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


def _to_our_frame(views: ViewSet, model: CameraModel, assume: Assume) -> tuple[ViewSet, Placement]:
    """Turn the world so that its up is +Y, and the view `front` to azimuth 0."""
    if assume.up not in _UPS:
        raise InputError(f"up '{assume.up}' is not one of {', '.join(_UPS)}")
    # No other tool writes orthographic cameras into this file: it is ours, without normals.
    up = assume.up if assume.up != "auto" else ("y" if model == "orthographic" else "z")
    turn = _to_up(views.cameras, up)
    log.info(
        "transforms: the world's up axis is taken to be %s%s",
        {"z": "+Z", "y": "+Y", "cameras": "the mean of the cameras' up axes"}[up],
        " (as given)" if assume.up != "auto" else "",
    )
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


def _to_up(cameras: Cameras, up: str) -> Tensor:
    """[3,3] float64 rotation that brings the source's up axis to +Y."""
    if up == "y":
        return torch.eye(3, dtype=torch.float64)
    if up == "z":  # Blender to glTF: x, y, z -> x, z, -y; what faced -Y faces +Z
        return torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    mean = cameras.c2w[:, :3, 1].double().mean(dim=0)
    if float(mean.norm()) < 0.1:
        raise InputError("the cameras' up axes cancel out: give the world's up axis, z or y")
    axis = mean / mean.norm()
    # Gram-Schmidt with the axis that is farthest from up; the yaw is arbitrary.
    helper = torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())]
    right = torch.linalg.cross(axis, helper)
    right = right / right.norm()
    return torch.stack([right, axis, torch.linalg.cross(right, axis)])
