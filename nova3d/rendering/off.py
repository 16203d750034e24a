"""OFF: polygons in text, with the colours of vertices (COFF) or of faces."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.rendering.file_access import LIMITS, Limits, decode_text, read_regular
from nova3d.rendering.parts import Material, Part, Scene, srgb_colours
from nova3d.rendering.triangulate import triangulate_all


def read_off(path: Path, limits: Limits = LIMITS) -> Scene:
    """Read an OFF file.

    Args:
        path: the file.
        limits: what it may cost.

    Returns:
        One part.

    Raises:
        InputError: where it is not a text OFF file.
        ValueError: where it is broken.
    """
    text = decode_text(read_regular(path, limits.file_bytes))
    lines = [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines or "OFF" not in lines[0][:6].upper() or "BINARY" in lines[0].upper():
        raise InputError("it is not an OFF file in text")
    kind, _, counts = lines[0].upper().partition("OFF")
    if kind.strip("STCN"):
        raise InputError(f"OFF files of kind {kind}OFF are not read")
    if counts.strip():
        lines = lines[1:]
    else:
        counts, lines = (lines[1] if len(lines) > 1 else ""), lines[2:]
    numbers = [int(word) for word in counts.split()[:2]]
    if len(numbers) < 2 or min(numbers) < 0 or sum(numbers) > len(lines):
        raise ValueError(f"it has {len(lines)} lines for {' and '.join(map(str, numbers))} vertices and faces")
    vertices, faces = numbers
    rows = [line.split() for line in lines[:vertices]]
    positions = np.array([row[:3] for row in rows], np.float64).reshape(vertices, 3)
    normals = np.array([row[3:6] for row in rows], np.float64).reshape(vertices, 3) if "N" in kind else None
    first = 6 if "N" in kind else 3
    colours = _colours([row[first : first + 3] for row in rows]) if "C" in kind else None
    polygons = [line.split() for line in lines[vertices : vertices + faces]]
    sizes = np.array([int(words[0]) for words in polygons], np.int64)
    named = [(words, int(words[0])) for words in polygons]
    if any(not 0 <= size < len(words) for words, size in named):
        raise ValueError("a face has fewer corners than its count")
    corners = np.array([int(word) for words, size in named for word in words[1 : size + 1]], np.int64)
    if len(corners) and not 0 <= int(corners.min()) <= int(corners.max()) < vertices:
        raise ValueError(f"a face names vertex {int(corners.max())} of {vertices}")
    if int(np.maximum(sizes - 2, 0).sum()) > limits.triangles:
        raise ValueError(f"it has more than {limits.triangles} triangles")
    triangles, source = triangulate_all(sizes, positions[corners])
    triangles = corners[triangles]
    own = [words[size + 1 : size + 4] for words, size in named]
    if colours is None and own and all(len(colour) == 3 for colour in own):
        colours = np.repeat(_colours(own)[source], 3, axis=0)
        positions = positions[triangles.reshape(-1)]
        normals = None if normals is None else normals[triangles.reshape(-1)]
        triangles = np.arange(len(positions)).reshape(-1, 3)
    return Scene([Part(positions, triangles, Material(), normals, None, colours)])


def _colours(words: list[list[str]]) -> NDArray[np.float64]:
    """Linear RGBA [n,4]; numbers with a point are fractions, others 0 to 255."""
    values = np.array(words, np.float64).reshape(len(words), 3)
    fractions = any("." in word for row in words for word in row)
    return srgb_colours(values if fractions else values / 255)
