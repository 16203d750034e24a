"""Where an object is: the box that brings it into the object frame, undisturbed by specks far away."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nova3d.rendering.reasons import Reason, RenderFault

SPECK_AREA = 1e-4  # share of the surface below which a distant piece is not part of the object
SPECK_DISTANCE = 10.0  # in radii that hold 99 % of the surface


def check_geometry(vertices: np.ndarray, faces: np.ndarray, name: str) -> None:
    """Raise RenderFault where vertices [n,3] and faces [f,3] cannot be drawn: no triangles, NaN, no extent."""
    if len(faces) == 0:
        raise RenderFault(Reason.EMPTY_SCENE, f"mesh '{name}' has no triangles")
    if not np.isfinite(vertices).all():
        raise RenderFault(Reason.PARSE_ERROR, f"mesh '{name}' has vertices that are not finite numbers")
    if np.ptp(vertices[np.unique(faces)], axis=0).max() <= 1e-12:
        raise RenderFault(Reason.EMPTY_SCENE, f"mesh '{name}' has no extent: all its vertices coincide")


def normalisation(vertices: np.ndarray, faces: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and centre [3] with which object = (file - centre) * scale is centred and its longest side is 1.

    The box is that of the triangles (a stray vertex is not part of the object) without specks: connected pieces with
    less than SPECK_AREA of the surface that lie wholly beyond SPECK_DISTANCE times the radius, about the median of the
    surface, that holds 99 % of it. One such speck would otherwise shrink the object to a dot.
    """
    used = np.unique(faces)
    kept = used[~_specks(vertices, faces)[used]]
    low, high = vertices[kept].min(axis=0), vertices[kept].max(axis=0)
    return float(1 / (high - low).max()), (low + high) / 2


def _specks(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[n] bool: the vertices of specks."""
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    none = np.zeros(len(vertices), bool)
    if not area.sum() > 0:
        return none
    middles = corners.mean(axis=1)
    centre = np.array([_quantile(middles[:, axis], area, 0.5) for axis in range(3)])
    reach = np.linalg.norm(corners - centre, axis=2).max(axis=1)  # of each face's farthest corner
    far = np.linalg.norm(vertices - centre, axis=1) > SPECK_DISTANCE * _quantile(reach, area, 0.99)
    if not far[faces].any():  # nearly always: no need to look for pieces
        return none

    # Files repeat positions along seams and hard edges: a piece is connected by position, not by index.
    _, point = np.unique(vertices, axis=0, return_inverse=True)
    point = point.reshape(-1)
    joined = point[faces]
    rows, columns = joined[:, [0, 1]].ravel(), joined[:, [1, 2]].ravel()
    count = int(point.max()) + 1
    pieces, piece = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (count, count)))
    share = np.bincount(piece[joined[:, 0]], weights=area, minlength=pieces) / area.sum()
    near = np.zeros(pieces, bool)
    near[piece[point[~far]]] = True
    return (~near & (share < SPECK_AREA))[piece[point]]


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, level * share[-1])])
