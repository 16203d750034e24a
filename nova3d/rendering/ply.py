"""PLY: vertices, polygons and strips, with normals, colours and textures, in ASCII and both binary orders."""

import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.rendering.file_access import LIMITS, Folder, Limits, PictureError, Pictures, read_regular
from nova3d.rendering.parts import FileFacts, Material, Part, Scene, srgb_colours
from nova3d.rendering.triangulate import triangulate_all
from nova3d.utils.text import shorten

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8"}
_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_END = re.compile(rb"^end_header[ \t]*\r?\n?", re.MULTILINE)
_COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str  # of the value, or of a list's items
    count: str | None  # of a list's length


@dataclass
class _Element:
    name: str
    length: int
    properties: list[_Property]


@dataclass(frozen=True)
class _Lists:
    """Lists of different lengths: all items one after another, and the lengths."""

    items: NDArray[Any]
    sizes: NDArray[np.int64]


Columns = dict[str, Any]  # by the name of a property: an array, or _Lists


def read_ply(path: Path, limits: Limits = LIMITS) -> Scene:
    """Read a PLY file.

    A texture (`comment TextureFile`) is shown alone: vertex colours beside it are usually its own, coarsely sampled.

    Args:
        path: the file.
        limits: what it may cost.

    Returns:
        One part per texture.

    Raises:
        InputError: where it is not a PLY file.
        ValueError: where it is broken.
    """
    content = read_regular(path, limits.file_bytes)
    end = _END.search(content)
    if not content.startswith(b"ply") or end is None:
        raise InputError("it is not a PLY file")
    order, elements, textures = _header(content[: end.start()].decode("latin-1"))
    body = _ascii(content[end.end() :], elements) if order is None else _binary(content, end.end(), order, elements)
    vertex, face = body.get("vertex", {}), body.get("face", {})
    if not all(axis in vertex for axis in "xyz"):
        return Scene([])
    positions = np.stack([vertex[axis] for axis in "xyz"], axis=1).astype(np.float64)
    polygons = face.get("vertex_indices", face.get("vertex_index"))
    if polygons is None and "tristrips" in body:
        strips = body["tristrips"].get("vertex_indices", body["tristrips"].get("vertex_index"))
        polygons, face = (None if strips is None else _strips(strips.items.astype(np.int64))), {}
    if polygons is None or not len(polygons.sizes):
        return Scene([])
    return _scene(positions, vertex, face, polygons, _pictures(textures, Folder(path), limits), limits)


def _scene(
    positions: NDArray[np.float64],
    vertex: Columns,
    face: Columns,
    polygons: _Lists,
    pictures: list[Material],
    limits: Limits,
) -> Scene:
    corners = polygons.items.astype(np.int64)
    if int(np.maximum(polygons.sizes - 2, 0).sum()) > limits.triangles:
        raise ValueError(f"it has more than {limits.triangles} triangles")
    if len(corners) and not 0 <= int(corners.min()) <= int(corners.max()) < len(positions):
        raise ValueError(f"a face names vertex {int(corners.max())} of {len(positions)}")
    triangles, source = triangulate_all(polygons.sizes, positions[corners])
    normals = _stack(vertex, ("nx", "ny", "nz"))
    uv = next((found for names in _COORDINATES if (found := _stack(vertex, names)) is not None), None)
    colours = _colours(vertex)
    faces = corners[triangles]
    own = _wedges(face, polygons), _colours(face)
    if own[0] is not None or (own[1] is not None and colours is None):  # values per corner: none are shared
        uv = own[0][triangles.reshape(-1)] if own[0] is not None else (None if uv is None else uv[faces.reshape(-1)])
        if own[1] is not None and colours is None:
            colours = np.repeat(own[1][source], 3, axis=0)
        elif colours is not None:
            colours = colours[faces.reshape(-1)]
        normals = None if normals is None else normals[faces.reshape(-1)]
        positions = positions[faces.reshape(-1)]
        faces = np.arange(len(positions)).reshape(-1, 3)
    number = face["texnumber"][source].astype(np.int64) if "texnumber" in face else np.zeros(len(faces), np.int64)
    parts, missing = [], []
    for index, material in enumerate(pictures or [Material()]):
        mine = faces[number == index] if len(pictures) > 1 else faces
        if not len(mine):
            continue
        if material.picture is not None and uv is None:
            material = Material(missing="the texture: the mesh has no coordinates for it")
        if material.missing:
            missing.append(material.missing)
        shown = material.picture is not None
        part = Part(positions, mine, material, normals, uv if shown else None, None if shown else colours)
        parts.append(_with_own_vertices(part) if len(pictures) > 1 else part)
    return Scene(parts, FileFacts(missing_textures=tuple(dict.fromkeys(missing))))


def _with_own_vertices(part: Part) -> Part:
    """The part with the vertices alone that its faces use."""
    used, index = np.unique(part.faces, return_inverse=True)
    normals, uv, colours = (None if v is None else v[used] for v in (part.normals, part.uv, part.colours))
    faces = index.reshape(part.faces.shape)
    return replace(part, positions=part.positions[used], faces=faces, normals=normals, uv=uv, colours=colours)


def _pictures(names: list[str], folder: Folder, limits: Limits) -> list[Material]:
    materials, pictures = [], Pictures(limits)
    for name in names:
        found = folder.find(name) or folder.find(name.replace("\\", "/").rpartition("/")[2])
        try:
            if found is None:
                raise PictureError("the file is not there")
            materials.append(Material(picture=pictures.decode(read_regular(found, limits.file_bytes))))
        except InputError as error:
            materials.append(Material(missing=f"'{shorten(name)}': {error}"))
    return materials


def _header(text: str) -> tuple[str | None, list[_Element], list[str]]:
    """The byte order (None for ASCII), the elements, and the names of textures."""
    order: str | None = None
    elements: list[_Element] = []
    textures = []
    for line in text.splitlines()[1:]:
        words = line.split()
        match words[:1]:
            case ["format"]:
                order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[words[1]]
            case ["comment"] if len(words) > 2 and words[1] == "TextureFile":
                textures.append(line.split(None, 2)[2].strip())
            case ["element"]:
                length = int(words[2])
                if length < 0:
                    raise ValueError(f"the element {shorten(words[1], 20)} has {length} entries")
                elements.append(_Element(words[1], length, []))
            case ["property"] if words[1] == "list":
                elements[-1].properties.append(_Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
            case ["property"]:
                elements[-1].properties.append(_Property(words[2], _TYPES[words[1]], None))
    return order, elements, textures


def _binary(content: bytes, start: int, order: str, elements: list[_Element]) -> dict[str, Columns]:
    body: dict[str, Columns] = {}
    for element in elements:
        least = sum(np.dtype(p.count or p.kind).itemsize for p in element.properties)
        if element.length * least > len(content) - start:
            raise ValueError(f"its {element.length} entries of '{shorten(element.name, 20)}' are not all there")
        rows, size = _rows_alike(content, start, order, element)
        if rows is None:
            columns, size = _rows_one_by_one(content, start, order, element)
        else:
            columns = {}
            for p in element.properties:
                values = rows[p.name]
                if p.count:
                    lengths = np.full(element.length, values.shape[1], np.int64)
                    columns[p.name] = _Lists(values.reshape(-1), lengths)
                else:
                    columns[p.name] = values
        body.setdefault(element.name, columns)
        start += size
    return body


def _rows_alike(content: bytes, start: int, order: str, element: _Element) -> tuple[NDArray[Any] | None, int]:
    """All rows at once where every list is as long as in the first row; None otherwise. And their bytes."""
    fields: list[tuple[Any, ...]] = []
    offset = start
    for p in element.properties:
        if p.count and element.length:
            kind = np.dtype(order + p.count)
            if offset + kind.itemsize > len(content):
                raise ValueError("it ends within a list")
            length = int(np.frombuffer(content, kind, 1, offset)[0])
            offset += kind.itemsize + length * np.dtype(p.kind).itemsize
            fields += [(f"length of {p.name}", order + p.count), (p.name, order + p.kind, (length,))]
        else:
            offset += np.dtype(p.kind).itemsize
            fields.append((p.name, order + p.kind, (0,)) if p.count else (p.name, order + p.kind))
    dtype = np.dtype(fields)
    if start + dtype.itemsize * element.length > len(content):
        return None, 0
    rows = np.frombuffer(content, dtype, element.length, start)
    for p in element.properties:
        if p.count and element.length and (rows[f"length of {p.name}"] != rows[p.name].shape[1]).any():
            return None, 0
    return rows, dtype.itemsize * element.length


def _rows_one_by_one(content: bytes, start: int, order: str, element: _Element) -> tuple[Columns, int]:
    letters = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
    letters |= {"i8": "q", "u8": "Q"}
    values: dict[str, list[Any]] = {p.name: [] for p in element.properties}
    sizes: dict[str, list[int]] = {p.name: [] for p in element.properties}
    offset = start
    try:
        for _ in range(element.length):
            for p in element.properties:
                count = 1
                if p.count:
                    (count,) = struct.unpack_from(order + letters[p.count], content, offset)
                    offset += np.dtype(p.count).itemsize
                    if not 0 <= count <= len(content):
                        raise ValueError(f"a list has {count} items")
                    sizes[p.name].append(count)
                values[p.name] += struct.unpack_from(f"{order}{count}{letters[p.kind]}", content, offset)
                offset += count * np.dtype(p.kind).itemsize
    except struct.error as error:
        raise ValueError(f"it ends before its {element.length} entries of '{shorten(element.name, 20)}'") from error
    return _columns(element, values, sizes), offset - start


def _ascii(content: bytes, elements: list[_Element]) -> dict[str, Columns]:
    """One line per entry. Words beyond the properties are left out: some writers put more than they declare."""
    lines = [line for line in content.splitlines() if line.strip()]
    body: dict[str, Columns] = {}
    line_number = 0
    for element in elements:
        if element.length > len(lines) - line_number:
            raise ValueError(f"its {element.length} entries of '{shorten(element.name, 20)}' are not all there")
        rows = [line.split() for line in lines[line_number : line_number + element.length]]
        line_number += element.length
        values: dict[str, list[Any]] = {p.name: [] for p in element.properties}
        sizes: dict[str, list[int]] = {p.name: [] for p in element.properties}
        for words in rows:
            place = 0
            for p in element.properties:
                count = 1
                if p.count:
                    count = int(words[place])
                    place += 1
                    sizes[p.name].append(count)
                if not 0 <= count <= len(words) - place:
                    raise ValueError(f"an entry of '{shorten(element.name, 20)}' has {len(words)} words")
                values[p.name] += words[place : place + count]
                place += count
        body.setdefault(element.name, _columns(element, values, sizes))
    return body


def _columns(element: _Element, values: dict[str, list[Any]], sizes: dict[str, list[int]]) -> Columns:
    columns: Columns = {}
    for p in element.properties:
        items = np.array(values[p.name]).astype(np.float64).astype(p.kind) if values[p.name] else np.zeros(0, p.kind)
        columns[p.name] = _Lists(items, np.array(sizes[p.name], np.int64)) if p.count else items
    return columns


def _strips(items: NDArray[np.int64]) -> _Lists:
    """Triangles of strips that are separated by -1."""
    triangles = []
    for strip in np.split(items, np.flatnonzero(items < 0)):
        strip = strip[strip >= 0]
        if len(strip) >= 3:
            faces = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1)
            faces[1::2] = faces[1::2][:, [0, 2, 1]]
            triangles.append(faces)
    corners = np.concatenate(triangles).reshape(-1) if triangles else np.zeros(0, np.int64)
    return _Lists(corners, np.full(len(corners) // 3, 3, np.int64))


def _stack(columns: Columns, names: tuple[str, ...]) -> NDArray[np.float64] | None:
    if not all(isinstance(columns.get(name), np.ndarray) for name in names):
        return None
    return np.stack([columns[name].astype(np.float64) for name in names], axis=1)


def _colours(columns: Columns) -> NDArray[np.float64] | None:
    """Linear RGBA [n,4] of sRGB integers, or of fractions; opaque: alpha of a scan is not translucency."""
    names = next((names for names in _COLOURS if all(name in columns for name in names)), None)
    found = None if names is None else _stack(columns, names)
    if names is None or found is None:
        return None
    kind = columns[names[0]].dtype
    return srgb_colours(found / (np.iinfo(kind).max if kind.kind in "iu" else 1))


def _wedges(face: Columns, polygons: _Lists) -> NDArray[np.float64] | None:
    """Texture coordinates [c,2] of every corner, where faces carry them."""
    found = face.get("texcoord")
    if not isinstance(found, _Lists) or not (found.sizes == 2 * polygons.sizes).all():
        return None
    return found.items.astype(np.float64).reshape(-1, 2)
