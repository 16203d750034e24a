"""The portable render engine: a z-buffer in plain torch, the same code on CPU and CUDA.

Every triangle is expanded into the pixels of its bounding box. The nearest hit per pixel is the minimum of a 64-bit
key (depth, face), which makes the result independent of the order of execution. Surfaces are two-sided. Holes cut by a
texture's alpha are see-through. Translucent surfaces are drawn opaque and their opacity is measured.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.choices import Light
from nova3d.errors import InputError
from nova3d.images import linear_to_srgb, srgb_to_linear
from nova3d.rendering.engine import EngineConfig, Rendered, ViewCallback, check_settings, mesh_facts
from nova3d.rendering.meshes import Mesh, load_mesh
from nova3d.rendering.parts import Sampler, Wrap
from nova3d.rendering.reasons import Reason, RenderError

_CHUNK = 1 << 21  # candidate (face, pixel) pairs at a time; bounds memory to about 300 MB
_NEAR = 1e-3
_EMPTY = torch.iinfo(torch.int64).max


class RasterEngine:
    """The z-buffer below on the CPU or one CUDA device, as an `Engine`.

    Emission is not drawn, so nothing is ever overexposed.
    """

    def __init__(self, config: EngineConfig, normalise: bool = True):
        check_settings(replace(config, device=config.device.partition(":")[0]), devices=("cpu", "cuda"))
        self.config, self.normalise = config, normalise
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            raise RenderError(Reason.DEVICE, f"device '{config.device}' was asked for, but torch finds no CUDA GPU")

    def describe(self) -> dict[str, Any]:
        """Return name, torch's version and the settings that change pixels."""
        keys = ("device", "light", "supersample")
        return {"name": "raster", "version": torch.__version__} | {k: getattr(self.config, k) for k in keys}

    def render(self, path: Path, cameras: Cameras, on_view: ViewCallback) -> Rendered:
        """Load and draw one mesh file; see `Engine.render`."""
        try:
            return self._render(path, cameras, on_view)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise RenderError(Reason.OUT_OF_MEMORY, f"'{path}': {error}") from error

    def _render(self, path: Path, cameras: Cameras, on_view: ViewCallback) -> Rendered:
        mesh = load_mesh(path, self.config.limits())
        scale, centre = mesh.normalisation() if self.normalise else (1.0, torch.zeros(3))
        placed = mesh.placed(scale, centre).to(self.config.device)
        try:
            raster = rasterize(placed, cameras, self.config.supersample, self.config.light, on_view)
        except InputError as error:
            raise RenderError(Reason.BLANK_RENDER, f"'{path}': {error}") from error
        if raster.rgba.device.type != torch.device(self.config.device).type:
            raise RenderError(Reason.DEVICE, f"'{path}' was drawn on {raster.rgba.device}, not {self.config.device}")
        facts = mesh_facts(mesh) | {
            "scale": scale,
            "centre": centre.tolist(),
            "opacity": raster.opacity,
            "translucency": "drawn opaque",
            "overexposed": 0.0,  # irradiance stays below 1
        }
        return Rendered(raster.rgba.cpu(), raster.normals.cpu(), raster.depth.cpu(), facts, mesh)

    def close(self) -> None:
        """Nothing is kept running."""


@dataclass(frozen=True)
class Raster:
    """Pictures of one mesh.

    Attributes:
        rgba: [v,h,w,4] float32 in [0,1], straight-alpha sRGB.
        normals: [v,h,w,3] float32, unit world normals facing the camera; zero on background.
        depth: [v,h,w] float32, along the viewing axis in world units; 0 on background.
        opacity: mean alpha of the surfaces over the covered samples, 1 where nothing is translucent.
    """

    rgba: Tensor
    normals: Tensor
    depth: Tensor
    opacity: float


def rasterize(
    mesh: Mesh,
    cameras: Cameras,
    supersample: int = 3,
    light: Light = "studio",
    on_view: ViewCallback | None = None,
) -> Raster:
    """Draw a mesh from every camera, on the mesh's device.

    Colours are filtered premultiplied in linear light. Normals are averaged over the covered samples and renormalised.
    Depth is the mean of the covered samples.

    Args:
        mesh: the mesh, in the world frame.
        cameras: v cameras.
        supersample: samples per pixel and axis.
        light: see `irradiance`.
        on_view: called with the number of views done.

    Returns:
        The pictures, on the mesh's device.

    Raises:
        InputError: where no view shows anything.
    """
    fine = cameras.to(mesh.vertices.device).resized(cameras.width * supersample, cameras.height * supersample)
    distinct = {id(t): t for t in mesh.textures}
    filtered = {k: srgb_to_linear(_box_filter(t, 2 * max(fine.width, fine.height))) for k, t in distinct.items()}
    textures = [filtered[id(t)] for t in mesh.textures]
    colours = srgb_to_linear(mesh.colours)
    views = []
    for index in range(len(cameras)):
        views.append(_draw(mesh, textures, colours, fine[index], supersample, light))
        if on_view:
            on_view(index + 1)
    rgba, normals, depth, opacity = (torch.stack(parts) for parts in zip(*views, strict=True))
    if not bool((rgba[..., 3] > 0).any()):
        raise InputError("the mesh cannot be drawn: none of its triangles covers a pixel in any view")
    own, covered = opacity.sum(dim=0).tolist()
    return Raster(rgba, normals, depth, own / covered)


def _draw(
    mesh: Mesh, textures: list[Tensor], colours: Tensor, camera: Cameras, supersample: int, light: Light
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels, depth = camera.project(mesh.vertices)
    corners, z = pixels[0].double()[mesh.faces], depth[0].double()[mesh.faces]  # f 3 2, f 3
    perspective = camera.model == "perspective"
    solid = None
    if any(mesh.alphas):

        def solid(face: Tensor, weights: Tensor) -> Tensor:
            return _opacity(mesh, face, _on_surface(weights, z[face], perspective))[1]

    face = nearest_faces(corners, z, camera.width, camera.height, perspective, solid, mesh.one_sided)
    hit = torch.nonzero(face.flatten() >= 0)[:, 0]
    winner = face.flatten()[hit]

    centre = torch.stack([hit % camera.width + 0.5, hit // camera.width + 0.5], dim=-1).double()
    weights = _on_surface(barycentric(corners[winner], centre), z[winner], perspective)
    normals = _facing_normals(mesh, winner, weights, camera)
    linear = _albedo(mesh, textures, colours, winner, weights) * irradiance(normals, light)[:, None]
    surface = torch.cat([linear.clamp(0, 1), normals, (weights * z[winner].float()).sum(-1, keepdim=True)], dim=-1)

    samples = surface.new_zeros(camera.height * camera.width, 8)
    samples[hit] = torch.cat([surface, torch.ones_like(surface[:, :1])], dim=-1)
    image = samples.reshape(1, camera.height, camera.width, 8).permute(0, 3, 1, 2)
    mean = F.avg_pool2d(image, supersample)[0].permute(1, 2, 0)
    alpha = mean[..., 7:]
    covered = mean[..., :7] / alpha.clamp_min(1e-6)
    rgba = torch.cat([linear_to_srgb(covered[..., :3]), alpha], dim=-1)
    opacity = _opacity(mesh, winner, weights)[0].double().sum()
    return (
        rgba,
        F.normalize(covered[..., 3:6], dim=-1),
        covered[..., 6],
        torch.stack([opacity, opacity.new_tensor(len(hit))]),
    )


def nearest_faces(
    corners: Tensor,
    z: Tensor,
    width: int,
    height: int,
    perspective: bool,
    solid: Callable[[Tensor, Tensor], Tensor] | None = None,
    one_sided: Tensor | None = None,
) -> Tensor:
    """Find the nearest face at each pixel centre.

    Args:
        corners: [f,3,2] float64, the faces' corners in pixels.
        z: [f,3] float64, their depths.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        perspective: whether depth is interpolated as its inverse.
        solid: maps faces [n] and screen weights [n,3] to [n] bool: surface, not a hole. None: no face has holes.
        one_sided: [f] bool, faces whose backs are not drawn. None: all are drawn from both sides.

    Returns:
        [h,w] int64 index of a face, -1 where there is none.
    """
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = corners.new_tensor([width, height])
    low = (corners.amin(dim=1) - 0.5).ceil().clamp_min(0)
    high = torch.minimum((corners.amax(dim=1) - 0.5).floor(), size - 1)
    extent = (high - low + 1).clamp_min(0).long()
    drawable = (extent.prod(dim=-1) > 0) & (area.abs() > 1e-12) & (z.amin(dim=1) > _NEAR)
    if one_sided is not None:  # rows grow downwards: a face that turns left in the world turns right here
        drawable = drawable & ~(one_sided & (area > 0))
    ids = torch.nonzero(drawable)[:, 0]
    counts = extent[ids].prod(dim=-1)
    buffer = torch.full((height * width,), _EMPTY, dtype=torch.int64, device=corners.device)
    for part in _chunks(counts):
        repeats = counts[part]
        face = ids[part].repeat_interleave(repeats)
        start = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
        local = torch.arange(len(face), device=face.device) - start
        columns = extent[face, 0]
        x = low[face, 0].long() + local % columns
        y = low[face, 1].long() + local // columns
        weights = barycentric(corners[face], torch.stack([x + 0.5, y + 0.5], dim=-1).double())
        inside = (weights >= -1e-9).all(dim=-1)
        face, weights, pixel = face[inside], weights[inside], (y * width + x)[inside]
        if solid is not None:
            opaque = solid(face, weights)
            face, weights, pixel = face[opaque], weights[opaque], pixel[opaque]
        depth = 1 / (weights / z[face]).sum(-1) if perspective else (weights * z[face]).sum(-1)
        # Positive floats order as their bit patterns, so one integer minimum finds depth and face together.
        key = (depth.float().view(torch.int32).long() << 32) | face
        buffer.scatter_reduce_(0, pixel, key, reduce="amin")
    return torch.where(buffer == _EMPTY, -1, buffer & 0xFFFFFFFF).reshape(height, width)


def _chunks(counts: Tensor) -> list[slice]:
    """Slices of faces whose candidate counts add up to about _CHUNK."""
    if len(counts) == 0:
        return []
    bins = (counts.cumsum(0) - counts) // _CHUNK
    edges = torch.nonzero(torch.diff(bins))[:, 0] + 1
    bounds = [0, *edges.tolist(), len(counts)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Return the barycentric weights [n,3] of points [n,2] in triangles [n,3,2].

    They are non-negative inside, whatever the winding.
    """
    a, b, c = corners.unbind(dim=1)
    area = _cross(b - a, c - a)
    v = _cross(points - a, c - a) / area
    w = _cross(b - a, points - a) / area
    return torch.stack([1 - v - w, v, w], dim=-1)


def _on_surface(weights: Tensor, z: Tensor, perspective: bool) -> Tensor:
    """Screen-space weights [n,3] of corners at depths z [n,3] as float weights on the triangle itself."""
    if perspective:  # screen-space weights are affine in 1/z
        weights = weights / z
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.float()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _facing_normals(mesh: Mesh, face: Tensor, weights: Tensor, camera: Cameras) -> Tensor:
    """Interpolated unit normals [n,3] on the side of the surface that the camera sees.

    The side is decided by the flat face, not by the interpolated normal: near a silhouette a smooth normal may
    point slightly away and must not be reversed.
    """
    corners = mesh.vertices[mesh.faces[face]]  # n 3 3
    flat = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    to_camera = camera.c2w[0, :3, 2].expand_as(flat)
    if camera.model == "perspective":
        to_camera = camera.c2w[0, :3, 3] - corners.mean(dim=1)
    flat = flat * torch.where((flat * to_camera).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    smooth = F.normalize((weights[..., None] * mesh.normals[mesh.faces[face]]).sum(dim=1), dim=-1)
    return smooth * torch.where((smooth * flat).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def _albedo(mesh: Mesh, textures: list[Tensor], colours: Tensor, face: Tensor, weights: Tensor) -> Tensor:
    """Linear base colour [n,3]: texture lookup times the linear vertex colours."""
    colour = (weights[..., None] * colours[mesh.faces[face]]).sum(dim=1)
    material = mesh.face_material[face]
    plain = [texture.shape[:2] == (1, 1) for texture in textures]  # most of a file of thousands of materials
    white = colours.new_ones(3)
    texel = torch.stack([texture[0, 0] if one else white for texture, one in zip(textures, plain, strict=True)])
    colour = colour * texel[material]
    for index in torch.unique(material).tolist():
        if not plain[index]:
            hits = torch.nonzero(material == index)[:, 0]
            colour[hits] *= _sample_texture(mesh, textures[index], mesh.samplers[index], face[hits], weights[hits])
    return colour


def _opacity(mesh: Mesh, face: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the alpha [n] of the surfaces, 1 where they are opaque, and [n] bool: surface, not a hole."""
    opacity = weights.new_ones(len(face))
    solid = torch.ones_like(opacity, dtype=torch.bool)
    material = mesh.face_material[face]
    for index in torch.unique(material).tolist():
        alpha = mesh.alphas[index]
        if alpha is not None:
            hits = torch.nonzero(material == index)[:, 0]
            values = _sample_texture(mesh, alpha.values, mesh.samplers[index], face[hits], weights[hits])[:, 0]
            if mesh.opacity is not None:
                values = values * (weights[hits] * mesh.opacity[mesh.faces[face[hits]]]).sum(dim=1)
            solid[hits] = values >= alpha.cutoff
            if alpha.blended:
                opacity[hits] = values
    return opacity, solid


def _sample_texture(mesh: Mesh, texture: Tensor, sampler: Sampler, face: Tensor, weights: Tensor) -> Tensor:
    """Values [n,c] of a texture [h,w,c] at points given by faces and weights on them."""
    uv = (weights[..., None] * mesh.uv[mesh.faces[face]]).sum(dim=1)
    u, v = _wrap_coordinates(uv[:, 0], sampler.wrap[0]), _wrap_coordinates(uv[:, 1], sampler.wrap[1])
    grid = torch.stack([u * 2 - 1, 1 - v * 2], dim=-1)[None, None]
    mode = "nearest" if sampler.nearest else "bilinear"
    picture = texture.permute(2, 0, 1)[None]
    return F.grid_sample(picture, grid, mode, padding_mode="border", align_corners=False)[0, :, 0].T


def _wrap_coordinates(coordinate: Tensor, wrap: Wrap) -> Tensor:
    """Texture coordinates [n] moved into [0,1]."""
    if wrap == "clamp":
        return coordinate.clamp(0, 1)
    if wrap == "mirror":
        return 1 - (coordinate % 2.0 - 1).abs()
    return coordinate % 1.0


def irradiance(normals: Tensor, light: Light) -> Tensor:
    """Return the light that reaches surfaces, relative to full white.

    Args:
        normals: [n,3], unit world normals.
        light: "flat" is 1 everywhere, so that the picture is the base colour. "studio" is ambient light that is
            brighter from above, a key light from the upper right front and a weaker fill from the lower left back; all
            are fixed in the world and cast no shadows.

    Returns:
        [n] factors.
    """
    if light == "flat":
        return normals.new_ones(normals.shape[:-1])
    key = F.normalize(normals.new_tensor([0.35, 0.65, 0.67]), dim=0)
    fill = F.normalize(normals.new_tensor([-0.5, 0.3, -0.8]), dim=0)
    lit = 0.45 * (normals @ key).clamp_min(0) + 0.25 * (normals @ fill).clamp_min(0)
    return 0.40 + lit + 0.10 * normals[..., 1]


def _box_filter(texture: Tensor, largest: int) -> Tensor:
    """Box-filter a texture far finer than the picture, which would alias under the sample pattern."""
    factor = max(texture.shape[:2]) // largest
    if factor < 2:
        return texture
    return F.avg_pool2d(texture.permute(2, 0, 1)[None], factor, ceil_mode=True)[0].permute(1, 2, 0)
