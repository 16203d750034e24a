"""Quadric decimation that keeps a closed mesh closed and manifold."""

import logging

import fast_simplification
import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

log = logging.getLogger(__name__)

# Share of the budget to aim at, and aggressiveness on fast-simplification's scale of 0 to 10. Gentle passes may stop
# short of their aim, and opening what a pass has pinched takes a few more faces.
_APART = 1e-5  # of the longest side: how far doubled vertices are moved, so that no reader welds them together again
_TRIES = ((1.0, 5), (0.99, 7), (0.9, 8))


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """Decimate by quadric error (Garland and Heckbert 1997); a closed manifold stays one.

    Edge collapses may pinch the surface together where it is thin. `split_pinched_vertices` opens it again. Vertices
    that it has doubled are moved apart by 1e-5 of the longest side.

    Args:
        mesh: any triangle mesh.
        faces: the budget.

    Returns:
        A mesh of about `faces` faces; of more only where that many handles need them, with a warning.
    """
    if len(mesh.faces) <= faces:
        return mesh
    closed = mesh.is_watertight and mesh.is_winding_consistent
    for share, aggressiveness in _TRIES:
        vertices, triangles = fast_simplification.simplify(
            np.asarray(mesh.vertices, dtype=np.float64),
            np.asarray(mesh.faces, dtype=np.int32),
            target_count=round(share * faces),
            agg=aggressiveness,
        )
        if closed:
            vertices, triangles = split_pinched_vertices(vertices, triangles.astype(np.int64))
            vertices = _separate_coincident(vertices, triangles)
        if len(triangles) <= faces:
            break
    else:
        log.warning("%d faces instead of %d: the surface has too many handles for so few", len(triangles), faces)
    smaller = trimesh.Trimesh(vertices, triangles, process=False)
    smaller.remove_unreferenced_vertices()
    return smaller


def split_pinched_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make a closed manifold of a closed surface that touches itself; no vertex moves.

    Closed means that each edge is traversed as often one way as the other, which edge collapses preserve. Where more
    than two faces share an edge, those that bound the same wedge of air become neighbours, which keeps the solid in
    one piece. Then each vertex is doubled for every fan of neighbours around it. Two pairs of neighbours may still
    share both vertices of their edge; one pair then gets a vertex of its own at the middle.

    Args:
        vertices: [n,3] float64.
        faces: [f,3] int64.

    Returns:
        vertices: [m,3] float64.
        faces: [g,3] int64.

    Raises:
        ValueError: where the surface is not closed.
    """
    faces = _without_fins(faces)
    while True:
        here, there = _neighbours(vertices, faces)
        source, faces = _fans(faces, here, there)
        vertices = vertices[source]
        ends = np.sort(faces.reshape(-1)[np.stack([here, _next(here)], axis=1)], axis=1)
        _, first = np.unique(ends, axis=0, return_index=True)
        again = np.setdiff1d(np.arange(len(here)), first)
        if len(again) == 0:
            return vertices, faces
        vertices, faces = _split(vertices, faces, here[again], there[again])


def _separate_coincident(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The vertices [n,3] with those at one place moved out along the normals of their own faces [f,3]."""
    _, place, count = np.unique(vertices, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    doubled = np.flatnonzero(count[place] > 1)
    if len(doubled) == 0:
        return vertices
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.zeros_like(vertices)
    np.add.at(normals, faces.reshape(-1), np.repeat(np.cross(b - a, c - a), 3, axis=0))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    moved = vertices.copy()
    moved[doubled] += _APART * np.ptp(vertices, axis=0).max() * normals[doubled]
    return moved


def _next(corners: np.ndarray) -> np.ndarray:
    """The next corner in the same face. Corner 3 f + k is that of face f at its k-th vertex, and also names the
    half-edge that leaves it."""
    return corners - corners % 3 + (corners + 1) % 3


def _without_fins(faces: np.ndarray) -> np.ndarray:
    """Without faces that have collapsed, or lie back to back on the same three vertices."""
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    turned = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    even = turned[:, 1] < turned[:, 2]
    _, group = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    surplus = np.bincount(group, weights=np.where(even, 1, -1)).astype(int)  # of faces of one side over the other's
    order = np.lexsort([even, group])
    rank = np.empty(len(faces), dtype=int)
    for side in (True, False):
        mine = order[even[order] == side]
        _, start, count = np.unique(group[mine], return_index=True, return_counts=True)
        rank[mine] = np.arange(len(mine)) - np.repeat(start, count)
    return faces[rank < np.where(even, surplus[group], -surplus[group])]


def _neighbours(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[2,e] the half-edges from a lower to a higher vertex number, and the opposite half-edge of each."""
    corner = np.arange(3 * len(faces))
    start, end = faces.reshape(-1), faces.reshape(-1)[_next(corner)]
    up = start < end
    edge = np.where(up, start, end) * len(vertices) + np.where(up, end, start)
    order = np.lexsort([~up, edge])
    _, first, count = np.unique(edge[order], return_index=True, return_counts=True)
    balance = np.add.reduceat(np.where(up[order], 1, -1), first) if len(first) else np.zeros(0)
    if balance.any():
        raise ValueError("the surface is not closed")
    simple = first[count == 2]
    pairs = [np.stack([order[simple], order[simple + 1]], axis=1)]
    for begin, size in zip(first[count > 2], count[count > 2], strict=True):
        around = order[begin : begin + size]
        pairs.append(_pair_across_air(around[np.argsort(_angles(vertices, faces, around, up))], up))
    return np.concatenate(pairs).T


def _angles(vertices: np.ndarray, faces: np.ndarray, around: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Angles [n] of the faces of half-edges [n] around their common edge, seen from its lower vertex number."""
    ends = vertices[faces.reshape(-1)[[around[0], _next(around[:1])[0]]]]
    axis = (ends[1] - ends[0]) * (1 if up[around[0]] else -1)
    across = vertices[faces.reshape(-1)[_next(_next(around))]] - ends[0]
    east = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    north = np.cross(axis, east) / max(float(np.linalg.norm(axis)), 1e-30)
    return np.arctan2(across @ north, across @ east)


def _pair_across_air(around: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Pairs [n/2,2] of half-edges [n] sorted by angle: each that goes up, with the next one down, as brackets nest.

    The air is ahead of a face whose half-edge goes up, and behind one whose half-edge goes down.
    """
    waiting: list[int] = []
    pairs: dict[int, int] = {}
    for half in [*around.tolist()] * 2:  # what the first round leaves open closes in the second
        if up[half] and half not in waiting and half not in pairs:
            waiting.append(half)
        elif not up[half] and half not in pairs.values() and waiting:
            pairs[waiting.pop()] = half
    return np.array(list(pairs.items()))


def _fans(faces: np.ndarray, here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex per fan of faces: the old vertex [m] of each new one, and the faces in new vertices."""
    rows, columns = np.concatenate([here, _next(here)]), np.concatenate([_next(there), there])
    size = 3 * len(faces)
    count, fan = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (size, size)), False)
    source = np.empty(count, dtype=np.int64)
    source[fan] = faces.reshape(-1)
    return source, fan.reshape(-1, 3).astype(np.int64)


def _split(
    vertices: np.ndarray, faces: np.ndarray, here: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut pairs of neighbours in two at the middle of their common edge, at most one edge of a face."""
    faces = faces.copy()
    added: list[list[int]] = []
    middles: list[np.ndarray] = []
    used: set[int] = set()
    for pair in zip(here.tolist(), there.tolist(), strict=True):
        if used.isdisjoint(half // 3 for half in pair):
            used.update(half // 3 for half in pair)
            middle = len(vertices) + len(middles)
            for half in pair:
                start, end, apex = np.roll(faces[half // 3], -(half % 3))
                faces[half // 3] = start, middle, apex
                added.append([middle, end, apex])
            middles.append((vertices[start] + vertices[end]) / 2)
    return np.concatenate([vertices, middles]), np.concatenate([faces, added])
