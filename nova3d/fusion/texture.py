"""Texture from the views: points are coloured by the views that see them, the rest by the colour field.

Shapes: v views, h w pixels, n points, m texels. Colours are sRGB in [0,1], straight (not multiplied by coverage).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.fusion import export
from nova3d.fusion.atlas import Atlas, unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.fusion.occupancy import pixel_size
from nova3d.rendering.raster import barycentric, nearest_faces
from nova3d.views import ViewSet

Fill = Callable[[Tensor], Tensor]
"""Gives the colour field's colours [n,3] float32 in [0,1] at points [n,3] float32."""

_CHUNK = 1 << 16  # points at a time
_FADE = 0.3  # world units over which the shift of the field's colours fades


@dataclass(frozen=True)
class Projector:
    """The views, prepared for colouring points of a mesh.

    colours: [v,3,h,w] float32. trust: [v,1,h,w] float32, the weight of each pixel. depth: [v,1,2h,2w] float32 of the
    mesh. tolerance: world units by which a visible point's depth may differ. cameras: refined.
    """

    colours: Tensor
    trust: Tensor
    depth: Tensor
    tolerance: float
    cameras: Cameras
    config: TextureConfig


def depth_maps(mesh: trimesh.Trimesh, cameras: Cameras) -> Tensor:
    """Depth along each camera's axis of the nearest surface that faces it.

    Args:
        mesh: the surface, world frame.
        cameras: v cameras of h x w pixels.

    Returns:
        [v,h,w] float32 world units, 0 where there is no surface.
    """
    vertices = torch.from_numpy(np.array(mesh.vertices)).float()
    faces, normals = torch.from_numpy(np.array(mesh.faces)), torch.from_numpy(np.array(mesh.face_normals)).float()
    middles = vertices[faces].mean(dim=1)
    return torch.stack([_depth(vertices, faces, middles, normals, cameras.to("cpu")[v]) for v in range(len(cameras))])


def _depth(vertices: Tensor, faces: Tensor, middles: Tensor, normals: Tensor, camera: Cameras) -> Tensor:
    # A closed surface is only ever nearest with its front; the inside of an open one is not painted.
    faces = faces[(_towards(middles, camera)[0] * normals).sum(dim=-1) > 0]
    pixels, depth = camera.project(vertices)
    corners, z = pixels[0].double()[faces], depth[0].double()[faces]
    perspective = camera.model == "perspective"
    face = nearest_faces(corners, z, camera.width, camera.height, perspective).flatten()
    hit = torch.nonzero(face >= 0)[:, 0]
    face, centre = face[hit], camera.pixel_centres().reshape(-1, 2)[hit].double()
    weights, z = barycentric(corners[face], centre), z[face]
    picture = torch.zeros(camera.height * camera.width)
    picture[hit] = (1 / (weights / z).sum(dim=-1) if perspective else (weights * z).sum(dim=-1)).float()
    return picture.reshape(camera.height, camera.width)


def _towards(points: Tensor, cameras: Cameras) -> Tensor:
    """[v,n,3] unit vectors from points [n,3] to the cameras."""
    if cameras.model == "orthographic":
        return cameras.c2w[:, None, :3, 2].expand(-1, len(points), -1)
    return F.normalize(cameras.c2w[:, None, :3, 3] - points[None], dim=-1)


def make_projector(
    views: ViewSet, cameras: Cameras, mesh: trimesh.Trimesh, conflict: Tensor, config: TextureConfig
) -> Projector:
    """Prepare views for colouring a mesh.

    Args:
        views: the pictures, on the CPU.
        cameras: refined, on the CPU.
        mesh: the surface.
        conflict: [v,h,w] float32 H in [0,1].
        config: settings of the texture.

    Returns:
        The projector.
    """
    h = views.cameras.height
    mask = views.mask[:, None]
    # Undo the composite on white where a pixel shows enough of the object, and leave the rim out.
    straight = (views.rgb.permute(0, 3, 1, 2) - (1 - mask)) / mask.clamp_min(0.1)
    erode = max(1, round(config.erode_px * h / 256)) if config.erode_px > 0 else 0
    solid = -F.max_pool2d(-mask, 2 * erode + 1, 1, erode)
    trust = (solid.clamp(0, 1) ** 2) * (1 - conflict[:, None]).clamp(0, 1).square()
    trust[views.favoured] *= config.input_view
    fine = cameras.resized(cameras.width * 2, cameras.height * 2)
    depth = depth_maps(mesh, fine)[:, None]
    return Projector(straight.clamp(0, 1), trust, depth, pixel_size(cameras), cameras, config)


def blend_views(points: Tensor, normals: Tensor, views: Projector) -> tuple[Tensor, Tensor]:
    """Colour surface points by the views that see them, weighted by cos^power * (1 - H)^2.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        views: the projector.

    Returns:
        colours: [n,3] float32.
        weight: [n] float32, the sum over the views; 0 where no view sees the point.
    """
    colours, weights = [], []
    for p, n in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True):
        rgb, weight = project(p, n, views)
        k = views.config.top_views
        if k and k < len(weight):
            weight = torch.where(weight >= weight.topk(k, dim=0).values[-1], weight, 0.0)
        total = weight.sum(dim=0)
        colours.append((rgb * weight[..., None]).sum(dim=0) / total.clamp_min(1e-8)[:, None])
        weights.append(total)
    return torch.cat(colours), torch.cat(weights)


def project(points: Tensor, normals: Tensor, views: Projector) -> tuple[Tensor, Tensor]:
    """What each view shows at surface points.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        views: the projector.

    Returns:
        colours: [v,n,3] float32.
        weight: [v,n] float32, 0 where the view does not see the point.
    """
    cameras, config = views.cameras, views.config
    pixels, depth = cameras.project(points)
    size = pixels.new_tensor([cameras.width, cameras.height])
    grid = (pixels / size * 2 - 1)[:, None]
    rgb = F.grid_sample(views.colours, grid, padding_mode="border", align_corners=False)[:, :, 0].permute(0, 2, 1)
    trust = F.grid_sample(views.trust, grid, padding_mode="zeros", align_corners=False)[:, 0, 0]
    surface = F.grid_sample(views.depth, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0, 0]
    cosine = (_towards(points, cameras) * normals[None]).sum(dim=-1)
    # Depth changes by tan(angle) pixels per pixel, so grazing surfaces need more tolerance.
    slack = views.tolerance / cosine.clamp_min(0.2)
    visible = (cosine > config.min_cos) & (depth < surface + slack) & (surface > 0) & (depth > 0)
    return rgb, cosine.clamp_min(0) ** config.power * trust * visible


def colour_points(points: Tensor, normals: Tensor, views: Projector, fill: Fill) -> tuple[Tensor, Tensor]:
    """`blend_views`, with unseen points coloured by `fill`, shifted to meet the blended colours at the border.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        views: the projector.
        fill: the colour field.

    Returns:
        colours: [n,3] float32.
        weight: [n] float32 of the views; 0 where no view sees the point.
    """
    colours, weight = blend_views(points, normals, views)
    unseen = weight <= 0
    if bool(unseen.any()):
        colours[unseen] = fill(points[unseen])
        if views.config.smooth_unseen and bool((~unseen).any()):
            colours[unseen] = colours[unseen] + _unseen_shift(points, colours, unseen, fill)
    return colours.clamp(0, 1), weight


def texture_mesh(
    solid: trimesh.Trimesh, views: Projector, fill: Fill
) -> tuple[trimesh.Trimesh, trimesh.Trimesh, dict[str, Any]]:
    """Colour a mesh as `TextureConfig` says.

    Args:
        solid: the welded surface.
        views: the projector of this surface.
        fill: the colour field, for what no view sees.

    Returns:
        mesh: with a UV-mapped texture; with mode "vertex" the same as `solid`.
        solid: the welded surface with vertex colours.
        report: unseen_share of the texture (or vertices), and the atlas' kind.
    """
    config, normals = views.config, np.array(solid.vertex_normals)
    vertices = torch.from_numpy(np.array(solid.vertices)).float()
    colours, weight = colour_points(vertices, torch.from_numpy(normals).float(), views, fill)
    welded = export.coloured(solid, colours.numpy())
    if config.mode == "vertex":
        return welded, welded, {"unseen_share": float((weight <= 0).float().mean()), "atlas": "none"}
    atlas = unwrap(solid, config.size, config.atlas, config.atlas_seconds)
    picture, unseen = bake(solid, atlas, views, fill)
    mesh = export.textured(
        np.asarray(solid.vertices)[atlas.source], atlas.faces, atlas.uv, picture, normals[atlas.source]
    )
    return mesh, welded, {"unseen_share": unseen, "atlas": atlas.kind}


def bake(mesh: trimesh.Trimesh, atlas: Atlas, views: Projector, fill: Fill) -> tuple[np.ndarray, float]:
    """Colour the texels of an atlas.

    Args:
        mesh: the surface.
        atlas: its UV atlas.
        views: the projector.
        fill: the colour field, for what no view sees.

    Returns:
        texture: [size,size,3] uint8 sRGB.
        unseen: share of the charts' texels that no view sees.
    """
    config = views.config
    ids, face, weights = rasterize_atlas(atlas, config.size)
    corners = atlas.source[atlas.faces[face]]
    points = torch.from_numpy(np.einsum("mk,mkc->mc", weights, mesh.vertices[corners])).float()
    normals = np.einsum("mk,mkc->mc", weights, mesh.vertex_normals[corners])
    unit = F.normalize(torch.from_numpy(normals).float(), dim=-1)
    colours, weight = colour_points(points, unit, views, fill)
    picture = np.zeros((config.size * config.size, 3), dtype=np.float32)
    covered = np.zeros(config.size * config.size, dtype=bool)
    picture[ids], covered[ids] = colours.numpy(), True
    # Texels outside all charts take the nearest chart's colour, so no filter or mip level mixes in a foreign colour.
    _, (row, column) = ndimage.distance_transform_edt(~covered.reshape(config.size, -1), return_indices=True)
    unseen = float((weight <= 0).float().mean()) if len(weight) else 1.0
    picture = picture[row * config.size + column]
    return (picture * 255).round().clip(0, 255).astype(np.uint8), unseen


def rasterize_atlas(atlas: Atlas, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the texels that an atlas covers.

    Args:
        atlas: the atlas.
        size: side of the texture in texels.

    Returns:
        ids: [m] int64 flat texel numbers, row 0 on top.
        face: [m] int64.
        weights: [m,3] float64 barycentric coordinates in that face.
    """
    corners = torch.from_numpy(atlas.uv[atlas.faces] * [size, -size] + [0, size])  # f 3 2 in picture coordinates
    flat = torch.ones(corners.shape[:2], dtype=corners.dtype)  # charts do not overlap, so any one depth will do
    face = nearest_faces(corners, flat, size, size, perspective=False).flatten()
    ids = torch.nonzero(face >= 0)[:, 0]
    face = face[ids]
    weights = barycentric(corners[face], torch.stack([ids % size + 0.5, ids // size + 0.5], dim=-1).double())
    return ids.numpy(), face.numpy(), weights.numpy()


def _unseen_shift(points: Tensor, colours: Tensor, unseen: Tensor, fill: Fill) -> Tensor:
    """What to add to the u unseen points' colours [u,3]: blended minus field colour at the nearest seen points."""
    seen = torch.nonzero(~unseen)[:, 0]
    seen = seen[:: max(1, len(seen) // 20000)]
    difference = colours[seen] - fill(points[seen])
    distance, index = cKDTree(points[seen].numpy()).query(points[unseen].numpy(), k=range(1, 1 + min(8, len(seen))))
    weight = torch.from_numpy(1 / (distance + 1e-4)).float()[..., None]
    mean = (difference[torch.from_numpy(index)] * weight).sum(dim=1) / weight.sum(dim=1)
    # Far from anything seen, the field alone is as good a guess.
    return mean * torch.exp(-torch.from_numpy(distance[:, :1]).float() / _FADE)
