"""Metrics on meshes in the reference's frame, without a search for a rotation, scale or shift.

Both meshes are moved by the one similarity that centres the reference's bounding box and makes its longest side 1.
So distances are fractions of that side, and a wrong size, place or handedness of the prediction counts. An alignment
(`mesh_scores.align`) is applied before, and named by the column.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.rendering.mesh_files import read_scene
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize

Floats = NDArray[np.float64]
_POINTS_AT_ONCE = 2_000_000
_LEAF = 64  # points
# The lattice's covering radius is at most edge / sqrt(3) < 1/2 voxel. A step between face neighbours' centres that
# crosses the surface then always has a sample in one of the two voxels, so no 6-connected path slips through.
_LATTICE_EDGE = 0.8  # voxels
VOXEL = 0.01  # side of the cells in which visible points are averaged
SDF_RESOLUTION = 64  # over [-1,1]^3, so an object of longest side 1 covers 32

# Raise a version whenever the metric gives another value for the same meshes. Cached scores are then recomputed, and
# the hash of every protocol that uses the metric changes. tests/evaluation/test_versions.py pins values by version.
VERSIONS = {
    "area": 1,  # Chamfer distance, F-score and normal consistency of area-weighted points
    "visible16": 1,  # Chamfer distance of the points that 16 cameras see
    "flood": 1,  # iou<R>_flood
    "mesh2sdf": 1,  # iou64_mesh2sdf
    "watertight": 1,
    "shape": 1,  # the columns of shape_figures.py
}


def read_surface(path: str | Path) -> trimesh.Trimesh:
    """A mesh file as one triangle mesh, its scene's transforms applied.

    Raises InputError where the file is missing, cannot be read or holds no surface.
    """
    parts = read_scene(path).parts
    offsets = np.cumsum([0, *(len(part.positions) for part in parts)])
    vertices = np.concatenate([part.positions for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    _check(mesh, f"'{path}'")
    return mesh


load_mesh = read_surface  # the public name of earlier versions; rendering.meshes.load_mesh reads materials too


def to_unit(mesh: trimesh.Trimesh) -> Floats:
    """[4,4] similarity that centres the mesh's bounding box and makes its longest side 1.

    Raises InputError where the mesh has no surface.
    """
    _check(mesh, "the mesh")
    return box_to_unit(*mesh.bounds)


def box_to_unit(low: Floats, high: Floats) -> Floats:
    """[4,4] similarity that centres the box from corner `low` [3] to `high` [3] and makes its longest side 1."""
    transform = np.eye(4)
    transform[:3, :3] /= (high - low).max()
    transform[:3, 3] = -(low + high) / 2 / (high - low).max()
    return transform


def moved(mesh: trimesh.Trimesh, transform: Floats) -> trimesh.Trimesh:
    """A copy of the bare surface under an affine `transform` [4,4]; a mirror keeps faces turned outwards."""
    faces = mesh.faces if np.linalg.det(transform[:3, :3]) > 0 else mesh.faces[:, ::-1]
    return trimesh.Trimesh(mesh.vertices @ transform[:3, :3].T + transform[:3, 3], faces, process=False)


def in_reference_frame(pred: trimesh.Trimesh, ref: trimesh.Trimesh) -> tuple[trimesh.Trimesh, trimesh.Trimesh]:
    """Copies of both, moved by the similarity that centres the reference's box and makes its longest side 1."""
    _check(ref, "the reference mesh")
    transform = to_unit(ref)
    return moved(pred, transform), moved(ref, transform)


@dataclass(frozen=True)
class SurfaceSamples:
    """n points of a surface [n,3] and the unit normals [n,3] of their faces."""

    points: Floats
    normals: Floats

    def moved(self, transform: Floats) -> "SurfaceSamples":
        """The same points under a similarity `transform` [4,4], which may mirror."""
        rotation = transform[:3, :3] / np.cbrt(abs(np.linalg.det(transform[:3, :3])))
        return SurfaceSamples(self.points @ transform[:3, :3].T + transform[:3, 3], self.normals @ rotation.T)

    def in_z_order(self) -> "SurfaceSamples":
        """The same points along a Z curve, so that neighbours in the list are neighbours in space. Successive searches
        then hit the processor's cache, which halves the time."""
        order = _z_order(self.points)
        return SurfaceSamples(self.points[order], self.normals[order])

    @cached_property
    def tree(self) -> KDTree:
        """The points to be searched by `nearest`."""
        return _tree(self.points)


@dataclass(frozen=True)
class SurfaceMatch:
    """Nearest neighbours between n surface samples of a prediction and n of a reference, both ways.

    to_ref, to_pred: [n] distances from each sample to the nearest one of the other mesh, in longest reference sides.
    agreement_ref, agreement_pred: [n] |cosine| of the face normals of each such pair.
    """

    to_ref: Floats
    to_pred: Floats
    agreement_ref: Floats
    agreement_pred: Floats

    def among(self, pred: NDArray[np.bool_], ref: NDArray[np.bool_]) -> "SurfaceMatch":
        """The match of some samples: those of the prediction and of the reference where `pred`, `ref` [n] are true."""
        return SurfaceMatch(self.to_ref[pred], self.to_pred[ref], self.agreement_ref[pred], self.agreement_pred[ref])

    def chamfer(self) -> float:
        """Mean of the two directed mean distances: (pred->ref + ref->pred) / 2, Euclidean, not squared."""
        return float(self.to_ref.mean() + self.to_pred.mean()) / 2

    def f_score(self, threshold: float) -> float:
        """Harmonic mean of precision and recall: the shares of either mesh's samples within `threshold`."""
        precision, recall = float((self.to_ref <= threshold).mean()), float((self.to_pred <= threshold).mean())
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def normal_consistency(self) -> float:
        """Mean over both directions of |cos| between nearest samples' normals: blind to the faces' winding."""
        return float(self.agreement_ref.mean() + self.agreement_pred.mean()) / 2


def match_surfaces(pred: trimesh.Trimesh, ref: trimesh.Trimesh, samples: int = 100_000, seed: int = 0) -> SurfaceMatch:
    """Match `samples` area-weighted random surface points of each mesh, in the reference's frame.

    The two meshes draw from different seeds (seed, seed + 1), so that a mesh matched with itself scores the sampling
    limit (about half the mean spacing) instead of zero. Raises InputError where a mesh has no surface.
    """
    _check(pred, "the predicted mesh")
    pred, ref = in_reference_frame(pred, ref)
    return match_points(sample_surface(pred, samples, seed), sample_surface(ref, samples, seed + 1))


def match_points(pred: SurfaceSamples, ref: SurfaceSamples) -> SurfaceMatch:
    """Nearest neighbours of two sampled surfaces, both ways; distances are in the unit of their points."""
    to_ref, nearest_ref = nearest(pred.points, ref.tree)
    to_pred, nearest_pred = nearest(ref.points, pred.tree)
    return SurfaceMatch(
        to_ref,
        to_pred,
        np.abs((pred.normals * ref.normals[nearest_ref]).sum(axis=1)),
        np.abs((ref.normals * pred.normals[nearest_pred]).sum(axis=1)),
    )


def nearest(queries: Floats, points: Floats | KDTree) -> tuple[Floats, NDArray[np.intp]]:
    """Distance [n] and index [n] of the nearest of `points` [m,3], or of a tree of them, to each of `queries` [n,3].

    On as many threads as torch uses.
    """
    tree = points if isinstance(points, KDTree) else _tree(points)
    distance, index = tree.query(queries, workers=torch.get_num_threads())
    return distance, index


def _tree(points: Floats) -> KDTree:
    # Cells split at their middle, not at the median: meshes far apart (a failed prediction) take a third of the time.
    return KDTree(points, leafsize=_LEAF, compact_nodes=False, balanced_tree=False)


def _z_order(points: Floats) -> NDArray[np.intp]:
    """[n] the order of points [n,3] along a Z curve through 1024^3 cells of their box (Morton 1966)."""
    low, side = points.min(axis=0), max(float(np.ptp(points, axis=0).max()), np.finfo(float).tiny)
    cells = ((points - low) / side * 1023).astype(np.uint32)  # then two zeros behind each of their ten bits
    for shift, bits in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | (cells << shift)) & bits
    return np.argsort(cells[:, 0] | (cells[:, 1] << 1) | (cells[:, 2] << 2), kind="stable")


def sample_surface(mesh: trimesh.Trimesh, samples: int, seed: int) -> SurfaceSamples:
    """`samples` area-weighted random points of the mesh; raises InputError where it has no surface."""
    _check(mesh, "the mesh")
    points, faces = trimesh.sample.sample_surface(mesh, samples, seed=seed)[:2]
    return SurfaceSamples(np.asarray(points), np.asarray(mesh.face_normals)[faces])


def chamfer(pred: trimesh.Trimesh, ref: trimesh.Trimesh, samples: int = 100_000, seed: int = 0) -> float:
    """Chamfer distance of two meshes: the mean of the two directed mean distances, not squared.

    Args:
        pred: the prediction.
        ref: the reference.
        samples: area-weighted points on each surface.
        seed: of the points.

    Returns:
        The distance in longest sides of the reference's box.

    Raises:
        InputError: where a mesh has no surface.
    """
    return match_surfaces(pred, ref, samples, seed).chamfer()


def f_score(
    pred: trimesh.Trimesh, ref: trimesh.Trimesh, threshold: float = 0.02, samples: int = 100_000, seed: int = 0
) -> float:
    """F-score of two meshes: the harmonic mean of precision and recall at a distance.

    Args:
        pred: the prediction.
        ref: the reference.
        threshold: the distance, in longest sides of the reference's box.
        samples: area-weighted points on each surface.
        seed: of the points.

    Returns:
        A share in [0,1].

    Raises:
        InputError: where a mesh has no surface.
    """
    return match_surfaces(pred, ref, samples, seed).f_score(threshold)


def normal_consistency(pred: trimesh.Trimesh, ref: trimesh.Trimesh, samples: int = 100_000, seed: int = 0) -> float:
    """Mean absolute cosine between the face normals of nearest points of two meshes.

    Args:
        pred: the prediction.
        ref: the reference.
        samples: area-weighted points on each surface.
        seed: of the points.

    Returns:
        A value in [0,1], 1 for equal normals.

    Raises:
        InputError: where a mesh has no surface.
    """
    return match_surfaces(pred, ref, samples, seed).normal_consistency()


def volume_iou(pred: trimesh.Trimesh, ref: trimesh.Trimesh, resolution: int = 128) -> float:
    """Intersection over union of two solids on one voxel grid.

    Solid is what cannot be reached from outside: voxels the surface touches, and all that a flood through face
    neighbours from the grid's border does not reach. Meshes need no orientation, sign or watertightness, and both are
    treated alike. Cracks below a voxel close and inner surfaces do not count. A hole wider than a voxel reduces the
    solid to its one-voxel shell, so read the IoU beside `is_closed`.

    Args:
        pred: the prediction.
        ref: the reference.
        resolution: voxels along the longest side of both boxes.

    Returns:
        A share in [0,1].

    Raises:
        InputError: where a mesh has no surface.
    """
    _check(pred, "the predicted mesh")
    pred, ref = in_reference_frame(pred, ref)
    low = np.minimum(pred.bounds[0], ref.bounds[0])
    high = np.maximum(pred.bounds[1], ref.bounds[1])
    pitch = float((high - low).max()) / resolution
    a, b = (solid_voxels(mesh, low, high, pitch) for mesh in (pred, ref))
    return _occupancy_iou(a, b)


def is_closed(mesh: trimesh.Trimesh) -> bool:
    """Whether every edge joins two faces, vertices at one place counting as one (a texture's seams split them)."""
    joined = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    joined.merge_vertices()
    return bool(joined.is_watertight)


def solid_voxels(mesh: trimesh.Trimesh, low: Floats, high: Floats, pitch: float) -> NDArray[np.bool_]:
    """[x,y,z] occupancy of the box low..high by voxels of side `pitch`, plus one empty voxel all around.

    The mesh must lie in the box; see `volume_iou` for what counts as solid.
    """
    shape = np.ceil((high - low) / pitch - 1e-9).astype(int).clip(1)
    surface = np.zeros(shape + 2, dtype=bool)
    for points in _lattice(mesh.triangles, _LATTICE_EDGE * pitch):
        i, j, k = (np.floor((points - low) / pitch).astype(int).clip(0, shape - 1) + 1).T
        surface[i, j, k] = True
    regions, _ = ndimage.label(~surface)
    return regions != regions[0, 0, 0]


# SyncDreamer's two metrics, as its eval_mesh.py defines them (Liu et al., ICLR 2024). The reference's box is centred
# and its longest side 1; the prediction is taken as it is. Frame and cameras are `syncdreamer16` (elevation 30), the
# reference's input view at azimuth 0. Two things differ from that script. Its reference depths come from Blender's
# 16-bit files, ours from drawing the reference like the prediction. Its depths are interpolated linearly on the screen,
# ours correctly in perspective (a difference below 1e-3 for faces of a few pixels).


class PackageUnavailable(InputError):
    """A package that defines a metric is not installed; the metric is then not computed."""


def visible_points(mesh: trimesh.Trimesh, size: int = 256) -> Floats:
    """[n,3] points of the mesh that the 16 cameras see, one per pixel, averaged in voxels of 0.01.

    Depth maps of size x size with one sample at each pixel's centre; pixel (i, j) is un-projected at (i, j), half a
    pixel beside where it was drawn, as the original does for both sides. Raises InputError where no camera sees any.
    """
    cameras = preset("syncdreamer16", size)
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    depth = rasterize(from_trimesh([bare]), cameras, supersample=1, light="flat").depth
    return voxel_means(unproject(depth, cameras), VOXEL)


def unproject(depth: torch.Tensor, cameras: Cameras) -> Floats:
    """World points [n,3] of the pixels of perspective depth maps [v,h,w] that are not 0, at integer coordinates."""
    view, row, column = (axis.numpy() for axis in torch.nonzero(depth, as_tuple=True))
    z = depth.numpy()[view, row, column].astype(np.float64)
    focal_x, focal_y, centre_x, centre_y = cameras.intrinsics.double().numpy()[view].T
    local = np.stack([(column - centre_x) / focal_x * z, -(row - centre_y) / focal_y * z, -z], axis=1)
    c2w = cameras.c2w.double().numpy()[view]
    return np.einsum("nij,nj->ni", c2w[:, :3, :3], local) + c2w[:, :3, 3]


def voxel_means(points: Floats, side: float) -> Floats:
    """The mean [m,3] of the points [n,3] in each voxel; voxels start half a side below the least coordinates.

    That start is Open3D's voxel_down_sample, which the original calls.
    """
    cells = np.floor((points - (points.min(axis=0) - side / 2)) / side).astype(np.int64)
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(cell.ravel(), weights=axis) for axis in points.T], axis=1)
    return sums / count[:, None]


def visible_chamfer(pred: Floats, ref: Floats) -> float:
    """Mean of the two directed mean distances between visible points [n,3] and [m,3], Euclidean, not squared."""
    return float(nearest(pred, ref)[0].mean() + nearest(ref, pred)[0].mean()) / 2


def mesh2sdf_solid(mesh: trimesh.Trimesh) -> NDArray[np.bool_]:
    """[64,64,64] occupancy of [-1,1]^3: where mesh2sdf's signed distance is negative, with fix=False.

    The sign is only right for closed meshes: read it beside `iou<R>_flood` and `watertight`.
    Raises PackageUnavailable where mesh2sdf is not installed.
    """
    try:
        import mesh2sdf
    except ImportError as error:
        raise PackageUnavailable("mesh2sdf is not installed: pip install 'nova3d[mesh2sdf]'") from error
    vertices, faces = np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces)
    return np.asarray(mesh2sdf.compute(vertices, faces, SDF_RESOLUTION, fix=False, return_mesh=False)) < 0


def mesh2sdf_iou(pred: trimesh.Trimesh, ref: trimesh.Trimesh) -> float:
    """Intersection over union of `mesh2sdf_solid` of both; 0 where neither has an inside. Raises PackageUnavailable."""
    a, b = mesh2sdf_solid(pred), mesh2sdf_solid(ref)
    return _occupancy_iou(a, b)


def _occupancy_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; 0 where both are empty."""
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def _lattice(triangles: Floats, edge: float) -> Iterator[Floats]:
    """Points [m,3] in chunks: every triangle [n,3,3] divided until no side of its parts is longer than `edge`."""
    sides = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(axis=1)
    divisions = np.ceil(sides / edge).astype(int).clip(1)
    for k in np.unique(divisions):
        i, j = (axis.ravel() for axis in np.meshgrid(np.arange(k + 1), np.arange(k + 1)))
        inside = i + j <= k
        weights = np.stack([i[inside], j[inside], k - i[inside] - j[inside]], axis=1) / k
        group = triangles[divisions == k]
        step = max(1, _POINTS_AT_ONCE // len(weights))
        for start in range(0, len(group), step):
            yield np.einsum("mc,ncx->nmx", weights, group[start : start + step]).reshape(-1, 3)


def _check(mesh: trimesh.Trimesh, name: str) -> None:
    if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all() or not mesh.area > 0:
        raise InputError(f"{name} has no surface (no faces, no area or vertices that are not finite)")
