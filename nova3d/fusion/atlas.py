"""UV atlases: flat projections, or xatlas in a process of its own that is ended when it takes too long.

In the projected atlas, neighbouring faces that look the same way are one chart, seen along one axis.
Shapes: f faces, c charts.
"""

import io
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nova3d.errors import InputError
from nova3d.rendering.raster import barycentric, nearest_faces
from nova3d.utils import compat

log = logging.getLogger(__name__)

ATLASES = ("projected", "xatlas")

_MARGIN = 4  # texels around every chart at 1024: two mip levels
_AXES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=np.float64)
_LEAN = 0.3  # least cosine between a face and the axis it is seen along: how far a texel may be stretched
_NEIGHBOURS = 0.6  # what three neighbours on another axis weigh against the cosine
_SWEEPS = 16
_ANGLES = 12  # turns of a chart within 90 degrees, of which the one with the smallest box is taken
_ROUNDS = 8  # of parting charts that overlap themselves, before their overlapping faces go one by one


@dataclass(frozen=True)
class Atlas:
    """UV coordinates of a mesh, whose vertices are doubled on seams.

    uv: [n,2] float64 in [0,1], origin at the lower left. faces: [f,3] int64. source: [n] int64, the mesh's vertex that
    each vertex came from. kind: "projected" or "xatlas", whichever made it. charts: number of charts.
    """

    uv: np.ndarray
    faces: np.ndarray
    source: np.ndarray
    kind: str
    charts: int


def unwrap(mesh: trimesh.Trimesh, size: int = 1024, kind: str = "projected", seconds: float = 60.0) -> Atlas:
    """Make an atlas.

    xatlas makes fewer, less stretched charts, but its time grows faster than the number of faces and has no bound.
    After `seconds`, or where it fails, the projected atlas is made instead and a warning is logged.

    Args:
        mesh: the surface.
        size: side of the texture in texels.
        kind: projected or xatlas.
        seconds: time limit of xatlas.

    Returns:
        The atlas.

    Raises:
        InputError: where the kind is unknown or xatlas is not installed.
    """
    check_atlas(kind)
    margin = max(1, round(_MARGIN * size / 1024))
    if kind == "xatlas":
        try:
            return _run_xatlas(mesh, size, margin, seconds)
        except subprocess.TimeoutExpired:
            log.warning("xatlas did not end within %g s: atlas by projections", seconds)
        except (OSError, subprocess.CalledProcessError) as error:
            log.warning("xatlas failed (%s): atlas by projections", error)
    uv, chart = project_charts(mesh, size, margin)
    # One vertex per corner of the mesh and chart.
    rows = np.stack([np.asarray(mesh.faces).reshape(-1), np.repeat(chart, 3)], axis=1)
    rows, first, index = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return Atlas(uv.reshape(-1, 2)[first], index.reshape(-1, 3), rows[:, 0], "projected", int(chart.max()) + 1)


def check_atlas(kind: str) -> None:
    """Raise InputError where a kind of atlas is unknown or its package is not installed."""
    if kind not in ATLASES:
        raise InputError(f"texture.atlas '{kind}' is none of {', '.join(ATLASES)}")
    if kind == "xatlas" and not compat.has("xatlas"):
        raise InputError("texture.atlas 'xatlas' needs xatlas: pip install 'nova3d[xatlas]', or use projected")


def _run_xatlas(mesh: trimesh.Trimesh, size: int, margin: int, seconds: float) -> Atlas:
    if getattr(sys, "frozen", False):
        raise OSError("a frozen application has no interpreter to run it with")
    given = io.BytesIO()
    np.savez(
        given,
        vertices=np.asarray(mesh.vertices, dtype=np.float32),
        faces=np.asarray(mesh.faces, dtype=np.uint32),
        size=size,
        margin=margin,
        seconds=seconds,
    )
    # A fresh interpreter: a fork of a process with torch's threads may hang, and `spawn` would run the user's script
    # again. -P keeps this folder's modules from hiding others of the same name.
    program = Path(__file__).with_name("xatlas_program.py")
    done = subprocess.run(
        [sys.executable, "-P", str(program)], input=given.getvalue(), capture_output=True, timeout=seconds, check=True
    )
    made = np.load(io.BytesIO(done.stdout))
    faces = made["faces"].astype(np.int64)
    links = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    count = len(made["uv"])
    pieces = trimesh.graph.connected_component_labels(links, node_count=count).max() if count else 0
    return Atlas(made["uv"].astype(np.float64), faces, made["source"].astype(np.int64), "xatlas", int(pieces) + 1)


def project_charts(mesh: trimesh.Trimesh, size: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay a mesh out as flat charts, packed into a square.

    Charts are connected and never mirrored. At the texels' centres they overlap neither each other nor themselves.

    Args:
        mesh: the surface.
        size: side of the texture in texels.
        margin: texels around every chart.

    Returns:
        uv: [f,3,2] float64 in [0,1] of every face's corners, origin at the lower left.
        chart: [f] int64, every face's chart.
    """
    axis = _axes_of_faces(mesh)
    layer = np.zeros(len(axis), dtype=np.int64)
    for attempt in range(_ROUNDS + 1):
        chart = _charts(mesh, axis + len(_AXES) * layer)
        corners, depth = _flatten(mesh, axis, chart)
        uv = _pack(corners, chart, size, margin)
        hidden = _overlapped_faces(uv * size, depth, chart, size)
        if len(hidden) == 0:
            break
        layer[hidden] = layer.max() + (1 if attempt < _ROUNDS - 1 else 1 + np.arange(len(hidden)))
    return uv, chart


def _axes_of_faces(mesh: trimesh.Trimesh) -> np.ndarray:
    """[f] index into `_AXES`: a close axis, but preferably that of the neighbours, so that charts are few."""
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
    """Lower corners [c,2] of boxes [c,2] sorted by height, each on the first shelf with room, or None."""
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


def _overlapped_faces(pixels: np.ndarray, depth: np.ndarray, chart: np.ndarray, size: int) -> np.ndarray:
    """Faces that lie under another one of their chart at the centre of a texel."""
    corners, z = torch.from_numpy(pixels), torch.from_numpy(depth - depth.min() + 1)
    near, far = (nearest_faces(corners, d, size, size, False).flatten() for d in (z, z.max() + 1 - z))
    same = torch.from_numpy(chart)
    texel = torch.nonzero((near != far) & (same[near] == same[far]))[:, 0]
    centre = torch.stack([texel % size + 0.5, texel // size + 0.5], dim=-1).double()
    inside = [(barycentric(corners[face[texel]], centre) > 1e-6).all(dim=-1) for face in (near, far)]
    return np.unique(far[texel[inside[0] & inside[1]]].numpy())  # else they only share an edge there
