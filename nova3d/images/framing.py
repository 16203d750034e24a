"""The object in a picture: cut out of a plain background, checked, framed and resized."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images.colour import premultiply, unpremultiply

PLAIN_BORDER_DEVIATION = 0.04  # a border whose colours deviate less than this from their median is "plain"
MATTE_DISTANCE = 0.06  # colour distance (max over channels) from the background that counts as object
MIN_OBJECT_PIXELS = 8  # an object whose longest side is shorter is not worth reconstructing
FOREGROUND_RATIO = 2 / 3  # a unit object seen face-on in the default camera: 1 of 1.5 world units


def matte_plain_background(rgb: Tensor, name: str = "image") -> Tensor:
    """Cut an object out of a background of one colour.

    Background is what has the border's median colour and is connected to the border.

    Args:
        rgb: [h,w,3] float in [0,1].
        name: the picture's name for the message.

    Returns:
        [h,w] float alpha, 0 or 1.

    Raises:
        InputError: where the border is not of one colour.
    """
    border = torch.cat([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    colour = border.median(dim=0).values
    spread = (border - colour).abs().amax(dim=-1)
    if (spread > PLAIN_BORDER_DEVIATION).float().mean() > 0.05:
        raise InputError(
            f"'{name}' has no transparency and its background is not of one colour: "
            "cut the object out (for example `rembg i photo.jpg photo.png`) and pass the RGBA PNG"
        )
    like_background = ((rgb - colour).abs().amax(dim=-1) <= MATTE_DISTANCE).numpy()
    labels, _ = ndimage.label(like_background)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    background = np.isin(labels, edge[edge > 0])
    return torch.from_numpy((~background).astype(np.float32))


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


def frame_object(rgba: Tensor, size: int, foreground_ratio: float = FOREGROUND_RATIO) -> Tensor:
    """Crop and scale a picture so that its object is framed as the default camera frames a unit object.

    The object's bounding box is centred, and its longest side fills `foreground_ratio` of the square. Filtering is
    done on premultiplied colours, so the surroundings of a cut-out never bleed in.

    Args:
        rgba: [h,w,4] float in [0,1], straight alpha; some pixels are object (see `check_object`).
        size: the side of the square, in pixels.
        foreground_ratio: share of the side that the object's longest side fills.

    Returns:
        [size,size,4] float in [0,1], straight alpha.
    """
    rows, columns = torch.nonzero(rgba[..., 3] > 0.5, as_tuple=True)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    side = max(bottom - top, right - left) / foreground_ratio
    premultiplied = premultiply(rgba).permute(2, 0, 1)[None]
    # Anti-alias by a box filter as wide as the sampling step. Odd, or it would shift the picture by half a pixel;
    # the margin holds the soft rim of an object that touches the picture's edge.
    step = math.floor(side / size) | 1
    premultiplied = F.avg_pool2d(F.pad(premultiplied, [step] * 4), step, stride=1, padding=step // 2)
    h, w = premultiplied.shape[2:]
    offset = (torch.arange(size) + 0.5) / size * side - side / 2 + step
    x = (offset + (left + right) / 2) / w * 2 - 1
    y = (offset + (top + bottom) / 2) / h * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None].float()
    sampled = F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    return unpremultiply(sampled.permute(1, 2, 0))


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
