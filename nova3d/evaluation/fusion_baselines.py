"""Baselines of the fusion: space carving, and screened Poisson from points with normals."""

import importlib

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion import texture
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.decimation import decimate
from nova3d.fusion.isosurface import clean
from nova3d.hull import visual_hull_mesh
from nova3d.views import ViewSet

_CELLS = 192  # of the carved grid, along the unit cube's side
_POISSON_DEPTH = 7  # octree levels: 128 cells, as fine as the pictures' pixels
_POISSON_TRIM = 0.02  # share of the vertices with the least support that is cut away


def carve(views: ViewSet, config: FusionConfig) -> tuple[trimesh.Trimesh, trimesh.Trimesh]:
    """Space carving by the silhouettes: the visual hull, cleaned, decimated and textured as a fit's surface is.

    Raises InputError where the silhouettes have nothing in common.
    """
    hull = visual_hull_mesh(views.mask, views.cameras, _CELLS)
    if hull is None:
        raise InputError("the views' masks have no common object")
    solid = clean(decimate(clean(hull, config.extract.min_component), config.extract.faces), 0.0)
    return _texture(solid, views, config), solid


def poisson(views: ViewSet, config: FusionConfig) -> tuple[trimesh.Trimesh, trimesh.Trimesh]:
    """Screened Poisson (Kazhdan and Hoppe 2013, by Open3D) of the carved surface's points, each with the mean normal
    that the views which see it show there.

    Raises InputError where Open3D is not installed.
    """
    try:
        o3d = importlib.import_module("open3d")
    except ImportError as error:
        raise InputError("screened Poisson needs Open3D: pip install -r requirements-open3d.txt") from error
    _, carved = carve(views, config)
    points, faces = trimesh.sample.sample_surface(carved, 60_000, seed=0)[:2]
    outward = np.asarray(carved.face_normals)[faces]
    normals = _blend_view_normals(
        torch.from_numpy(points).float(), torch.from_numpy(outward).float(), views, carved, config
    )
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    cloud.normals = o3d.utility.Vector3dVector(normals.double().numpy())
    surface, support = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=_POISSON_DEPTH, n_threads=torch.get_num_threads()
    )
    surface.remove_vertices_by_mask(np.asarray(support) < np.quantile(np.asarray(support), _POISSON_TRIM))
    raw = trimesh.Trimesh(np.asarray(surface.vertices), np.asarray(surface.triangles), process=False)
    solid = clean(raw, config.extract.min_component)
    return _texture(solid, views, config), solid


def _blend_view_normals(
    points: Tensor, outward: Tensor, views: ViewSet, mesh: trimesh.Trimesh, config: FusionConfig
) -> Tensor:
    """[n,3] the views' normals at points, blended as colours would be; the surface's own where no view looks."""
    # Normals as colours in [0,1], and the views' masks kept: the same projector blends them.
    shown = ViewSet((views.normals + 1) / 2, views.normals, views.mask, views.cameras)
    mask = views.mask[..., None]
    shown = ViewSet(shown.rgb * mask + 1 - mask, views.normals, views.mask, views.cameras)
    seen_by = texture.make_projector(shown, mesh, torch.zeros_like(views.mask), config.texture)
    colours, weight, _ = texture.blend_views(points, outward, seen_by)
    return torch.where(weight[:, None] > 0, F.normalize(colours * 2 - 1, dim=-1), outward)


def _texture(solid: trimesh.Trimesh, views: ViewSet, config: FusionConfig) -> trimesh.Trimesh:
    """The surface coloured by the views as a fit's is, and grey in place of the fit's colour field."""
    seen_by = texture.make_projector(views, solid, torch.zeros_like(views.mask), config.texture)
    return texture.texture_mesh(solid, seen_by, lambda points: torch.full((len(points), 3), 0.5))[0]
