"""Texture from the views: points are coloured by the views that see them, the rest by the colour field.

Some views may be trusted while others are not, as the input picture among generated views. The trusted ones paint all
that they see at a good angle, at their own resolution. All other colours are levelled to theirs (`levelling`).
Terms:

- A view is *trusted* where it shows what is true (`ViewSet.trusted`).
- *Visibility* in [0,1] says how well trusted views see a point: 1 from a good angle, 0 where none sees it.
- A *colour share* in [0,1] is the weight of the other views' colours where no trusted view sees a point
  (`Calibration.colour_shares`). The rest is the trusted view's colour, carried through the object.
- A *pixel weight* in [0,1] is how far one pixel of a view counts: less at the mask's rim and where H is high.

Shapes: v views, h w pixels, n points, m texels. Colours are sRGB in [0,1], straight (not multiplied by coverage).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.fusion import export
from nova3d.fusion.atlas import Atlas, unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.fusion.levelling import Levelling, SurfacePoints, level
from nova3d.fusion.occupancy import pixel_size
from nova3d.hull import dilate
from nova3d.rendering.raster import barycentric, nearest_faces
from nova3d.views import ViewSet

Fill = Callable[[Tensor], Tensor]
"""Gives the colour field's colours [n,3] float32 in [0,1] at points [n,3] float32."""

_CHUNK = 1 << 16  # points at a time
_FADE = 0.3  # world units over which the shift of the field's colours fades
_FULL_COSINE = 0.35  # from which on a trusted view alone paints what it sees; below, it fades out
_GRAZING = 0.02  # least cosine at which a trusted view sees a point at all
_SHARP_COSINE = 0.5  # from which on what a trusted view does not see takes its colours as they are
_RIM = 0.04  # world units from the outline, within which colours count less in soft ones
_BLUR = 0.02  # world units, standard deviation of soft colours
_LEVELLED = 30_000  # points of the surface at which colours are compared
_FILL = 0.6  # share of an atlas that its charts cover, about


@dataclass(frozen=True)
class Projector:
    """The views, prepared for colouring points of a mesh.

    Attributes:
        colours: [v,3,h,w] float32.
        pixel_weights: [v,1,h,w] float32 in [0,1].
        depth: [v,1,a*h,a*w] float32 of the mesh, a = 1 or 2.
        tolerance: world units by which a visible point's depth may differ.
        cameras: refined.
        config: settings of the texture.
        colour_shares: [v] float32 in [0,1].
    """

    colours: Tensor
    pixel_weights: Tensor
    depth: Tensor
    tolerance: float
    cameras: Cameras
    config: TextureConfig
    colour_shares: Tensor


@dataclass(frozen=True)
class TrustedProjector(Projector):
    """Trusted views, which also colour what they do not see.

    soft: [v,3,h,w] float32, the colours without rim and fine detail. A side that the view sees edge-on takes them, for
    it would smear single pixels of the outline, which often have some of the background's colour.
    """

    soft: Tensor


@dataclass(frozen=True)
class TrustedLayer:
    """What trusted views paint over all other colours.

    Attributes:
        trusted: their projectors, of one resolution each.
        levelling: of the other colours.
        size: side of the texture in texels.
    """

    trusted: tuple[TrustedProjector, ...]
    levelling: Levelling
    size: int


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
    views: ViewSet,
    mesh: trimesh.Trimesh,
    conflict: Tensor,
    config: TextureConfig,
    colour_shares: Tensor | None = None,
) -> Projector:
    """Prepare views for colouring a mesh.

    Args:
        views: the pictures with refined cameras, on the CPU.
        mesh: the surface.
        conflict: [v,h,w] float32 H in [0,1].
        config: settings of the texture.
        colour_shares: [v] float32 in [0,1]; None: 1 for all.

    Returns:
        The projector.
    """
    cameras = views.cameras
    erode = max(1, round(config.erode_px * cameras.height / 256)) if config.erode_px > 0 else 0
    straight, solid = _straight_colours(views, erode)
    pixel_weights = solid * (1 - conflict[:, None]).clamp(0, 1).square()
    fine = cameras.resized(cameras.width * 2, cameras.height * 2)
    depth = depth_maps(mesh, fine)[:, None]
    colour_shares = torch.ones(len(views)) if colour_shares is None else colour_shares
    return Projector(straight, pixel_weights, depth, pixel_size(cameras), cameras, config, colour_shares)


def make_trusted_projector(views: ViewSet, mesh: trimesh.Trimesh, config: TextureConfig) -> TrustedProjector:
    """Prepare trusted views, which paint over others, for colouring a mesh.

    `erode_px` counts their own pixels. Beyond the eroded mask, the nearest colour inside it goes on.

    Args:
        views: the pictures with their refined cameras, on the CPU.
        mesh: the surface.
        config: settings of the texture.

    Returns:
        The projector.
    """
    colours, pixel_weights = _straight_colours(views, max(1, round(config.erode_px)) if config.erode_px > 0 else 0)
    pixel = pixel_size(views.cameras)
    soft = colours.clone()
    for picture, smooth, weight in zip(colours, soft, pixel_weights, strict=True):
        inside = weight[0].numpy() > 0.5
        if inside.any():
            picture[:] = _extend_colours(picture, inside)
            smooth[:] = _soften(picture, inside, pixel)
    depth = depth_maps(mesh, views.cameras)[:, None]
    plain = replace(config, power=1.0, top_views=None, min_cos=_GRAZING)
    ones = torch.ones(len(views))
    return TrustedProjector(colours, pixel_weights, depth, pixel, views.cameras, plain, ones, soft)


def _extend_colours(picture: Tensor, inside: np.ndarray) -> Tensor:
    """A picture [3,h,w] in which pixels that are not `inside` [h,w] have the colour of the nearest one that is."""
    _, (row, column) = ndimage.distance_transform_edt(~inside, return_indices=True)
    return picture[:, row, column]


def _soften(picture: Tensor, inside: np.ndarray, pixel: float) -> Tensor:
    """A picture [3,h,w] blurred over its `inside` [h,w], where pixels far from the outline count most."""
    depth = ndimage.distance_transform_edt(inside).clip(max=_RIM / pixel) ** 2
    total = ndimage.gaussian_filter(depth.astype(np.float32), _BLUR / pixel)
    summed = [ndimage.gaussian_filter((c * depth).astype(np.float32), _BLUR / pixel) for c in picture.numpy()]
    known = total > 1e-3 * float(total.max())
    return _extend_colours(torch.from_numpy(np.stack(summed) / np.maximum(total, 1e-12)), known)


def _straight_colours(views: ViewSet, erode: int) -> tuple[Tensor, Tensor]:
    """Colours [v,3,h,w] without the white that they were composited on, and pixel weights [v,1,h,w] of a mask whose rim
    of `erode` pixels is left out."""
    mask = views.mask[:, None]
    # Undo the composite on white where a pixel shows enough of the object.
    straight = (views.rgb.permute(0, 3, 1, 2) - (1 - mask)) / mask.clamp_min(0.1)
    solid = -dilate(-views.mask, erode)[:, None]
    return straight.clamp(0, 1), solid.clamp(0, 1) ** 2


def blend_views(points: Tensor, normals: Tensor, views: Projector) -> tuple[Tensor, Tensor, Tensor]:
    """Colour surface points by the views that see them, weighted by cos^power * (1 - H)^2.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        views: the projector.

    Returns:
        colours: [n,3] float32.
        weight: [n] float32, the sum over the views; 0 where no view sees the point.
        colour_share: [n] float32, the views' shares blended likewise; their mean over all views where none sees the
            point.
    """
    colours, weights, colour_shares = [], [], []
    for p, n in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True):
        rgb, weight = project(p, n, views)
        k = views.config.top_views
        if k and k < len(weight):
            weight = torch.where(weight >= weight.topk(k, dim=0).values[-1], weight, 0.0)
        total = weight.sum(dim=0)
        colours.append((rgb * weight[..., None]).sum(dim=0) / total.clamp_min(1e-8)[:, None])
        weights.append(total)
        blended = (views.colour_shares[:, None] * weight).sum(dim=0) / total.clamp_min(1e-8)
        colour_shares.append(torch.where(total > 0, blended, views.colour_shares.mean()))
    return torch.cat(colours), torch.cat(weights), torch.cat(colour_shares)


def paint_trusted(
    points: Tensor, normals: Tensor, trusted: tuple[TrustedProjector, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour surface points by trusted views, whether these see them or not.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        trusted: one or more projectors of `make_trusted_projector`.

    Returns:
        seen: [n,3] float32, the colours where the views see the points.
        through: [n,3] float32, what the first view shows in front of a point or behind it, carried through the object;
            `soft` on sides that it would see edge-on.
        visibility: [n] float32 in [0,1].
    """
    seen_colours, through, visibility = [], [], []
    for p, n in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True):
        seen = [project(p, n, views) for views in trusted]
        rgb, weight = torch.cat([rgb for rgb, _ in seen]), torch.cat([weight for _, weight in seen])
        total = weight.sum(dim=0)
        blended = (rgb * weight[..., None]).sum(dim=0) / total.clamp_min(1e-8)[:, None]
        visibility.append(_smooth_step((weight.amax(dim=0) - _GRAZING) / (_FULL_COSINE - _GRAZING)))
        first = trusted[0].cameras[0]
        edge_on = 1 - _smooth_step((_towards(p, first)[0] * n).sum(dim=-1).abs() / _SHARP_COSINE)
        soft = _sample_pictures(trusted[0].soft[:1], first.project(p)[0], first)[0]
        seen_colours.append(blended)
        through.append(torch.where(total[:, None] > 0, blended, torch.lerp(rgb[0], soft, edge_on[:, None])))
    return torch.cat(seen_colours), torch.cat(through), torch.cat(visibility)


def _smooth_step(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _sample_pictures(pictures: Tensor, pixels: Tensor, cameras: Cameras) -> Tensor:
    """[v,n,c] bilinear values of pictures [v,c,h,w] at pixels [v,n,2]; those beyond the border are the border's."""
    grid = (pixels / pixels.new_tensor([cameras.width, cameras.height]) * 2 - 1)[:, None]
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)[:, :, 0].permute(0, 2, 1)


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
    rgb = _sample_pictures(views.colours, pixels, cameras)
    pixel_weight = F.grid_sample(views.pixel_weights, grid, padding_mode="zeros", align_corners=False)[:, 0, 0]
    surface = F.grid_sample(views.depth, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0, 0]
    cosine = (_towards(points, cameras) * normals[None]).sum(dim=-1)
    # Depth changes by tan(angle) pixels per pixel, so grazing surfaces need more tolerance.
    slack = views.tolerance / cosine.clamp_min(0.2)
    visible = (cosine > config.min_cos) & (depth < surface + slack) & (surface > 0) & (depth > 0)
    return rgb, cosine.clamp_min(0) ** config.power * pixel_weight * visible


def colour_points(points: Tensor, normals: Tensor, views: Projector, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
    """`blend_views`, with unseen points coloured by `fill`, shifted to meet the blended colours at the border.

    Args:
        points: [n,3] float32.
        normals: [n,3] float32 unit vectors.
        views: the projector.
        fill: the colour field.

    Returns:
        colours: [n,3] float32.
        weight: [n] float32 of the views; 0 where no view sees the point.
        colour_share: [n] float32, as of `blend_views`.
    """
    colours, weight, colour_share = blend_views(points, normals, views)
    unseen = weight <= 0
    if bool(unseen.any()):
        colours[unseen] = fill(points[unseen])
        if views.config.smooth_unseen and bool((~unseen).any()):
            colours[unseen] = colours[unseen] + _unseen_shift(points, colours, unseen, fill)
    return colours.clamp(0, 1), weight, colour_share


def texture_mesh(
    solid: trimesh.Trimesh, views: Projector, fill: Fill, trusted: tuple[TrustedProjector, ...] = ()
) -> tuple[trimesh.Trimesh, trimesh.Trimesh, dict[str, Any]]:
    """Colour a mesh as `TextureConfig` says.

    Args:
        solid: the welded surface.
        views: the projector of this surface.
        fill: the colour field, for what no view sees.
        trusted: projectors of trusted views, where `views` are not; these paint over all other colours.

    Returns:
        mesh: with a UV-mapped texture; with mode "vertex" the same as `solid`.
        solid: the welded surface with vertex colours.
        report: the atlas' kind, and shares of the texture (or vertices): unseen_share, which no view sees. With
            trusted views also trusted_share, which they paint where they see it, and mirrored_share, which their
            colours have where they do not, by the colour shares.
    """
    config, normals = views.config, np.array(solid.vertex_normals)
    vertices, unit = torch.from_numpy(np.array(solid.vertices)).float(), torch.from_numpy(normals).float()
    colours, weight, colour_share = colour_points(vertices, unit, views, fill)
    over, shares = None, {"unseen_share": float((weight <= 0).float().mean())}
    if trusted:
        samples = SurfacePoints.spread(solid, _LEVELLED)
        plain, _, _ = colour_points(samples.points, samples.normals, views, fill)
        target, _, visibility = paint_trusted(samples.points, samples.normals, trusted)
        levelling = level(solid, samples, plain, target, visibility)
        over = TrustedLayer(trusted, levelling, texture_size(solid, trusted, config))
        levelled = levelling.apply(colours, levelling.offset)
        colours, shares = _composite_trusted(
            levelled, colour_share, weight > 0, *paint_trusted(vertices, unit, trusted)
        )
    welded = export.coloured(solid, colours.numpy())
    if config.mode == "vertex":
        return welded, welded, {**shares, "atlas": "none"}
    atlas = unwrap(solid, over.size if over else config.size, config.atlas, config.atlas_seconds)
    texture, shares = bake(solid, atlas, views, fill, over)
    mesh = export.textured(
        np.asarray(solid.vertices)[atlas.source], atlas.faces, atlas.uv, texture, normals[atlas.source]
    )
    return mesh, welded, {**shares, "atlas": atlas.kind}


def texture_size(mesh: trimesh.Trimesh, trusted: tuple[TrustedProjector, ...], config: TextureConfig) -> int:
    """Side of a texture whose texels are about as large as the trusted views' pixels, within the config's limits."""
    texel = min(views.tolerance for views in trusted)
    return int(np.clip(64 * round(np.sqrt(mesh.area / _FILL) / texel / 64), config.size, max(config.size, config.most)))


def _composite_trusted(
    colours: Tensor, colour_share: Tensor, others: Tensor, seen: Tensor, through: Tensor, visibility: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Colours [n,3] with those of trusted views over them, and the shares of the report.

    colour_share: [n]. others: bool [n], whether another view sees the point. seen, through, visibility: of
    `paint_trusted`.
    """
    hidden = torch.lerp(through, colours, colour_share[:, None])
    shares = {
        "unseen_share": float((~others & (visibility <= 0)).float().mean()),
        "trusted_share": float(visibility.mean()),
        "mirrored_share": float(((1 - visibility) * (1 - colour_share)).mean()),
    }
    return torch.lerp(hidden, seen, visibility[:, None]).clamp(0, 1), shares


def bake(
    mesh: trimesh.Trimesh, atlas: Atlas, views: Projector, fill: Fill, over: TrustedLayer | None = None
) -> tuple[np.ndarray, dict[str, float]]:
    """Colour the texels of an atlas.

    Args:
        mesh: the surface.
        atlas: its UV atlas.
        views: the projector.
        fill: the colour field, for what no view sees.
        over: what trusted views paint over that.

    Returns:
        texture: [size,size,3] uint8 sRGB.
        shares: of the charts' texels, as in the report of `texture_mesh`.
    """
    size = views.config.size
    ids, texels = texels_of(mesh, atlas, size)
    colours, weight, colour_share = colour_points(texels.points, texels.normals, views, fill)
    shares = {"unseen_share": float((weight <= 0).float().mean()) if len(weight) else 1.0}
    if over is not None:
        # The other views are coarser than the texture, so their colours are found at `config.size` and enlarged.
        levelled = over.levelling.apply(colours, texels.interpolate(over.levelling.offset))
        layers = torch.cat([levelled, colour_share[:, None], (weight > 0).float()[:, None]], dim=1)
        if over.size != size:
            coarse = torch.from_numpy(spread_out(ids, layers.numpy(), size))
            size = over.size
            ids, texels = texels_of(mesh, atlas, size)
            layers = images.interpolate(coarse, size, size).reshape(size * size, -1)[ids]
        painted = paint_trusted(texels.points, texels.normals, over.trusted)
        colours, shares = _composite_trusted(layers[:, :3], layers[:, 3], layers[:, 4] > 0.5, *painted)
    texture = spread_out(ids, colours.numpy(), size)
    return (texture * 255).round().clip(0, 255).astype(np.uint8), shares


def texels_of(mesh: trimesh.Trimesh, atlas: Atlas, size: int) -> tuple[np.ndarray, SurfacePoints]:
    """The texels that a mesh's atlas covers.

    Args:
        mesh: the surface.
        atlas: its UV atlas.
        size: side of the texture in texels.

    Returns:
        Their flat numbers [m] int64, row 0 on top, and where they are on the surface.
    """
    ids, face, weights = rasterize_atlas(atlas, size)
    return ids, SurfacePoints.of(mesh, atlas.source[atlas.faces[face]], weights)


def spread_out(ids: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """A picture of some of its pixels.

    Args:
        ids: [m] int64, flat numbers of pixels.
        values: [m,c] float32 at them.
        size: side of the picture, pixels.

    Returns:
        [size,size,c] float32. Other pixels take the nearest value, so no filter or mip level mixes in a foreign one.
    """
    picture = np.zeros((size * size, values.shape[1]), dtype=np.float32)
    covered = np.zeros(size * size, dtype=bool)
    picture[ids], covered[ids] = values, True
    _, (row, column) = ndimage.distance_transform_edt(~covered.reshape(size, -1), return_indices=True)
    return picture[row * size + column]


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
