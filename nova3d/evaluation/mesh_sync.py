"""SyncDreamer's two mesh metrics, as its eval_mesh.py defines them (Liu et al., ICLR 2024).

The reference's box is centred and its longest side 1; the prediction is taken as it is. Frame and cameras are
`syncdreamer16` (elevation 30), the reference's input view at azimuth 0. Two things differ from that script: its
reference depths come from Blender's 16-bit files, ours from drawing the reference like the prediction; its depths
are interpolated linearly on the screen, ours correctly in perspective (below 1e-3 for faces of a few pixels).
"""

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.evaluation.mesh_metrics import nearest
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize

Floats = NDArray[np.float64]

VOXEL = 0.01  # side of the cells in which visible points are averaged
SDF_RESOLUTION = 64  # over [-1,1]^3, so an object of longest side 1 covers 32


class NotInstalled(InputError):
    """An optional library that a metric is defined by is not there; the metric is then not computed."""


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

    The sign is only right for closed meshes: read it beside `iou<R>_flood` and `watertight`. Raises NotInstalled where
    mesh2sdf is not.
    """
    try:
        import mesh2sdf
    except ImportError as error:
        raise NotInstalled("mesh2sdf is not installed: pip install mesh2sdf") from error
    vertices, faces = np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces)
    return np.asarray(mesh2sdf.compute(vertices, faces, SDF_RESOLUTION, fix=False, return_mesh=False)) < 0


def mesh2sdf_iou(pred: trimesh.Trimesh, ref: trimesh.Trimesh) -> float:
    """Intersection over union of `mesh2sdf_solid` of both; 0 where neither has an inside. Raises NotInstalled."""
    a, b = mesh2sdf_solid(pred), mesh2sdf_solid(ref)
    return float((a & b).sum() / max(int((a | b).sum()), 1))
