"""Output folders: found to be writable before any long work begins."""

import tempfile
from pathlib import Path

from nova3d.errors import InputError


def writable_folder(path: str | Path) -> Path:
    """Make the folder `path` and prove that it can be written; raises InputError otherwise."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to '{folder}': {error.strerror or error}") from error
    return folder
