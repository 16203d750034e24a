"""Where a reconstruction writes, checked without torch."""

from pathlib import Path

from nova3d.errors import InputError
from nova3d.utils.files import writable_folder

SUFFIXES = (".glb", ".obj", ".ply", ".stl")


def check_output(path: str | Path, make: bool = True) -> Path:
    """Check, before the long work, that a mesh can be written, and make its folder.

    Args:
        path: the file, with a suffix of SUFFIXES.
        make: False leaves the disk as it is.

    Returns:
        The absolute path.

    Raises:
        InputError: where the suffix is unknown, the path is a folder or its folder cannot be written.
    """
    path = Path(path).absolute()
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output '{path.name}' must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"output '{path}' is a folder; give a file name such as '{path / 'mesh.glb'}'")
    writable_folder(path.parent, make)
    return path


def maps_folder(mesh_path: str | Path) -> Path:
    """The folder beside a mesh for what is not the mesh: NAME_fusion."""
    mesh_path = Path(mesh_path).absolute()
    return mesh_path.with_name(f"{mesh_path.stem}_fusion")
