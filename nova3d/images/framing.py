"""Pictures at the edges of the system: reading, alpha, framing, compositing, grids.

Images are float [0,1] tensors, H W 3 or H W 4 (straight alpha), unless a name says otherwise.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from nova3d.errors import InputError

PLAIN_BORDER_DEVIATION = 0.04  # a border whose colours deviate less than this from their median is "plain"
MATTE_DISTANCE = 0.06  # colour distance (max over channels) from the background that counts as object
MIN_OBJECT_PIXELS = 8  # an object whose longest side is shorter is not worth reconstructing
FOREGROUND_RATIO = 2 / 3  # a unit object seen face-on in the default camera: 1 of 1.5 world units


def read_rgba(path: str | Path) -> Tensor:
    """A picture file as [h,w,4] float with an alpha that separates the object.

    A picture without alpha is matted by its own plain background. Raises InputError where the file is missing or
    not an image, the background is not plain, or there is (nearly) nothing in the picture.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"image '{path}' does not exist")
    try:
        with Image.open(path) as opened:
            has_alpha = opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA"))  # phones store turned pictures
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' cannot be read as an image: {error}") from error
    rgba = torch.from_numpy(pixels.copy()).float() / 255
    if not has_alpha or bool((rgba[..., 3] == 1).all()):
        rgba[..., 3] = matte_plain_background(rgba[..., :3], str(path))
    check_object(rgba[..., 3], str(path))
    return rgba


def matte_plain_background(rgb: Tensor, name: str = "image") -> Tensor:
    """Alpha [h,w] in {0,1} of the object in rgb [h,w,3] on a background of one colour.

    Background is what has the border's median colour and is connected to the border. Raises InputError where the
    border is not of one colour.
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
    """Raise InputError unless alpha [h,w] holds an object at least MIN_OBJECT_PIXELS long."""
    rows, columns = torch.nonzero(alpha > 0.5, as_tuple=True)
    if len(rows) == 0:
        raise InputError(f"'{name}' is fully transparent: there is no object in it")
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    if max(height, width) < MIN_OBJECT_PIXELS:
        raise InputError(
            f"the object in '{name}' is only {width}x{height} pixels; it must be at least {MIN_OBJECT_PIXELS} long"
        )


def frame_object(rgba: Tensor, size: int, foreground_ratio: float = FOREGROUND_RATIO) -> Tensor:
    """Crop and scale rgba [h,w,4] so that the object's longest side fills `foreground_ratio` of a size x size square.

    The object's bounding box is centred, as the default camera centres an object. Returns [size,size,4], straight
    alpha; filtering is done on premultiplied colours, so the cut-out's surroundings never bleed in.
    """
    rows, columns = torch.nonzero(rgba[..., 3] > 0.5, as_tuple=True)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    side = max(bottom - top, right - left) / foreground_ratio
    alpha = rgba[..., 3:]
    premultiplied = torch.cat([rgba[..., :3] * alpha, alpha], dim=-1).permute(2, 0, 1)[None]
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
    alpha = sampled[3:].clamp(0, 1)
    rgb = torch.where(alpha > 1e-4, sampled[:3] / alpha.clamp_min(1e-4), torch.zeros_like(sampled[:3]))
    return torch.cat([rgb.clamp(0, 1), alpha]).permute(1, 2, 0)


def resize(rgba: Tensor, size: int) -> Tensor:
    """Straight-alpha [h,w,4] to [size,size,4], area-filtered premultiplied; itself where it has that size."""
    if rgba.shape[:2] == (size, size):
        return rgba
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).permute(2, 0, 1)[None]
    scaled = F.interpolate(premultiplied, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    alpha = scaled[3:].clamp(0, 1)
    rgb = torch.where(alpha > 1e-4, scaled[:3] / alpha.clamp_min(1e-4), torch.zeros_like(scaled[:3]))
    return torch.cat([rgb.clamp(0, 1), alpha]).permute(1, 2, 0)


def composite(rgba: Tensor, background: float = 1.0) -> Tensor:
    """Straight-alpha [...,4] over a grey level (white by default) to [...,3]."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)


def off_white(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Straight alpha [...,4] that `composite` turns into rgb [...,3] on white; alpha [...,1] in [0,1]."""
    straight = (rgb - (1 - alpha)) / alpha.clamp_min(1 / 255)
    return torch.cat([torch.where(alpha > 0, straight, 0.0).clamp(0, 1), alpha], dim=-1)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """sRGB [0,1] to linear light (IEC 61966-2-1), any shape."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB, clipped to [0,1]; the inverse of `srgb_to_linear`."""
    low = linear * 12.92
    return torch.where(linear <= 0.0031308, low, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055).clamp(0, 1)


def to_uint8(image: Tensor) -> np.ndarray:
    """Float [0,1] to uint8, rounded, as numpy of the same shape."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def save_image(path: str | Path, image: Tensor | np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write [h,w,3|4] (float [0,1] or uint8) as PNG; `text` goes into its text chunks."""
    pixels = to_uint8(image) if isinstance(image, Tensor) and image.dtype != torch.uint8 else np.asarray(image)
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info)


def grid(images: Tensor, columns: int, padding: int = 2, background: float = 1.0) -> Tensor:
    """Tile images [n,h,w,c] row by row into one [H,W,c] picture."""
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    sheet = images.new_full((rows * (h + padding) + padding, columns * (w + padding) + padding, c), background)
    for index in range(n):
        y = padding + (index // columns) * (h + padding)
        x = padding + (index % columns) * (w + padding)
        sheet[y : y + h, x : x + w] = images[index]
    return sheet


def save_animation(path: str | Path, frames: Tensor, seconds_per_frame: float = 0.12) -> None:
    """Write frames [n,h,w,3] as a looping animated WebP or GIF, by the path's suffix."""
    pictures = [Image.fromarray(frame) for frame in to_uint8(frames)]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(path, duration=round(seconds_per_frame * 1000), **options)
