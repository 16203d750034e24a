"""What the pixels of a picture mean: the same for a file, a Pillow image, an array and a tensor.

Every picture becomes upright sRGB. EXIF orientations, ICC profiles, palettes, CMYK and 16 bits of grey are resolved
here.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from nova3d.errors import InputError, first_line
from nova3d.utils.files import check_file
from nova3d.utils.limits import MAX_MEGAPIXELS

log = logging.getLogger(__name__)

Picture = str | Path | Image.Image | np.ndarray | Tensor
# What Pillow may read. Others of its formats start a program of their own (EPS: Ghostscript) or are no pictures.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "JPEG2000", "ICO")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
EXIF_ORIENTATION = 0x0112
EXIF_TURNED = (5, 6, 7, 8)  # orientations that swap width and height


@contextmanager
def open_picture(
    path: str | Path, kind: str = "image", max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[Image.Image]:
    """Open an image file for the block. Its pixels are not decoded before the block asks for them.

    Args:
        path: the file.
        kind: what it is, for messages: "image", "animation".
        max_megapixels: millions of pixels that its header may state.

    Yields:
        The Pillow image.

    Raises:
        InputError: where there is no such file, its header states too many pixels, or Pillow fails here or in the
            block.
    """
    path, name = check_file(path, kind), f"an {kind}"
    try:
        if _is_heif(path):
            name = "a HEIC image"
            _register_heif(path)
        Image.init()  # AVIF and HEIF are not in every build
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            check_pixels(image.width, image.height, str(path), max_megapixels)
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' cannot be read as {name}: {first_line(error)}") from error


def check_pixels(width: int, height: int, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Refuse a picture that is too large to be meant.

    Args:
        width: in pixels.
        height: in pixels.
        name: the picture's name for the message.
        max_megapixels: the most millions of pixels.

    Raises:
        InputError: where it has more.
    """
    if width * height > max_megapixels * 1e6:
        raise InputError(
            f"'{name}' has {width}x{height} pixels, {width * height / 1e6:.3g} million; at most {max_megapixels:g} "
            "million are read: scale it down, or raise max_megapixels"
        )


def decode(picture: Picture, name: str | None = None, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor:
    """The pixels of a picture: upright, in sRGB.

    Args:
        picture: a file; a Pillow image; or an array or a tensor [h,w], [h,w,1], [h,w,3] or [h,w,4], of uint8, of
            uint16, or of float in [0,1]. A file is turned upright by its EXIF orientation, and so is a Pillow image.
            Of an animation, the first frame is read.
        name: the picture's name for messages. None: its path, or "picture".
        max_megapixels: the most millions of pixels.

    Returns:
        [h,w,3], or [h,w,4] with straight alpha where the picture has transparency: uint8, or float32 in [0,1] for an
        array of another type.

    Raises:
        InputError: where it cannot be read, is too large, or has another shape, type or range.
    """
    if isinstance(picture, Image.Image):
        name = name or getattr(picture, "filename", "") or "picture"
        check_pixels(picture.width, picture.height, name, max_megapixels)
        try:
            return torch.from_numpy(_pillow_pixels(picture, name))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise InputError(f"'{name}' cannot be read as an image: {first_line(error)}") from error
    if isinstance(picture, np.ndarray | Tensor):
        return _array_pixels(picture, name or "picture", max_megapixels)
    with open_picture(picture, max_megapixels=max_megapixels) as image:
        return torch.from_numpy(_pillow_pixels(image, name or str(picture)))


def has_alpha(image: Image.Image) -> bool:
    """Whether a Pillow image has transparency, as a channel or as one colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _pillow_pixels(image: Image.Image, name: str) -> np.ndarray:
    """uint8 [h,w,3|4] of a Pillow image, upright and in sRGB."""
    alpha = has_alpha(image)
    profile = bytes(image.info.get("icc_profile") or b"")
    if image.mode == "F" or image.mode.startswith("I"):
        turned = _grey_8_bit(image, name)
        turned.info["exif"] = image.info.get("exif", b"")
        image = turned
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    space = _profile_space(profile, name) if profile else ""
    if space == "GRAY" and image.mode in ("L", "LA"):
        image = _to_srgb(image.convert("LA" if alpha else "L"), profile, name)
    elif space == "RGB" and image.mode != "CMYK":
        image = _to_srgb(image.convert("RGBA" if alpha else "RGB"), profile, name)
    elif space == "CMYK" == image.mode:
        image = _to_srgb(image, profile, name)
    return np.array(image.convert("RGBA" if alpha else "RGB"))


def _grey_8_bit(image: Image.Image, name: str) -> Image.Image:
    """A grey image of more than 8 bits as L, or as LA where one of its levels is transparent."""
    levels = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise InputError(f"'{name}' holds floats outside [0,1]: save it with 8 or 16 bits per channel")
        scaled = levels * 255.0
    else:
        if levels.min() < 0 or levels.max() > 65535:
            raise InputError(f"'{name}' has mode {image.mode} and levels beyond 16 bits: save it with 8 or 16 bits")
        scaled = levels.astype(np.float32) / 257
    grey = Image.fromarray((scaled + 0.5).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _profile_space(profile: bytes, name: str) -> str:
    """ "RGB", "GRAY" or "CMYK" of an ICC profile that is to be applied; "" for sRGB, others and damaged ones."""
    try:
        opened_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(opened_profile):
            return ""
        space = opened_profile.profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError) as error:
        log.warning("'%s': its ICC profile cannot be read and is ignored: %s", name, first_line(error))
        return ""
    return space if space in ("RGB", "GRAY", "CMYK") else ""


def _to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """An image of the profile's colour space in sRGB; its alpha stays."""
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert("L" if image.mode == "LA" else "RGB") if alpha else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        log.warning("'%s': its ICC profile cannot be applied and is ignored: %s", name, first_line(error))
        return image
    if converted is None:
        return image
    if alpha:
        converted.putalpha(alpha)
    return converted


def _array_pixels(array: np.ndarray | Tensor, name: str, max_megapixels: float) -> Tensor:
    tensor = array.detach().cpu() if isinstance(array, Tensor) else None
    pixels = tensor if tensor is not None else torch.from_numpy(_native(np.asarray(array), name))
    if pixels.dim() == 2:
        pixels = pixels[..., None]
    if pixels.dim() != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(
            f"'{name}' must be [h,w], [h,w,1], [h,w,3] or [h,w,4] (channels last), got shape {list(pixels.shape)}"
        )
    check_pixels(pixels.shape[1], pixels.shape[0], name, max_megapixels)
    if pixels.dtype == torch.uint16:
        pixels = pixels.float() / 65535
    elif pixels.is_floating_point():
        pixels = pixels.float()
        if not (bool(pixels.isfinite().all()) and pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(f"'{name}' holds floats outside [0,1]: divide by the largest level, or pass uint8")
    elif pixels.dtype != torch.uint8:
        raise InputError(f"'{name}' is of {pixels.dtype}: pass uint8, uint16, or float in [0,1]")
    return pixels.expand(-1, -1, 3) if pixels.shape[-1] == 1 else pixels


def _native(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "uif":
        raise InputError(f"'{name}' is an array of {array.dtype}: pass uint8, uint16, or float in [0,1]")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(
            f"'{path}' is a HEIC picture: `pip install 'nova3d[heic]'` reads it, or save it as JPEG or PNG"
        ) from error
    pillow_heif.register_heif_opener()
