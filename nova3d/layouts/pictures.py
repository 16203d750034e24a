"""Pictures of foreign folders: names in order, tiles, videos, cut-outs, and their assembly into a ViewSet."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ANIMATIONS = (".gif",)  # read by Pillow
VIDEOS = (".mp4", ".webm", ".mov", ".avi")  # read by PyAV


def natural(path: Path) -> list[str | int]:
    """A sort key that puts 2.png before 10.png."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def pictures_in(folder: Path, suffixes: Iterable[str] = PICTURES) -> list[Path]:
    """The files of `folder` with such a suffix, in natural order."""
    return sorted((p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in set(suffixes)), key=natural)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, from its header; (0, 0) where it is none."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def require(paths: Sequence[Path], folder: Path) -> None:
    """Raise InputError naming the files that are missing."""
    missing = [
        str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths if not path.is_file()
    ]
    if missing:
        names = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise InputError(f"'{folder}' is incomplete: {names} missing")


def tiles(sheet: Tensor, count: int, name: str) -> list[Tensor]:
    """A wide picture [h, count*w, c] cut into `count` of [h,w,c], from left to right."""
    if sheet.shape[1] % count:
        raise InputError(f"'{name}' is {sheet.shape[1]} pixels wide, which is not {count} pictures side by side")
    return list(sheet.split(sheet.shape[1] // count, dim=1))


def frames(path: Path) -> list[Tensor]:
    """The frames of an animated GIF or of a video as float [h,w,3|4] in [0,1].

    Raises InputError where the file is missing or broken, or where a video needs PyAV, which is not installed.
    """
    if not path.is_file():
        raise InputError(f"'{path}' does not exist")
    if path.suffix.lower() in ANIMATIONS:
        try:
            with Image.open(path) as opened:
                mode = "RGBA" if "transparency" in opened.info else "RGB"
                found = [np.asarray(frame.convert(mode)).copy() for frame in ImageSequence.Iterator(opened)]
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputError(f"'{path}' cannot be read as an animation: {error}") from error
        return [torch.from_numpy(frame).float() / 255 for frame in found]
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading the video '{path}' needs PyAV: `pip install av`, or pass its frames as numbered PNG files"
        ) from error
    try:
        with av.open(str(path)) as container:
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"'{path}' cannot be read as a video: {error}") from error
    if not found:
        raise InputError(f"the video '{path}' has no frames")
    return [torch.from_numpy(frame).float() / 255 for frame in found]


def cut_out(pictures: Sequence[Tensor], names: Sequence[str], layout: str) -> list[Tensor]:
    """Every picture as RGBA [h,w,4], as `cut_one` does it; the log says how many had to be keyed."""
    cut = [cut_one(picture, name) for picture, name in zip(pictures, names, strict=True)]
    log_keyed(sum(keyed for _, keyed in cut), len(cut), layout)
    return [rgba for rgba, _ in cut]


def cut_one(picture: Tensor, name: str) -> tuple[Tensor, bool]:
    """A picture [h,w,3|4] as RGBA [h,w,4] by its own transparency or, where it has none, its plain background keyed;
    and whether it was keyed.

    Keying finds what has the border's colour and is connected to the border, so parts of the object that have the
    background's colour and touch it are lost. Raises InputError where there is neither transparency nor a plain
    background.
    """
    if has_alpha(picture):
        return picture, False
    alpha = images.matte_plain_background(picture[..., :3], name)
    return torch.cat([picture[..., :3], alpha[..., None]], dim=-1), True


def has_alpha(picture: Tensor) -> bool:
    """Whether a picture [h,w,3|4] is transparent anywhere."""
    return picture.shape[-1] == 4 and bool((picture[..., 3] < 1).any())


def log_keyed(keyed: int, count: int, layout: str) -> None:
    if keyed:
        log.info("%s: %d of %d pictures have no mask; their plain background is keyed out", layout, keyed, count)


def fitted(rgba: Tensor, size: int | None) -> Tensor:
    """Straight-alpha [h,w,4] with `size` pixels along the longer side; itself where it has that or `size` is None."""
    h, w = rgba.shape[:2]
    if size is None or size == max(h, w):
        return rgba
    return scaled(rgba[None], *_scaled_size(w, h, size))[0]


def _scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    share = size / max(width, height)
    return max(1, round(width * share)), max(1, round(height * share))


def assemble(
    pictures: Sequence[Tensor],
    normals: Sequence[Tensor] | None,
    cameras: Cameras,
    size: int | None,
    names: Sequence[str],
) -> ViewSet:
    """RGBA pictures [h,w,4], unit world normals [h,w,3] or None, and their cameras as a ViewSet.

    size: pixels of the longer side wanted; None keeps the pictures' own. Raises InputError where sizes differ.
    """
    for picture, name in zip(pictures, names, strict=True):
        if picture.shape[:2] != (cameras.height, cameras.width):
            raise InputError(
                f"'{name}' is {picture.shape[1]}x{picture.shape[0]}, the others are {cameras.width}x{cameras.height}: "
                "all views must have one size"
            )
    rgba = torch.stack(list(pictures))
    surface = torch.zeros_like(rgba[..., :3])
    if normals is not None:
        surface = torch.stack(list(normals)) * (rgba[..., 3:] > 0)
    if size is not None and size != max(cameras.width, cameras.height):
        width, height = _scaled_size(cameras.width, cameras.height, size)
        rgba, surface = scaled(rgba, width, height), _scaled_normals(surface, width, height)
        cameras = cameras.resized(width, height)
    return ViewSet(images.composite(rgba), surface * (rgba[..., 3:] > 0), rgba[..., 3], cameras)


def resized(views: ViewSet, size: int | None) -> ViewSet:
    """`views` with `size` pixels along the longer side; themselves where they have that or `size` is None."""
    if size is None or size == max(views.cameras.width, views.cameras.height):
        return views
    rgba = [views.straight_alpha(i) for i in range(len(views))]
    return assemble(rgba, list(views.normals), views.cameras, size, [str(i) for i in range(len(views))])


def scaled(rgba: Tensor, width: int, height: int) -> Tensor:
    """Straight-alpha [v,h,w,4] to [v,height,width,4], area-filtered premultiplied."""
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)
    small = _interpolated(premultiplied, width, height)
    alpha = small[..., 3:].clamp(0, 1)
    rgb = torch.where(alpha > 1e-4, small[..., :3] / alpha.clamp_min(1e-4), torch.zeros_like(small[..., :3]))
    return torch.cat([rgb.clamp(0, 1), alpha], dim=-1)


def _scaled_normals(normals: Tensor, width: int, height: int) -> Tensor:
    mean = _interpolated(normals, width, height)
    # A mean of less than a quarter of a unit is mostly background, or of normals that contradict each other.
    return F.normalize(mean, dim=-1) * (mean.norm(dim=-1, keepdim=True) > 0.25)


def _interpolated(image: Tensor, width: int, height: int) -> Tensor:
    planes = image.permute(0, 3, 1, 2)
    small = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1)
