"""Texture from the views: a UV atlas, texels coloured by every view that sees them, the rest by the colour field."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.fusion.atlas import Atlas, unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.fusion.occupancy import pixel_size
from nova3d.rendering.raster import barycentric, nearest_faces
from nova3d.views import ViewSet

__all__ = ["Atlas", "Projector", "bake", "complete", "depth_maps", "paint", "project", "projector", "texels", "unwrap"]

_CHUNK = 1 << 16
_REACH = 0.3  # world units over which the shift of the field's colours fades


@dataclass(frozen=True)
class Projector:
    """The views, ready to colour points: straight colours [v,3,h,w], trust [v,1,h,w], depth [v,1,H,W], cameras."""

    colours: Tensor
    trust: Tensor
    depth: Tensor
    tolerance: float
    cameras: Cameras
    config: TextureConfig


def depth_maps(mesh: trimesh.Trimesh, cameras: Cameras) -> Tensor:
    """[v,h,w] depth along each camera's axis of the nearest surface that faces it, 0 where there is none."""
    vertices = torch.from_numpy(np.array(mesh.vertices)).float()
    faces, normals = torch.from_numpy(np.array(mesh.faces)), torch.from_numpy(np.array(mesh.face_normals)).float()
    middles = vertices[faces].mean(dim=1)
    return torch.stack([_depth(vertices, faces, middles, normals, cameras.to("cpu")[v]) for v in range(len(cameras))])


def _depth(vertices: Tensor, faces: Tensor, middles: Tensor, normals: Tensor, camera: Cameras) -> Tensor:
    # Of a closed surface only the front is ever nearest; an open one lets views look at its inside, which has no paint.
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


def projector(
    views: ViewSet, cameras: Cameras, mesh: trimesh.Trimesh, conflict: Tensor, config: TextureConfig
) -> Projector:
    """Prepare `views` seen by `cameras` (refined) for colouring `mesh`; conflict [v,h,w] in [0,1]. All on the CPU."""
    h = views.cameras.height
    mask = views.mask[:, None]
    # Undo the white composite where there is enough of the object in a pixel; leave the rim out.
    straight = (views.rgb.permute(0, 3, 1, 2) - (1 - mask)) / mask.clamp_min(0.1)
    erode = max(1, round(config.erode_px * h / 256)) if config.erode_px > 0 else 0
    solid = -F.max_pool2d(-mask, 2 * erode + 1, 1, erode)
    trust = (solid.clamp(0, 1) ** 2) * (1 - conflict[:, None]).clamp(0, 1).square()
    trust[0] *= config.input_view
    fine = cameras.resized(cameras.width * 2, cameras.height * 2)
    depth = depth_maps(mesh, fine)[:, None]
    return Projector(straight.clamp(0, 1), trust, depth, pixel_size(cameras), cameras, config)


def paint(points: Tensor, normals: Tensor, views: Projector) -> tuple[Tensor, Tensor]:
    """Colours [n,3] of surface points [n,3] with unit normals [n,3], and their total weight [n] (0: seen by no view).

    A view counts with cos^power * (1 - H)^2 where the point is on its nearest surface.
    """
    colours, weights = [], []
    for p, n in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True):
        rgb, weight = project(p, n, views)
        k = views.config.top_views
        if 0 < k < len(weight):
            weight = torch.where(weight >= weight.topk(k, dim=0).values[-1], weight, 0.0)
        total = weight.sum(dim=0)
        colours.append((rgb * weight[..., None]).sum(dim=0) / total.clamp_min(1e-8)[:, None])
        weights.append(total)
    return torch.cat(colours), torch.cat(weights)


def project(points: Tensor, normals: Tensor, views: Projector) -> tuple[Tensor, Tensor]:
    """Colour [v,n,3] that each view shows at points [n,3] with unit normals [n,3], and its weight [v,n]."""
    cameras, config = views.cameras, views.config
    pixels, depth = cameras.project(points)
    size = pixels.new_tensor([cameras.width, cameras.height])
    grid = (pixels / size * 2 - 1)[:, None]
    rgb = F.grid_sample(views.colours, grid, padding_mode="border", align_corners=False)[:, :, 0].permute(0, 2, 1)
    trust = F.grid_sample(views.trust, grid, padding_mode="zeros", align_corners=False)[:, 0, 0]
    surface = F.grid_sample(views.depth, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0, 0]
    cosine = (_towards(points, cameras) * normals[None]).sum(dim=-1)
    # Depth changes by tan(angle) pixels per pixel: grazing surfaces need more room.
    slack = views.tolerance / cosine.clamp_min(0.2)
    visible = (cosine > config.min_cos) & (depth < surface + slack) & (surface > 0) & (depth > 0)
    return rgb, cosine.clamp_min(0) ** config.power * trust * visible


def texels(atlas: Atlas, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels covered by the atlas: flat ids [m] (row 0 on top), their face [m] and barycentric weights [m,3]."""
    corners = torch.from_numpy(atlas.uv[atlas.faces] * [size, -size] + [0, size])  # f 3 2 in picture coordinates
    flat = torch.ones(corners.shape[:2], dtype=corners.dtype)  # charts do not overlap: any one depth will do
    face = nearest_faces(corners, flat, size, size, perspective=False).flatten()
    ids = torch.nonzero(face >= 0)[:, 0]
    face = face[ids]
    weights = barycentric(corners[face], torch.stack([ids % size + 0.5, ids // size + 0.5], dim=-1).double())
    return ids.numpy(), face.numpy(), weights.numpy()


def bake(
    mesh: trimesh.Trimesh, atlas: Atlas, views: Projector, fill: Callable[[Tensor], Tensor]
) -> tuple[np.ndarray, float]:
    """The texture [size,size,3] uint8 sRGB and the share of charted texels that no view sees.

    `fill` gives the colour field's colours [n,3] at points [n,3]; it paints what is unseen, shifted to meet the
    baked colours at the border.
    """
    config = views.config
    ids, face, weights = texels(atlas, config.size)
    corners = atlas.source[atlas.faces[face]]
    points = torch.from_numpy(np.einsum("mk,mkc->mc", weights, mesh.vertices[corners])).float()
    normals = np.einsum("mk,mkc->mc", weights, mesh.vertex_normals[corners])
    unit = F.normalize(torch.from_numpy(normals).float(), dim=-1)
    colours, weight = complete(points, unit, views, fill)
    picture = np.zeros((config.size * config.size, 3), dtype=np.float32)
    covered = np.zeros(config.size * config.size, dtype=bool)
    picture[ids], covered[ids] = colours.numpy(), True
    # Every uncharted texel takes its nearest chart's colour: no filter or mip level ever meets a foreign colour.
    _, (row, column) = ndimage.distance_transform_edt(~covered.reshape(config.size, -1), return_indices=True)
    unseen = float((weight <= 0).float().mean()) if len(weight) else 1.0
    picture = picture[row * config.size + column]
    return (picture * 255).round().clip(0, 255).astype(np.uint8), unseen


def complete(
    points: Tensor, normals: Tensor, views: Projector, fill: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`paint`, with unseen points coloured by `fill`; returns colours [n,3] and the views' weight [n]."""
    colours, weight = paint(points, normals, views)
    unseen = weight <= 0
    if bool(unseen.any()):
        colours[unseen] = fill(points[unseen])
        if views.config.smooth_unseen and bool((~unseen).any()):
            colours[unseen] = colours[unseen] + _offset(points, colours, unseen, fill)
    return colours.clamp(0, 1), weight


def _offset(points: Tensor, colours: Tensor, unseen: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """What to add to the field's colours [u,3]: the baked minus the field's colour at the nearest seen points."""
    seen = torch.nonzero(~unseen)[:, 0]
    seen = seen[:: max(1, len(seen) // 20000)]
    difference = colours[seen] - fill(points[seen])
    distance, index = cKDTree(points[seen].numpy()).query(points[unseen].numpy(), k=range(1, 1 + min(8, len(seen))))
    weight = torch.from_numpy(1 / (distance + 1e-4)).float()[..., None]
    mean = (difference[torch.from_numpy(index)] * weight).sum(dim=1) / weight.sum(dim=1)
    # Far from anything seen the field alone is as good a guess.
    return mean * torch.exp(-torch.from_numpy(distance[:, :1]).float() / _REACH)
