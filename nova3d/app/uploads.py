"""What visitors upload: checked before it is decoded, copied to a folder of the session, and unpacked within it."""

import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from nova3d import images
from nova3d.errors import InputError, first_line
from nova3d.utils.files import inside, to_component, writable_folder

VIEW_SUFFIXES = (*images.IMAGE_SUFFIXES, *images.ANIMATION_SUFFIXES, *images.VIDEO_SUFFIXES, ".json")
MOST_FILES = 500  # of one set of views
MOST_VIEW_MEGAPIXELS = 200.0  # of all pictures of one set of views
_UNPACKED = 4  # times the size limit of an upload
_CHUNK = 1 << 20


def take_picture(upload: str | Path, folder: str | Path) -> Path:
    """Copy an uploaded picture, which is not opened here.

    Args:
        upload: the file.
        folder: where it goes.

    Returns:
        The copy, under the upload's own name as far as that can be one.

    Raises:
        InputError: where its suffix is none of PICTURE_SUFFIXES.
    """
    upload = Path(upload)
    if upload.suffix.lower() not in images.PICTURE_SUFFIXES:
        kinds = ", ".join(suffix[1:].upper() for suffix in images.PICTURE_SUFFIXES)
        raise InputError(f"'{upload.name}' is no picture: {kinds} are read")
    copy = writable_folder(folder) / to_component(upload.name)
    shutil.copyfile(upload, copy)
    return copy


def take_views(uploads: Sequence[str | Path], folder: str | Path, most_bytes: int) -> Path:
    """Copy uploaded views to a new folder, zip files unpacked.

    Args:
        uploads: files with suffixes of VIEW_SUFFIXES, and zip files of such.
        folder: the folder to make; what it held before is removed.
        most_bytes: the most of one upload. All of them together unpack to four times that at most.

    Returns:
        The folder to read: `folder`, or the one folder that a zip file holds.

    Raises:
        InputError: where there are no views, too many files, bytes or pixels, a zip file that is damaged or encrypted,
            or one that names a file outside its folder.
    """
    target, left = Path(folder), _UNPACKED * most_bytes
    if target.exists():
        shutil.rmtree(target)
    writable_folder(target)
    for upload in map(Path, uploads):
        if upload.suffix.lower() == ".zip":
            left -= _unpack(upload, target, left)
        elif upload.suffix.lower() in VIEW_SUFFIXES:
            left -= upload.stat().st_size
            _check_left(left, upload.name)
            shutil.copyfile(upload, target / to_component(upload.name))
        else:
            raise InputError(f"'{upload.name}' is no view: pictures, videos, transforms.json and zip files are read")
    pictures = [path for path in target.rglob("*") if path.is_file()]
    if not pictures:
        raise InputError("the upload holds no views")
    if len(pictures) > MOST_FILES:
        raise InputError(f"the upload holds {len(pictures)} files; at most {MOST_FILES} are read")
    sizes = [images.image_size(path) for path in pictures if path.suffix.lower() in images.IMAGE_SUFFIXES]
    if (total := sum(width * height for width, height in sizes) / 1e6) > MOST_VIEW_MEGAPIXELS:
        raise InputError(
            f"the views have {total:.0f} million pixels together; at most {MOST_VIEW_MEGAPIXELS:.0f} million are read"
        )
    while len(entries := list(target.iterdir())) == 1 and entries[0].is_dir():
        target = entries[0]
    return target


def _unpack(archive: Path, folder: Path, most_bytes: int) -> int:
    """Unpack the views of a zip file into `folder`; returns the bytes that were written."""
    written = 0
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > 4 * MOST_FILES:
                raise InputError(f"'{archive.name}' holds {len(entries)} files; at most {MOST_FILES} are read")
            for entry in entries:
                parts = entry.filename.split("/")
                if parts[0] == "__MACOSX" or parts[-1].startswith("."):  # what archivers of macOS add
                    continue
                path = inside(folder, entry.filename, f"entry of '{archive.name}'")
                if stat.S_ISLNK(entry.external_attr >> 16) or path.suffix.lower() not in VIEW_SUFFIXES:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, path.open("wb") as file:
                    while chunk := source.read(_CHUNK):  # sizes that the zip file states are not believed
                        written += len(chunk)
                        _check_left(most_bytes - written, archive.name)
                        file.write(chunk)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        # RuntimeError: encrypted. NotImplementedError: another compression. OSError: a file where a folder must be.
        raise InputError(f"'{archive.name}' cannot be unpacked: {first_line(error)}") from error
    return written


def _check_left(left: int, name: str) -> None:
    if left < 0:
        raise InputError(f"'{name}' unpacks to more than is read: make the pictures smaller")
