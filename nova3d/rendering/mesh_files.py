"""The header of a mesh file: checks and facts that every engine shares, so that all refuse the same broken files."""

import base64
import codecs
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import parse_json

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")  # what load_mesh reads
_GLB_MAGIC = b"glTF"
_JSON_CHUNK = 0x4E4F534A
_FLOAT = 5126
_COMPRESSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")


@dataclass(frozen=True)
class FileFacts:
    """The facts in the header of a mesh file.

    Attributes:
        animations: how many.
        skins: how many.
        compression: the glTF extension that compresses the geometry, "" without.
        missing_textures: how many pictures the file names that are not there.
    """

    animations: int = 0
    skins: int = 0
    compression: str = ""
    missing_textures: int = 0


NO_FACTS = FileFacts()


def inspect_file(path: str | Path) -> FileFacts:
    """Read the header of a mesh file.

    Args:
        path: a .glb, .gltf or .obj; files of other formats have no facts.

    Returns:
        The facts.

    Raises:
        RenderError: PARSE_ERROR, where the file is missing, truncated, not what its name says, or has positions that
            are not finite numbers (which Blender would silently move to the origin).
    """
    path = Path(path)
    if not path.is_file():
        raise RenderError(Reason.PARSE_ERROR, f"mesh '{path}' does not exist")
    match path.suffix.lower():
        case ".glb" | ".gltf":
            header, binary = _read_gltf(path)
            try:
                _check_positions(header, binary, path)
                return _gltf_facts(header, path.parent)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
                message = f"mesh '{path}' cannot be read: {type(error).__name__}: {error}"
                raise RenderError(Reason.PARSE_ERROR, message) from error
        case ".obj":
            return FileFacts(missing_textures=len(_missing_obj_textures(path)))
    return FileFacts()


def _read_gltf(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the JSON, and the binary chunk of a GLB."""
    content, binary = path.read_bytes(), b""
    if path.suffix.lower() == ".glb":
        if len(content) < 20 or content[:4] != _GLB_MAGIC:
            raise RenderError(Reason.PARSE_ERROR, f"mesh '{path}' cannot be read: it is not a GLB file")
        _, length, chunk, kind = struct.unpack_from("<4I", content, 4)
        if length > len(content):
            raise RenderError(
                Reason.PARSE_ERROR, f"mesh '{path}' cannot be read: truncated, {len(content)} of {length} bytes"
            )
        if kind != _JSON_CHUNK:
            raise RenderError(Reason.PARSE_ERROR, f"mesh '{path}' cannot be read: its first chunk is not JSON")
        content, binary = content[20 : 20 + chunk], content[20 + chunk + 8 : length]
    try:
        header = parse_json(content.removeprefix(codecs.BOM_UTF8), dict, f"mesh '{path}'")
    except InputError as error:
        raise RenderError(Reason.PARSE_ERROR, str(error)) from error
    return header, binary


def _check_positions(header: dict[str, Any], binary: bytes, path: Path) -> None:
    """Raise RenderError where an uncompressed position of a mesh is NaN or infinite."""
    primitives = [p for mesh in header.get("meshes", ()) for p in mesh["primitives"]]
    buffers: dict[int, bytes] = {}
    for index in sorted({p["attributes"]["POSITION"] for p in primitives if "POSITION" in p["attributes"]}):
        accessor = header["accessors"][index]
        if accessor["componentType"] != _FLOAT or "bufferView" not in accessor:
            continue
        view = header["bufferViews"][accessor["bufferView"]]
        if view["buffer"] not in buffers:
            buffers[view["buffer"]] = _buffer(header["buffers"][view["buffer"]].get("uri"), binary, path.parent)
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        step, count = view.get("byteStride", 12), accessor["count"]
        positions: np.ndarray = np.ndarray((count, 3), "<f4", buffers[view["buffer"]], start, (step, 4))
        if not np.isfinite(positions).all():
            raise RenderError(Reason.PARSE_ERROR, f"mesh '{path}' has vertices that are not finite numbers")


def _buffer(uri: str | None, binary: bytes, folder: Path) -> bytes:
    if uri is None:
        return binary
    return base64.b64decode(uri.partition(",")[2]) if uri.startswith("data:") else (folder / unquote(uri)).read_bytes()


def _gltf_facts(header: dict[str, Any], folder: Path) -> FileFacts:
    named = {*header.get("extensionsUsed", ()), *header.get("extensionsRequired", ())}
    uris = [image.get("uri", "data:") for image in header.get("images", ())]
    return FileFacts(
        animations=len(header.get("animations", ())),
        skins=len(header.get("skins", ())),
        compression=next((name for name in _COMPRESSIONS if name in named), ""),
        missing_textures=sum(not uri.startswith("data:") and not (folder / unquote(uri)).is_file() for uri in uris),
    )


def _missing_obj_textures(path: Path) -> set[str]:
    missing = set()
    for library in _obj_values(path, b"mtllib"):
        materials = path.parent / library
        if materials.is_file():
            pictures = {value.split()[-1] for value in _obj_values(materials, b"map_Kd")}
            missing |= {name for name in pictures if not (materials.parent / name).is_file()}
    return missing


def _obj_values(path: Path, key: bytes) -> list[str]:
    """Return what follows `key` on the lines that begin with it."""
    with path.open("rb") as lines:
        found = [line.strip()[len(key) :] for line in lines if line.strip().startswith(key + b" ")]
    return [value.decode(errors="replace").strip() for value in found]
