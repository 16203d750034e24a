"""Outlines of toon shading: a shell turned inside out around the object, of which glTF draws the far side alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova3d.rendering.parts import Part

VOLUME = 0.02  # of its box: what an outline holds at least, counted negative
SIZE = 1.5  # times what is inside: a larger shell is a room or a sky


@dataclass(frozen=True)
class _Group:
    """The faces of one material: its parts, its box and its signed volume."""

    members: list[int]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    volume: float

    def encloses(self, other: "_Group") -> bool:
        margin = 1e-3 * (self.high - self.low).max()
        return bool((other.low >= self.low - margin).all() and (other.high <= self.high + margin).all())


def inverted_hulls(parts: list[Part]) -> list[bool]:
    """Find the parts that are an outline.

    An outline has a material of its own whose back faces are not drawn. Its faces are turned inside out, and it is
    little larger than what it encloses, which is turned outwards.

    Args:
        parts: of one mesh, each with a triangle.

    Returns:
        Whether each part is one.
    """
    found = [False] * len(parts)
    if all(part.material.double_sided for part in parts):
        return found
    members: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        members.setdefault(id(part.material), []).append(index)
    groups = [_group(parts, indices) for indices in members.values()] if len(members) > 1 else []
    for group in groups:
        if parts[group.members[0]].material.double_sided:
            continue
        size = group.high - group.low
        inside = [other for other in groups if other is not group and other.volume > 0 and group.encloses(other)]
        if not inside or group.volume >= -VOLUME * float(np.prod(size)):
            continue
        low, high = np.min([g.low for g in inside], axis=0), np.max([g.high for g in inside], axis=0)
        if size.max() <= SIZE * (high - low).max():
            for index in group.members:
                found[index] = True
    return found


def _group(parts: list[Part], indices: list[int]) -> _Group:
    corners = np.concatenate([parts[index].positions[parts[index].faces] for index in indices])  # f 3 3
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    a, b, c = np.moveaxis(corners - (low + high) / 2, 1, 0)
    return _Group(indices, low, high, float((np.cross(a, b) * c).sum() / 6))
