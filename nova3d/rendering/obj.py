"""Wavefront OBJ: vertices, polygons, groups of one material; vertex colours beside a material."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nova3d.rendering.file_access import LIMITS, Folder, Limits, Pictures, decode_text, read_regular
from nova3d.rendering.mtl import MtlMaterial, read_mtl
from nova3d.rendering.parts import FileFacts, Material, Part, Scene, srgb_colours
from nova3d.rendering.triangulate import triangulate_all

_CONTINUED = re.compile(r"\\[ \t]*(\r\n?|\n)")
Corner = tuple[int, int, int]  # position, texture coordinate, normal: from 0, -1 where there is none


@dataclass
class _Content:
    """The lines of an OBJ file, by kind."""

    positions: list[list[str]] = field(default_factory=list)
    coordinates: list[list[str]] = field(default_factory=list)
    normals: list[list[str]] = field(default_factory=list)
    polygons: dict[str | None, list[list[Corner]]] = field(default_factory=dict)  # by the name of the material
    libraries: list[str] = field(default_factory=list)


def read_obj(path: Path, limits: Limits = LIMITS) -> Scene:
    """Read an OBJ file and the MTL files and pictures that it names, from its own folder or one beside it.

    Args:
        path: the .obj file.
        limits: what it may cost.

    Returns:
        One part per material, in the order of their first use.

    Raises:
        InputError: where a file cannot be read.
        ValueError: for a broken line, or a face whose corner is not in the file.
    """
    folder = Folder(path, above=1)
    content = _parse(decode_text(read_regular(path, limits.file_bytes)), limits)
    positions, colours = _positions(content.positions)
    coordinates = _table(content.coordinates, 2, pad=True)
    normals = _table(content.normals, 3)
    lists = (("vertex", positions), ("coordinate", coordinates), ("normal", normals))
    materials, absent = _libraries(content.libraries, folder, Pictures(limits))
    if None in content.polygons and len(content.polygons) == 1 and len(materials) == 1:
        materials[None] = next(iter(materials.values()))  # a library of one material, and no usemtl
    parts = []
    for name, polygons in content.polygons.items():
        found = materials.get(name)
        if found is None:
            found = MtlMaterial(Material(missing=_missing_library(name, absent)))
        corners = np.array([corner for polygon in polygons for corner in polygon], np.int64)
        for (kind, values), largest in zip(lists, corners.max(axis=0).tolist(), strict=True):
            if largest >= len(values):
                raise ValueError(f"a face names {kind} {largest + 1} of {len(values)}")
        sizes = np.array([len(polygon) for polygon in polygons])
        faces, _ = triangulate_all(sizes, positions[corners[:, 0]])
        # Out of the file's vertices, those of this material's faces.
        used, index = np.unique(corners, axis=0, return_inverse=True)
        uv = coordinates[used[:, 1]] * found.scale + found.offset if len(coordinates) else np.zeros((len(used), 2))
        uv[used[:, 1] < 0] = found.offset
        vectors = normals[used[:, 2]] if len(normals) else np.full((len(used), 3), np.nan)
        vectors[used[:, 2] < 0] = np.nan
        parts.append(
            Part(
                positions=positions[used[:, 0]],
                faces=index.reshape(-1)[faces],
                material=found.material,
                normals=vectors if (used[:, 2] >= 0).any() else None,
                uv=uv if found.material.picture is not None else None,
                colours=None if colours is None else colours[used[:, 0]],
            )
        )
    missing = dict.fromkeys(part.material.missing for part in parts if part.material.missing)
    return Scene(parts, FileFacts(missing_textures=tuple(missing)))


def _parse(text: str, limits: Limits) -> _Content:
    content = _Content()
    current: str | None = None
    triangles = 0
    for line in _lines(text):
        key, _, rest = line.partition(" ")
        match key:
            case "v":
                content.positions.append(rest.split())
            case "vt":
                content.coordinates.append(rest.split())
            case "vn":
                content.normals.append(rest.split())
            case "f" | "fo":
                polygon = _polygon(rest, content)
                if len(polygon) >= 3:
                    content.polygons.setdefault(current, []).append(polygon)
                    triangles += len(polygon) - 2
            case "usemtl":
                current = rest.strip()
            case "mtllib":
                content.libraries.append(rest.strip())
    if triangles > limits.triangles:
        raise ValueError(f"it has {triangles} triangles; at most {limits.triangles} are read")
    return content


def _lines(text: str) -> Iterator[str]:
    """The lines without comments, tabs as blanks, continued lines joined."""
    for line in _CONTINUED.sub(" ", text).replace("\r", "\n").split("\n"):
        line = line.replace("\t", " ").strip()
        if line and line[0] != "#":
            # A comment may end a line of numbers; the name of a file may hold '#'.
            yield line.partition("#")[0].rstrip() if line[0] in "vf" else line


def _polygon(text: str, content: _Content) -> list[Corner]:
    counts = len(content.positions), len(content.coordinates), len(content.normals)
    corners = []
    for token in text.split():
        numbers = token.split("/")
        if len(numbers) > 3:
            raise ValueError(f"'{token[:30]}' is not a corner of a face")
        corner = [_index(number, count) for number, count in zip(numbers, counts, strict=False)]
        if corner[0] < 0:
            raise ValueError(f"'{token[:30]}' is not a corner of a face")
        corners.append((corner[0], corner[1] if len(corner) > 1 else -1, corner[2] if len(corner) > 2 else -1))
    return corners


def _index(text: str, count: int) -> int:
    """An index from 0; -1 for an empty one. Negative ones count back from the last line before the face."""
    if not text:
        return -1
    number = int(text)
    index = number - 1 if number > 0 else count + number
    if number == 0 or index < 0:
        raise ValueError(f"a face names element {number} of {count}")
    return index  # those past the end are found when all lines are read: files may define them below


def _positions(rows: list[list[str]]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Positions [n,3], and linear RGBA [n,4] where lines carry colours after them; white where a line has none."""
    positions = _table(rows, 3)
    widths = np.array([len(row) for row in rows], np.int64)
    coloured = np.flatnonzero(widths >= 6)
    if len(coloured) == 0:
        return positions, None
    # Seven numbers: x y z r g b a, as all writers of colours put them; w is not used by any of them.
    given = np.array([rows[k][3:6] for k in coloured], np.float64)
    colours = np.ones((len(rows), 4))
    colours[coloured] = srgb_colours(given / 255 if np.nanmax(given, initial=0) > 1 else given)
    return positions, colours


def _table(rows: list[list[str]], width: int, pad: bool = False) -> NDArray[np.float64]:
    """The first `width` numbers of every line; missing ones are 0 where `pad` is set."""
    try:
        return np.array([row[:width] for row in rows], np.float64).reshape(len(rows), width)
    except ValueError:
        padded = [(row + ["0"] * width)[:width] if pad and row else row[:width] for row in rows]
        short = next((row for row in padded if len(row) < width or not all(_is_number(cell) for cell in row)), None)
        if short is not None:
            raise ValueError(f"'{' '.join(short)[:40]}' is not a list of {width} numbers") from None
        return np.array(padded, np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _libraries(names: list[str], folder: Folder, pictures: Pictures) -> tuple[dict[str | None, MtlMaterial], list[str]]:
    """The materials of all MTL files, by name, and the names of the files that are not there."""
    materials: dict[str | None, MtlMaterial] = {}
    absent = []
    for line in names:
        candidates = [line] if folder.find(line) else line.split()  # one name with blanks, or several
        for name in candidates:
            path = folder.find(name) or folder.find(name.replace("\\", "/").rpartition("/")[2])
            if path is None:
                absent.append(name)
            else:
                materials.update(read_mtl(path, folder, pictures))
    return materials, absent


def _missing_library(name: str | None, absent: list[str]) -> str:
    """What is missing where the material `name` is not defined: the library that would define it."""
    return f"'{absent[0]}': the file is not there" if name is not None and absent else ""
