"""Arrays to data URIs, without importing torch: a tensor is any object with `detach` and `cpu`."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nova3d.errors import InputError

QUALITY = 88  # WebP: visually lossless at the size shown, a tenth of PNG
_CONFLICT = np.array([0.84, 0.12, 0.10], np.float32)  # sRGB of a pixel whose conflict is 1


def to_numpy(array: Any) -> NDArray[Any]:
    """A numpy view of an array, or a copy of a tensor of any device."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def data_uri(image: Any, max_side: int = 0) -> str:
    """[h,w], [h,w,1], [h,w,3] or [h,w,4], float [0,1] or uint8, as a WebP data URI.

    Made smaller where its longest side exceeds `max_side` pixels (0: never). Raises InputError for another shape.
    """
    pixels = to_numpy(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)):
        raise InputError(f"a report's picture must be [h,w], [h,w,3] or [h,w,4], got {list(pixels.shape)}")
    if pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels.astype(np.float32)).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    if max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def normal_colours(normals: Any, mask: Any) -> NDArray[np.float32]:
    """Normals [h,w,3] as colours (n + 1) / 2, with the coverage mask [h,w] as straight alpha: [h,w,4]."""
    colours = (to_numpy(normals).astype(np.float32) + 1) / 2
    return np.concatenate([colours, to_numpy(mask).astype(np.float32)[..., None]], axis=-1)


def conflict_colours(conflict: NDArray[Any], picture: NDArray[Any]) -> NDArray[np.float32]:
    """A conflict map [h,w] in [0,1] over its view: red by the conflict, on the view's grey, paled.

    Args:
        conflict: [h,w] float.
        picture: [h,w,4] float in [0,1], straight alpha, of the same size.

    Returns:
        [h,w,4] float32 in [0,1], straight alpha.
    """
    grey = 0.45 + 0.5 * picture[..., :3].mean(axis=-1, keepdims=True)
    amount = conflict.astype(np.float32)[..., None].clip(0, 1)
    return np.concatenate([(1 - amount) * grey + amount * _CONFLICT, picture[..., 3:]], axis=-1)
