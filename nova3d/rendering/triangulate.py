"""Polygons as triangles: fans where they are convex, ears where they are not."""

import numpy as np
from numpy.typing import NDArray

CORNERS = 20_000  # of one polygon that is not convex; clipping takes time with the square of it


def triangulate(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cut polygons of equally many corners into triangles.

    Args:
        points: [p,k,3], p polygons of k corners in order; nearly plane, without holes.

    Returns:
        [p,k-2,3] indices 0...k-1 of corners, turning as the polygons do.

    Raises:
        ValueError: where a polygon that is not convex has more than CORNERS corners.
    """
    count, corners = points.shape[:2]
    fan = np.stack([np.zeros(corners - 2, np.int64), np.arange(1, corners - 1), np.arange(2, corners)], axis=1)
    triangles = np.broadcast_to(fan, (count, corners - 2, 3)).copy()
    if corners == 3 or count == 0:
        return triangles
    normal, turns = _turns(points)
    for index in np.flatnonzero((turns < 0).any(axis=1)):
        triangles[index] = _clip_ears(points[index], normal[index])
    return triangles


def triangulate_all(
    sizes: NDArray[np.int64], points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut polygons of any sizes into triangles.

    Args:
        sizes: [p] their corners; one of fewer than three has no triangle.
        points: [c,3], the corners of all, one polygon after another.

    Returns:
        [f,3] indices of `points`, in the order of the polygons, and [f] the polygon of each triangle.
    """
    count = np.maximum(sizes - 2, 0)
    starts, first = np.cumsum(sizes) - sizes, np.cumsum(count) - count
    faces = np.zeros((int(count.sum()), 3), np.int64)
    for size in np.unique(sizes[sizes >= 3]).tolist():
        these = np.flatnonzero(sizes == size)
        loops = starts[these, None] + np.arange(size)
        triangles = triangulate(points[loops]).reshape(len(these), -1)
        corners = np.take_along_axis(loops, triangles, axis=1)
        faces[first[these, None] + np.arange(size - 2)] = corners.reshape(len(these), size - 2, 3)
    return faces, np.repeat(np.arange(len(sizes)), count)


def _turns(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Newell's normals [p,3], and how far each corner [p,k] turns left about them."""
    centred = points - points.mean(axis=1, keepdims=True)
    normal = np.cross(centred, np.roll(centred, -1, axis=1)).sum(axis=1)
    before, after = centred - np.roll(centred, 1, axis=1), np.roll(centred, -1, axis=1) - centred
    turns = (np.cross(before, after) * normal[:, None]).sum(axis=-1)
    # A straight corner is not an inner one, whatever its last bits say.
    noise = 1e-9 * (normal**2).sum(axis=-1, keepdims=True)
    return normal, np.where(np.abs(turns) > noise, turns, 0)


def _clip_ears(points: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ear clipping of one polygon [k,3] in the plane across `normal`."""
    if len(points) > CORNERS:
        raise ValueError(f"a polygon with an inner corner has {len(points)} corners; at most {CORNERS} are read")
    drop = int(np.abs(normal).argmax())
    first, second = (drop + 1) % 3, (drop + 2) % 3
    flat = points[:, [first, second]] * [1, np.sign(normal[drop])]  # counter-clockwise
    left, triangles, corner, tries = list(range(len(points))), [], 0, 0
    while len(left) > 3:
        size = len(left)
        trio = [left[corner - 1], left[corner % size], left[(corner + 1) % size]]
        # After a round without an ear (a polygon that crosses itself) any corner is cut, so that this ends.
        if tries >= size or _is_ear(flat, trio, left):
            triangles.append(trio)
            del left[corner]
            corner, tries = (corner - 1) % len(left) if corner else 0, 0
        else:
            corner, tries = (corner + 1) % size, tries + 1
    return np.array([*triangles, left], np.int64)


def _is_ear(flat: NDArray[np.float64], trio: list[int], left: list[int]) -> bool:
    a, b, c = flat[trio]
    if _cross(b - a, c - a) <= 0:
        return False
    others = flat[[k for k in left if k not in trio]]
    inside = (_cross(b - a, others - a) >= 0) & (_cross(c - b, others - b) >= 0) & (_cross(a - c, others - c) >= 0)
    at_corner = (
        (others[:, None] == flat[trio][None]).all(axis=-1).any(axis=1)
    )  # a bridge to a hole visits a point twice
    return not bool((inside & ~at_corner).any())


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
