"""Reads any mesh file: the suffix chooses the reader, and every refusal has a reason code."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nova3d.errors import InputError, first_line
from nova3d.rendering.file_access import LIMITS, Limits
from nova3d.rendering.gltf_scene import read_gltf
from nova3d.rendering.obj import read_obj
from nova3d.rendering.off import read_off
from nova3d.rendering.parts import Scene
from nova3d.rendering.ply import read_ply
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.rendering.trimesh_files import read_stl

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")  # what is read


def meshes_by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """The mesh files among some paths by the names of their objects, which are the files' without the suffix.

    Args:
        paths: any; folders and files without one of MESH_SUFFIXES are left out.

    Returns:
        Name -> file, sorted by names.

    Raises:
        InputError: where two meshes have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in paths if path.suffix.lower() in MESH_SUFFIXES and not path.is_dir()):
        if path.stem in found:
            both = f"'{found[path.stem].name}' and '{path.name}'"
            raise InputError(f"{both} of '{path.parent}' are both object '{path.stem}': rename or remove one")
        found[path.stem] = path
    return dict(sorted(found.items()))


def read_scene(path: str | Path, limits: Limits = LIMITS, finish: bool = False) -> Scene:
    """Read a mesh file.

    glTF's frame (+Y up, +Z front) is taken as it is. Nothing is welded or repaired.

    Args:
        path: a file with one of MESH_SUFFIXES.
        limits: what it may cost.
        finish: whether to read what only a path tracer draws.

    Returns:
        Its parts, with at least one triangle; all positions are finite and all faces name vertices that are there.

    Raises:
        RenderError: PARSE_ERROR where the file is missing, broken, of another kind than its suffix, or needs what
            is not read; DRACO for compressed geometry; EMPTY_SCENE where it has no triangle, or no extent.
    """
    path = Path(path)
    try:
        scene = _read(path, limits, finish)
        _check(scene)
    except (RenderError, MemoryError):
        raise
    except InputError as error:
        message = str(error) if str(path) in str(error) else f"mesh '{path}' cannot be read: {error}"
        raise RenderError(Reason.PARSE_ERROR, message) from error
    except Exception as error:  # parsers of foreign files raise anything
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        message = f"mesh '{path}' cannot be read: {kind}{first_line(error, 200)}"
        raise RenderError(Reason.PARSE_ERROR, message) from error
    if not any(len(part.faces) for part in scene.parts):
        raise RenderError(Reason.EMPTY_SCENE, f"mesh '{path}' has no triangles")
    low = np.min([part.positions[part.faces].min(axis=(0, 1)) for part in scene.parts if len(part.faces)], axis=0)
    high = np.max([part.positions[part.faces].max(axis=(0, 1)) for part in scene.parts if len(part.faces)], axis=0)
    if (high - low).max() <= 1e-12:
        raise RenderError(Reason.EMPTY_SCENE, f"mesh '{path}' has no extent: all its vertices coincide")
    return scene


def _read(path: Path, limits: Limits, finish: bool) -> Scene:
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise RenderError(Reason.PARSE_ERROR, f"mesh '{path}' {what}")
    match path.suffix.lower():
        case ".glb" | ".gltf":
            return read_gltf(path, limits, finish)
        case ".obj":
            return read_obj(path, limits)
        case ".ply":
            return read_ply(path, limits)
        case ".off":
            return read_off(path, limits)
        case ".stl":
            return read_stl(path, limits)
    raise InputError(f"files of this kind are not read; give one of {', '.join(MESH_SUFFIXES)}")


def _check(scene: Scene) -> None:
    for part in scene.parts:
        if not np.isfinite(part.positions).all():
            raise ValueError("it has vertices that are not finite numbers")
        if len(part.faces) and not 0 <= int(part.faces.min()) <= int(part.faces.max()) < len(part.positions):
            raise ValueError(f"a face names vertex {int(part.faces.max())} of {len(part.positions)}")
