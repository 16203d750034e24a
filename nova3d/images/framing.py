"""The object in a picture: checked, framed and resized."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images.colour import premultiply, unpremultiply

MIN_OBJECT_PIXELS = 8  # an object whose longest side is shorter is not worth reconstructing
FOREGROUND_RATIO = 2 / 3  # a unit object seen face-on in the default camera: 1 of 1.5 world units


def check_object(alpha: Tensor, name: str) -> None:
    """Check that a picture shows an object.

    Args:
        alpha: [h,w] float in [0,1].
        name: the picture's name for the message.

    Raises:
        InputError: where no pixel is object, or the object's longest side is shorter than MIN_OBJECT_PIXELS.
    """
    rows, columns = torch.nonzero(alpha > 0.5, as_tuple=True)
    if len(rows) == 0:
        raise InputError(f"'{name}' is fully transparent: there is no object in it")
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    if max(height, width) < MIN_OBJECT_PIXELS:
        raise InputError(
            f"the object in '{name}' is only {width}x{height} pixels; it must be at least {MIN_OBJECT_PIXELS} long"
        )


def check_framing(rgba: Tensor, framed: bool, depth_ratio: float, name: str) -> None:
    """Check that a picture can be framed as it is asked for.

    Args:
        rgba: [h,w,4], the picture cut out.
        framed: it is already what the camera sees.
        depth_ratio: how many times longer the object is from front to back than it looks.
        name: the picture's name for the message.

    Raises:
        InputError: where it is not square although `framed`, or `depth_ratio` is below 1 or given although `framed`.
    """
    if depth_ratio < 1 or (framed and depth_ratio != 1):
        excluded = "and framed exclude each other: a framed picture is taken as it is"
        raise InputError(f"depth_ratio {depth_ratio:g} {excluded if depth_ratio > 1 else 'must be at least 1'}")
    if framed and rgba.shape[0] != rgba.shape[1]:
        raise InputError(f"{name} is said to be framed but is not square: {tuple(rgba.shape[:2])}")


def frame_object(rgba: Tensor, size: int, foreground_ratio: float = FOREGROUND_RATIO) -> Tensor:
    """Crop and scale a picture so that its object is framed as the default camera frames a unit object.

    The object's bounding box is centred, and its longest side fills `foreground_ratio` of the square. Filtering is
    done on premultiplied colours, so the surroundings of a cut-out never bleed in.

    Args:
        rgba: [h,w,4] uint8, or float in [0,1], straight alpha; some pixels are object (see `check_object`).
        size: the side of the square, in pixels.
        foreground_ratio: share of the side that the object's longest side fills.

    Returns:
        [size,size,4] float in [0,1], straight alpha.
    """
    inside = rgba[..., 3] > (127 if rgba.dtype == torch.uint8 else 0.5)
    rows, columns = torch.nonzero(inside.any(dim=1))[:, 0], torch.nonzero(inside.any(dim=0))[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left) / foreground_ratio
    y, x = (_Resampling((low + high) / 2 - side / 2, side / size, size) for low, high in ((top, bottom), (left, right)))
    first, last = max(0, x.first[0]), min(rgba.shape[1], x.first[-1] + x.taps)
    across = torch.zeros(size, last - first, 4)
    for i, row in enumerate(y.first):  # the rows under one row of the result at a time: no copy of the whole picture
        band = slice(max(0, row), min(rgba.shape[0], row + y.taps))
        if band.start < band.stop:
            pixels = rgba[band, first:last]
            pixels = premultiply(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float())
            across[i] = torch.tensordot(y.weights[i, band.start - row : band.stop - row], pixels, dims=1)
    columns_in = F.pad(across, (0, 0, first - x.first[0], x.first[-1] + x.taps - last))
    windows = torch.stack([columns_in[:, c - x.first[0] : c - x.first[0] + x.taps] for c in x.first], dim=1)
    return unpremultiply(torch.einsum("yxkc,xk->yxc", windows, x.weights))


class _Resampling:
    """Weights of `size` samples along an axis: a box as wide as the step between them, then linear interpolation.

    The box is an odd number of pixels wide, or it would shift the picture by half a pixel.

    Args:
        start: where the first sample's interval begins, in pixels.
        step: between samples, in pixels.
        size: the number of samples.
    """

    def __init__(self, start: float, step: float, size: int):
        box = math.floor(step) | 1
        centres = start + (torch.arange(size, dtype=torch.float64) + 0.5) * step - 0.5  # pixel centres are at integers
        lower = centres.floor()
        right = (centres - lower).float()[:, None]
        ones = torch.ones(size, box) / box
        self.taps = box + 1
        self.first: list[int] = (lower.long() - box // 2).tolist()
        self.weights = F.pad(ones, (0, 1)) * (1 - right) + F.pad(ones, (1, 0)) * right


def resize(rgba: Tensor, width: int, height: int | None = None) -> Tensor:
    """Resize pictures by an antialiased filter on premultiplied colours.

    Args:
        rgba: [h,w,4] or [n,h,w,4] float in [0,1], straight alpha.
        width: of the result, in pixels.
        height: of the result, in pixels; equal to the width by default.

    Returns:
        [height,width,4] or [n,height,width,4] float in [0,1], straight alpha; `rgba` itself where it has that size.
    """
    height = width if height is None else height
    if rgba.shape[-3:-1] == (height, width):
        return rgba
    return unpremultiply(interpolate(premultiply(rgba), width, height))


def interpolate(image: Tensor, width: int, height: int) -> Tensor:
    """Antialiased bilinear resampling of channels that are meaningful to average.

    Args:
        image: [h,w,c] or [n,h,w,c] float.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        [height,width,c] or [n,height,width,c] float.
    """
    planes = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1).reshape(*image.shape[:-3], height, width, image.shape[-1])
