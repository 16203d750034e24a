"""A UV atlas of flat projections: faces that look the same way are seen along one axis. Under a second, and sure."""

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nova3d.rendering.raster import barycentric, nearest_faces

_AXES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=np.float64)
_LEAN = 0.3  # least cosine between a face and the axis it is seen along: how far a texel may be stretched
_NEIGHBOURS = 0.6  # what three neighbours on another axis weigh against the cosine
_SWEEPS = 16
_ANGLES = 12  # turns of a chart within 90 degrees, of which the one with the smallest box is taken
_ROUNDS = 8  # of parting charts that overlap themselves, before their overlapping faces go one by one


def project(mesh: trimesh.Trimesh, size: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """UV [f,3,2] in [0,1] of every face's corners, origin lower left, and the faces' charts [f].

    size: texels of the square texture; margin: texels around every chart. Charts are connected, never mirrored, and
    do not overlap, neither each other nor themselves, as seen at the texels' centres.
    """
    axis = _axes_of_faces(mesh)
    layer = np.zeros(len(axis), dtype=np.int64)
    for attempt in range(_ROUNDS + 1):
        chart = _charts(mesh, axis + len(_AXES) * layer)
        corners, depth = _flatten(mesh, axis, chart)
        uv = _pack(corners, chart, size, margin)
        hidden = _hidden(uv * size, depth, chart, size)
        if len(hidden) == 0:
            break
        layer[hidden] = layer.max() + (1 if attempt < _ROUNDS - 1 else 1 + np.arange(len(hidden)))
    return uv, chart


def _axes_of_faces(mesh: trimesh.Trimesh) -> np.ndarray:
    """[f] index into `_AXES`: nearly the closest, but mostly that of the neighbours, so that charts are few."""
    cosine = mesh.face_normals @ _AXES.T
    allowed = cosine >= np.minimum(_LEAN, cosine.max(axis=1, keepdims=True))
    label = cosine.argmax(axis=1)
    pairs = mesh.face_adjacency
    here, there = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    for sweep in range(_SWEEPS):
        votes = np.bincount(here * 6 + label[there], minlength=6 * len(label)).reshape(-1, 6) / 3
        best = np.where(allowed, cosine + _NEIGHBOURS * votes, -np.inf).argmax(axis=1)
        turn = np.arange(len(label)) % 2 == sweep % 2  # all at once would swap back and forth
        label = np.where(turn, best, label)
    return label


def _charts(mesh: trimesh.Trimesh, label: np.ndarray) -> np.ndarray:
    """[f] number of the connected piece of equal label."""
    pairs = mesh.face_adjacency
    pairs = pairs[label[pairs[:, 0]] == label[pairs[:, 1]]]
    size = len(label)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (size, size))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _flatten(mesh: trimesh.Trimesh, axis: np.ndarray, chart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners [f,3,2] in each chart's plane, turned to the smallest box, and their depth [f,3] behind it."""
    right = np.roll(np.abs(_AXES), 1, axis=1)
    up = np.cross(_AXES, right)
    points = np.asarray(mesh.vertices)[mesh.faces]
    flat = np.stack([np.einsum("fkc,fc->fk", points, basis[axis]) for basis in (right, up)], axis=-1)
    angles = np.arange(_ANGLES) * np.pi / 2 / _ANGLES
    boxes = np.stack([np.prod(_extent(_turn(flat, np.full(len(flat), a)), chart)[1], axis=-1) for a in angles])
    flat = _turn(flat, angles[boxes.argmin(axis=0)][chart])
    wide = _extent(flat, chart)[1]
    flat = np.where((wide[:, 1] > wide[:, 0])[chart][:, None, None], flat[..., ::-1] * [1, -1], flat)
    return flat, -np.einsum("fkc,fc->fk", points, _AXES[axis])


def _turn(flat: np.ndarray, angle: np.ndarray) -> np.ndarray:
    sin, cos = np.sin(angle)[:, None], np.cos(angle)[:, None]
    return np.stack([cos * flat[..., 0] - sin * flat[..., 1], sin * flat[..., 0] + cos * flat[..., 1]], axis=-1)


def _extent(flat: np.ndarray, chart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower corner [c,2] and size [c,2] of every chart."""
    order = np.argsort(chart, kind="stable")
    first = np.searchsorted(chart[order], np.arange(chart.max() + 1))
    low = np.minimum.reduceat(flat.min(axis=1)[order], first)
    return low, np.maximum.reduceat(flat.max(axis=1)[order], first) - low


def _pack(flat: np.ndarray, chart: np.ndarray, size: int, margin: int) -> np.ndarray:
    """UV [f,3,2]: all charts at the one largest scale at which their boxes fit on shelves."""
    low, extent = _extent(flat, chart)
    order = np.argsort(-extent[:, 1], kind="stable")
    while _shelves(np.full_like(extent, 2 * margin + 1), size) is None:
        size *= 2  # more charts than such a texture has room for: their margins share its texels
    small, large = 0.0, size / max(1e-12, float(np.sqrt(extent.prod(axis=1).sum())), float(extent.max()))
    places = np.zeros((len(extent), 2))
    for _ in range(16):
        scale = (small + large) / 2
        found = _shelves(np.ceil(extent[order] * scale) + 2 * margin, size)
        if found is None:
            large = scale
        else:
            small = scale
            places[order] = found
    return ((flat - low[chart][:, None]) * small + places[chart][:, None] + margin) / size


def _shelves(boxes: np.ndarray, size: int) -> np.ndarray | None:
    """Lower corners [c,2] of boxes [c,2], sorted by height: each on the first shelf with room; None: they don't fit."""
    used: list[float] = []
    floors: list[float] = []
    top = 0.0
    places = np.empty_like(boxes)
    for index, (width, height) in enumerate(boxes.tolist()):
        shelf = next((s for s, start in enumerate(used) if start + width <= size), None)
        if shelf is None:
            if top + height > size or width > size:
                return None
            used.append(0.0)
            floors.append(top)
            shelf, top = len(used) - 1, top + height
        places[index] = used[shelf], floors[shelf]
        used[shelf] += width
    return places


def _hidden(pixels: np.ndarray, depth: np.ndarray, chart: np.ndarray, size: int) -> np.ndarray:
    """Faces that lie under another one of their chart at the centre of a texel."""
    corners, z = torch.from_numpy(pixels), torch.from_numpy(depth - depth.min() + 1)
    near, far = (nearest_faces(corners, d, size, size, False).flatten() for d in (z, z.max() + 1 - z))
    same = torch.from_numpy(chart)
    texel = torch.nonzero((near != far) & (same[near] == same[far]))[:, 0]
    centre = torch.stack([texel % size + 0.5, texel // size + 0.5], dim=-1).double()
    inside = [(barycentric(corners[face[texel]], centre) > 1e-6).all(dim=-1) for face in (near, far)]
    return np.unique(far[texel[inside[0] & inside[1]]].numpy())  # else they only share an edge there
