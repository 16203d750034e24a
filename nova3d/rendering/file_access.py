"""Access to the files that a mesh file names: their kind, place and size are checked before they are decoded."""

import codecs
import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nova3d.errors import InputError, first_line, system_reason
from nova3d.utils.text import shorten

# What Pillow may decode: formats that every build of it has (AVIF is optional) and that start no other program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TGA", "TIFF", "DDS", "PPM", "JPEG2000", "PCX")


@dataclass(frozen=True)
class Limits:
    """What a mesh file may cost. Larger ones are refused before memory is taken.

    Attributes:
        triangles: in the whole file, instances counted.
        texture_pixels: of one picture; all that differ may have TEXTURES_TOGETHER times as many.
        file_bytes: of one file, and of all files that a glTF file names.
    """

    triangles: int = 20_000_000
    texture_pixels: int = 100_000_000
    file_bytes: int = 4 << 30


LIMITS = Limits()
TEXTURES_TOGETHER = 4


class PictureError(InputError):
    """A picture that a mesh file names cannot be read; the message has the cause."""


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file.

    Args:
        path: the file. Links are followed.
        limit: the most bytes it may have.

    Returns:
        Its content.

    Raises:
        InputError: where it is missing, a folder, a device, a pipe, too large or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {system_reason(error)}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"'{path}' is no regular file")
        if status.st_size > limit:
            raise InputError(f"'{path}' has {status.st_size} bytes; at most {limit} are read")
        return file.read(status.st_size)


def decode_text(content: bytes) -> str:
    """A text file of any of the encodings that exporters use; bytes that are none stay as surrogates."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


class Folder:
    """The folder of a mesh file, and what may be read by name from it.

    Args:
        mesh: the mesh file.
        above: how many folders above the mesh's own are open as well (1: `../images/x.png` is found).
    """

    def __init__(self, mesh: Path, above: int = 0):
        self.own = mesh.parent
        self.root = mesh.parent.resolve()
        for _ in range(above):
            self.root = self.root.parent

    def find(self, name: str, base: Path | None = None) -> Path | None:
        """Find a regular file by the name that another file gives.

        Args:
            name: a relative path with / or backslashes.
            base: the folder that it is relative to; None for the mesh's own.

        Returns:
            The file; None where there is none, or it is outside. Where the case of letters differs, the one file that
            differs in nothing else.
        """
        name = name.replace("\\", "/")
        if not name or "\0" in name or name.startswith("/") or ":" in name.split("/", 1)[0]:
            return None
        try:
            for path in ((base or self.own) / name, _other_case((base or self.own) / name)):
                if path is not None and path.is_file() and path.resolve().is_relative_to(self.root):
                    return path
        except (OSError, ValueError, RuntimeError):  # a name too long, or one that the file system cannot have
            return None
        return None

    def read_uri(self, uri: str, limit: int) -> bytes:
        """Read the file that a URI names; raises InputError where it is outside, missing or no regular file."""
        path = self.find(unquote(uri)) or self.find(uri)
        if path is None:
            raise InputError(f"'{shorten(uri)}' is not a regular file in the mesh's folder")
        return read_regular(path, limit)


def _other_case(path: Path) -> Path | None:
    if not path.parent.is_dir():
        return None
    found = [entry for entry in path.parent.iterdir() if entry.name.lower() == path.name.lower()]
    return found[0] if len(found) == 1 else None


class Pictures:
    """The pictures of one mesh file. Equal ones are decoded once, however often and by whatever name they are used.

    Args:
        limits: their largest size.
    """

    def __init__(self, limits: Limits = LIMITS):
        self.limits = limits
        self._decoded: dict[bytes, NDArray[np.uint8]] = {}
        self._left = limits.texture_pixels * TEXTURES_TOGETHER

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Decode a texture.

        Args:
            content: an image file.

        Returns:
            [h,w,4] uint8, straight alpha; the same array for the same content.

        Raises:
            PictureError: where it is not a picture, broken, too large, or too large together with those before.
        """
        key = hashlib.sha256(content).digest()
        if key not in self._decoded:
            self._decoded[key] = _decode_picture(content, self.limits.texture_pixels, self._left)
            self._left -= self._decoded[key][..., 0].size
        return self._decoded[key]


def _decode_picture(content: bytes, most: int, left: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                width, height = picture.size
                if width * height > most:
                    raise PictureError(f"{width} x {height} pixels are more than {most}")
                if width * height > left:
                    raise PictureError(f"the file's pictures have more than {most * TEXTURES_TOGETHER} pixels together")
                if picture.mode.startswith("I;16"):
                    grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
                    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
                if picture.mode in ("I", "F"):
                    raise PictureError(f"pixels of kind {picture.mode} are not colours")
                return np.asarray(picture.convert("RGBA"))
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        kind = "KTX2 is not read" if content[1:7] == b"KTX 20" else "it is not a picture that can be decoded"
        raise PictureError(kind) from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, Image.DecompressionBombError) as error:
        raise PictureError(f"it cannot be decoded: {first_line(error)}") from error
