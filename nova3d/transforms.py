"""transforms.json, the camera file of nerfstudio, instant-ngp and the synthetic NeRF set: cameras in and out.

The file holds a projection model, intrinsics in pixels (of the file, or of each frame) and one camera-to-world matrix
for each frame, with OpenGL camera axes and pixel centres at +0.5. Errors name the file and the frame.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nova3d.cameras import CameraModel, Cameras, pose_fault
from nova3d.errors import InputError, first_line
from nova3d.utils.files import read_json, write_text

_CAMERA_MODELS: dict[str, CameraModel] = {
    "ORTHOPHOTO": "orthographic",  # nerfstudio's name, in the files that are written
    "ORTHOGRAPHIC": "orthographic",  # the name in files of earlier versions
    "PINHOLE": "perspective",
    "OPENCV": "perspective",
    "SIMPLE_PINHOLE": "perspective",
    "SIMPLE_RADIAL": "perspective",  # with all distortion zero, as checked
    "RADIAL": "perspective",
}
_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
# What instant-ngp and nerfstudio call lenses that are neither pinhole nor orthographic.
_OTHER_LENSES = ("is_fisheye", "fisheye", "equirectangular", "latlong", "is_equirectangular")
_LARGEST = 1e7  # of a number of pixels or of a position: more is a mistake
_INTRINSICS_KEYS = ("fl_x", "fl_y", "cx", "cy")


def cameras_to_transforms(cameras: Cameras) -> dict[str, Any]:
    """The content of a transforms.json for cameras, without the frames' file paths.

    Args:
        cameras: v cameras. Intrinsics that differ between views are written on each frame.

    Returns:
        `camera_model`, `w`, `h`, the intrinsics, and `frames` in the order of the views.
    """
    name = "ORTHOGRAPHIC" if cameras.model == "orthographic" else "PINHOLE"
    header: dict[str, Any] = {"camera_model": name, "w": cameras.width, "h": cameras.height}
    rows = [dict(zip(_INTRINSICS_KEYS, row, strict=True)) for row in cameras.intrinsics.double().tolist()]
    frames: list[dict[str, Any]] = [{"transform_matrix": pose} for pose in cameras.c2w.double().tolist()]
    if bool((cameras.intrinsics == cameras.intrinsics[:1]).all()):
        header |= rows[0]
    else:
        frames = [frame | row for frame, row in zip(frames, rows, strict=True)]
    return header | {"frames": frames}


def trusted_frames(frames: Sequence[Mapping[str, Any]], source: str = "transforms.json") -> tuple[bool, ...]:
    """Which frames of one of our view folders show what is true (`ViewSet.trusted`).

    Args:
        frames: see `frames_of`. A frame without the key `trusted` among frames that have it is not trusted.
        source: the file's name, with which messages begin.

    Returns:
        One value per frame; empty where no frame has the key.

    Raises:
        InputError: naming the frame whose `trusted` is neither true nor false.
    """
    for i, frame in enumerate(frames):
        if not isinstance(frame.get("trusted", False), bool):
            raise InputError(f"{source}: frame {i}: trusted must be true or false, not {frame['trusted']!r}")
    if not any("trusted" in frame for frame in frames):
        return ()
    return tuple(frame.get("trusted", False) for frame in frames)


def cameras_from_transforms(transforms: Mapping[str, Any], source: str = "transforms.json") -> Cameras:
    """The inverse of `cameras_to_transforms`; also reads pinhole files of other tools that give all intrinsics.

    Args:
        transforms: the content of the file.
        source: the file's name, with which messages begin.

    Returns:
        One camera for each frame.

    Raises:
        InputError: where a key is missing, a number is not finite or not positive, a pose is not a rigid 4x4 matrix,
            or the model is not a pinhole or orthographic one without distortion.
    """
    model = camera_model(transforms, source)
    frames = frames_of(transforms, source)
    c2w = poses(frames, source)
    try:
        rows = [[float({**transforms, **frame}[key]) for key in _INTRINSICS_KEYS] for frame in frames]
        width, height = int(transforms["w"]), int(transforms["h"])
    except KeyError as error:
        raise InputError(f"{source}: key {error} is missing") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: {first_line(error, 100)}") from error
    if not all(abs(value) < _LARGEST for row in rows for value in (*row, width, height)):
        raise InputError(f"{source}: fl_x, fl_y, cx, cy, w and h must be finite numbers below {_LARGEST:g}")
    if not all(focal > 1 / _LARGEST for row in rows for focal in row[:2]) or width < 1 or height < 1:
        raise InputError(f"{source}: fl_x, fl_y, w and h must be positive")
    return Cameras(c2w, torch.tensor(rows), width, height, model)


def read_transforms(path: str | Path) -> dict[str, Any]:
    """The content of a transforms.json; raises InputError unless it is a JSON file with an object at the top."""
    return read_json(path, dict, "camera file")


def write_transforms(path: str | Path, transforms: Mapping[str, Any]) -> Path:
    """Write a transforms.json in the words of other tools, keys in the given order; returns the path.

    The orthographic camera has nerfstudio's name and instant-ngp's switch, without which that reads a perspective one.
    `up` says that the world's up is +Y, where both tools take +Z otherwise.
    """
    words: dict[str, Any] = {"up": [0.0, 1.0, 0.0], **transforms}
    if _CAMERA_MODELS.get(str(transforms.get("camera_model"))) == "orthographic":
        words |= {"camera_model": "ORTHOPHOTO", "orthographic": True}
    return write_text(path, json.dumps(words, indent=1))


def camera_model(transforms: Mapping[str, Any], source: str) -> CameraModel:
    """The projection model of a transforms.json; a pinhole where `camera_model` is missing, as other readers have it.

    Args:
        transforms: the content of the file.
        source: the file's name, with which messages begin.

    Returns:
        "orthographic" or "perspective".

    Raises:
        InputError: for another model, any lens distortion, and camera axes other than OpenGL's.
    """
    if transforms.get("from_na"):
        raise InputError(f"{source}: 'from_na' (NeuS2) means OpenCV camera axes: write OpenGL poses without that key")
    frames = transforms.get("frames")
    rows = [transforms, *(f for f in (frames if isinstance(frames, list) else []) if isinstance(f, dict))]
    for key in sorted({str(key) for row in rows for key, value in row.items() if value not in (None, False, 0)}):
        if key in _OTHER_LENSES or key.startswith("ftheta_"):
            raise InputError(
                f"{source}: '{key}' is set: only pinhole and orthographic cameras are read; undistort first"
            )
    parallel = transforms.get("orthographic") is True
    name = str(transforms.get("camera_model", "ORTHOPHOTO" if parallel else "PINHOLE")).upper()
    if name not in _CAMERA_MODELS:
        raise InputError(f"{source}: camera_model '{name[:40]}' is not one of {', '.join(_CAMERA_MODELS)}")
    if parallel and _CAMERA_MODELS[name] != "orthographic":
        raise InputError(f"{source}: 'orthographic' is true, but camera_model is {name}: remove what is wrong")
    distorted = [key for key in _DISTORTION_KEYS if any(row.get(key) not in (None, 0, 0.0) for row in rows)]
    if distorted:
        raise InputError(f"{source}: lens distortion ({', '.join(distorted)}) is not supported; undistort first")
    return _CAMERA_MODELS[name]


def frames_of(transforms: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The `frames` of a transforms.json; raises InputError unless it is a list of one or more objects."""
    frames = transforms.get("frames")
    if not frames:
        raise InputError(f"{source}: no frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{source}: 'frames' must be a list of objects")
    return frames


def up_axis(transforms: Mapping[str, Any], source: str) -> Tensor | None:
    """The world's up axis where the file names it by `up`, as instant-ngp's files do.

    Args:
        transforms: the content of the file.
        source: the file's name, with which messages begin.

    Returns:
        [3] float64 unit vector; None where the file says nothing.

    Raises:
        InputError: where `up` is not a vector of three numbers.
    """
    given = transforms.get("up")
    if given is None:
        return None
    try:
        axis = torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{source}: up is not a vector of three numbers: {first_line(error, 100)}") from error
    if axis.shape != (3,) or not torch.isfinite(axis).all() or not 1e-6 < float(axis.norm()) < _LARGEST:
        raise InputError(f"{source}: up must be a vector of three finite numbers, not all zero")
    return axis / axis.norm()


def poses(frames: Sequence[Mapping[str, Any]], source: str) -> Tensor:
    """The poses of a transforms.json's frames.

    Args:
        frames: see `frames_of`.
        source: the file's name, with which messages begin.

    Returns:
        c2w [v,4,4] float32, camera to world, rigid.

    Raises:
        InputError: naming the frame whose transform_matrix is missing, not a finite 4x4 matrix, or not rigid.
    """
    found = []
    for i, frame in enumerate(frames):
        where = f"{source}: frame {i}"
        if "transform_matrix" not in frame:
            raise InputError(f"{where}: key 'transform_matrix' is missing")
        try:
            pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            why = first_line(error, 100)
            raise InputError(f"{where}: transform_matrix is not a 4x4 matrix of numbers: {why}") from error
        if pose.shape != (4, 4) or not bool((pose.abs() < _LARGEST).all()):
            raise InputError(f"{where}: transform_matrix must be a finite 4x4 matrix, of numbers below {_LARGEST:g}")
        if fault := pose_fault(pose):
            raise InputError(f"{where}: transform_matrix {fault}")
        found.append(pose.float())
    return torch.stack(found)


def intrinsics(
    transforms: Mapping[str, Any],
    frame: Mapping[str, Any],
    width: int,
    height: int,
    model: CameraModel,
    where: str,
) -> Tensor:
    """The intrinsics of one frame of any tool's transforms.json, for its picture as it is on disk.

    Keys of the frame override those of the file. Without `fl_x` the field of view `camera_angle_x` gives it; `fl_y`
    defaults to `fl_x`; the principal point defaults to the middle. `w` and `h` default to the picture's size. A
    smaller copy of the pictures, as nerfstudio's images_2, keeps the field of view.

    Args:
        transforms: the content of the file.
        frame: one of its frames.
        width: of the frame's picture, in pixels.
        height: of the frame's picture, in pixels.
        model: see `camera_model`.
        where: the file and frame, with which messages begin.

    Returns:
        [4] float32: fl_x, fl_y, cx, cy in pixels of the picture.

    Raises:
        InputError: where a number is missing, not finite or out of its range, or the picture has another shape.
    """
    given = {**transforms, **frame}

    def number(key: str) -> float | None:
        if given.get(key) is None:
            return None
        try:
            value = float(given[key])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: {key} is not a number: {str(given[key])[:40]!r}") from error
        if isinstance(given[key], bool) or not abs(value) < _LARGEST:  # nan is not below it either
            raise InputError(f"{where}: {key} is not a finite number below {_LARGEST:g}: {str(given[key])[:40]}")
        return value

    file_w, file_h = number("w") or width, number("h") or height
    if file_w < 1 or file_h < 1:
        raise InputError(f"{where}: w and h must be positive")
    if abs(file_w / file_h * height - width) > 1:  # more than the rounding of a smaller copy
        raise InputError(f"{where}: the picture is {width}x{height}, w and h say {file_w:g}x{file_h:g}")
    focal = number("fl_x")
    if focal is None and model == "perspective" and (angle := number("camera_angle_x")) is not None:
        if not 0 < angle < math.pi:
            raise InputError(f"{where}: camera_angle_x must be between 0 and pi radians, not {angle:g}")
        focal = file_w / (2 * math.tan(angle / 2))
    if focal is None:
        raise InputError(f"{where}: no intrinsics: give fl_x (pixels) or camera_angle_x (radians), per file or frame")
    focal_y = number("fl_y")
    if focal_y is None and model == "perspective" and (angle := number("camera_angle_y")) is not None:
        focal_y = file_h / (2 * math.tan(angle / 2))
    focal_y = focal if focal_y is None else focal_y
    if min(focal, focal_y) <= 1 / _LARGEST:
        raise InputError(f"{where}: fl_x and fl_y must be positive")
    cx, cy = number("cx"), number("cy")
    cx, cy = file_w / 2 if cx is None else cx, file_h / 2 if cy is None else cy
    return torch.tensor([focal * width / file_w, focal_y * height / file_h, cx * width / file_w, cy * height / file_h])
