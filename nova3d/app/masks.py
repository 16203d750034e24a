"""The cut-out as the page shows it, and strokes of the brush on it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor

from nova3d import images

ADD, REMOVE = "#00c853", "#ff1744"
"""Colours of the brush: what becomes object, and what becomes background."""
SIDE = 768  # pixels of the picture's longer side, as the page shows it
_DIMMED = 0.25  # of the background's contrast
_OUTLINE = (255, 64, 129)


def shrink(pixels: Tensor) -> Image.Image:
    """A picture as the page shows it.

    Args:
        pixels: [h,w,3] or [h,w,4], straight alpha; uint8, or float in [0,1].

    Returns:
        RGB on white, SIDE pixels or less along its longer side.
    """
    picture = Image.fromarray(images.to_uint8(pixels) if pixels.is_floating_point() else pixels.numpy())
    picture.thumbnail((SIDE, SIDE))
    shown = Image.new("RGB", picture.size, "white")
    shown.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    return shown


def preview(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture with its background faded, and a line along the object's outline.

    Args:
        picture: RGB, as `shrink` gives it.
        mask: L in the picture's proportions, of any size; 255 is object.

    Returns:
        RGB of the picture's size.
    """
    pixels = np.asarray(picture, np.float32)
    inside = np.asarray(mask.resize(picture.size, Image.Resampling.BOX), np.float32)[..., None] / 255
    shown = inside * pixels + (1 - inside) * (255 - _DIMMED * (255 - pixels))
    solid = inside[..., 0] > 0.5
    shown[ndimage.binary_dilation(solid, iterations=2) & ~solid] = _OUTLINE
    return Image.fromarray(shown.round().astype(np.uint8))


def with_strokes(mask: Image.Image, layers: Sequence[Image.Image]) -> Image.Image | None:
    """A mask after strokes of the brush.

    Args:
        mask: L; 255 is object.
        layers: RGBA pictures in the mask's proportions, in the order in which they lie on it. Strokes in which green
            outweighs red add to the object, the others remove from it.

    Returns:
        L of the mask's size; None where there is no stroke.
    """
    painted, drawn = np.array(mask.convert("L")), False
    for layer in layers:
        small = np.asarray(layer.convert("RGBA"))
        stroke, adds = small[..., 3] > 127, small[..., 1] >= small[..., 0]
        for kind, level in ((adds, 255), (~adds, 0)):
            if (stroke & kind).any():
                area = Image.fromarray((stroke & kind).astype(np.uint8) * 255).resize(mask.size)
                painted[np.asarray(area) > 127] = level
                drawn = True
    return Image.fromarray(painted) if drawn else None
