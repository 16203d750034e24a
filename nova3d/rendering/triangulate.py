"""Polygons as triangles: fans where they are convex, ears where they are not."""

import numpy as np
from numpy.typing import NDArray

# Of all polygons with an inner corner, the squares of their corners: clipping takes so much time.
WORK = 1_000_000_000
PATIENCE = 4  # tests of a corner against an ear, per squared corner: a polygon that crosses itself has few ears


def triangulate_all(
    sizes: NDArray[np.int64], points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut polygons of any sizes into triangles.

    Args:
        sizes: [p] their corners; one of fewer than three has no triangle.
        points: [c,3], the corners of all, one polygon after another. A polygon is nearly plane and has no holes.

    Returns:
        [f,3] indices of `points`, in the order of the polygons and turning as they do, and [f] the polygon of each
        triangle.

    Raises:
        ValueError: where polygons with inner corners have more corners than can be cut in reasonable time.
    """
    work = 0
    count = np.maximum(sizes - 2, 0)
    starts, first = np.cumsum(sizes) - sizes, np.cumsum(count) - count
    faces = np.zeros((int(count.sum()), 3), np.int64)
    for size in np.unique(sizes[sizes >= 3]).tolist():
        these = np.flatnonzero(sizes == size)
        loops = starts[these, None] + np.arange(size)
        triangles = np.tile(np.arange(size - 2)[:, None] + [0, 1, 2], (len(these), 1, 1))
        triangles[..., 0] = 0  # a fan
        if size > 3:
            normal, turns = _turns(points[loops])
            inner = np.flatnonzero((turns < 0).any(axis=1))
            work += len(inner) * size**2
            if work > WORK:
                raise ValueError("its polygons with inner corners have too many corners: cut them into triangles")
            for index in inner:
                triangles[index] = _clip_ears(points[loops[index]], normal[index])
        corners = np.take_along_axis(loops, triangles.reshape(len(these), -1), axis=1)
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
    drop = int(np.abs(normal).argmax())
    first, second = (drop + 1) % 3, (drop + 2) % 3
    flat = points[:, [first, second]] * [1, np.sign(normal[drop])]  # counter-clockwise
    left, triangles, corner, tries, tests = np.arange(len(points)), [], 0, 0, 0
    while len(left) > 3:
        size = len(left)
        trio = left[[corner - 1, corner, (corner + 1) % size]]
        # After a round without an ear (a polygon that crosses itself) any corner is cut, so that this ends.
        if tries >= size or _is_ear(flat, trio, left):
            triangles.append(trio)
            left = np.delete(left, corner)
            corner, tries = (corner - 1) % len(left) if corner else 0, 0
        else:
            corner, tries = (corner + 1) % size, tries + 1
        tests += size
        if tests > PATIENCE * len(points) ** 2:  # it crosses itself: no triangulation is right
            break
    rest = [left[[0, k, k + 1]] for k in range(1, len(left) - 1)]
    return np.array([*triangles, *rest], np.int64)


def _is_ear(flat: NDArray[np.float64], trio: NDArray[np.int64], left: NDArray[np.int64]) -> bool:
    a, b, c = flat[trio]
    if _cross(b - a, c - a) <= 0:
        return False
    others = flat[left[(left != trio[0]) & (left != trio[1]) & (left != trio[2])]]
    inside = (_cross(b - a, others - a) >= 0) & (_cross(c - b, others - b) >= 0) & (_cross(a - c, others - c) >= 0)
    within = others[inside]  # a bridge to a hole visits a point twice
    return not bool((within[:, None] != flat[trio]).any(axis=-1).all(axis=1).any())


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
