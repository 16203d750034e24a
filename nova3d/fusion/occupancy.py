"""Where to look: the visual hull of the masks, a cached SDF grid, and ray samples placed where a surface may be."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.fusion.config import HullConfig, SamplingConfig
from nova3d.fusion.rays import March
from nova3d.fusion.rendering import section_alpha, section_weights
from nova3d.hull import carve, dilate
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_MASK_LEVEL = 0.5
_CHUNK = 1 << 17  # points projected or evaluated at a time


def grid_points(resolution: int, radius: float, device: torch.device | str = "cpu") -> Tensor:
    """[resolution^3, 3] (x, y, z) of the nodes of a grid over [-radius, radius]^3; z varies slowest, x fastest."""
    axis = torch.linspace(-radius, radius, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def lookup(grid: Tensor, x: Tensor, radius: float) -> Tensor:
    """Trilinear values [...] of a node grid [z,y,x] at points x [...,3]; outside, the border's value."""
    flat = (x / radius).reshape(1, 1, 1, -1, 3)
    values = F.grid_sample(grid[None, None], flat, mode="bilinear", padding_mode="border", align_corners=True)
    return values.reshape(x.shape[:-1])


@dataclass
class Hull:
    """distance [z,y,x] world units to the visual hull's surface, negative inside, on the nodes of the box."""

    distance: Tensor
    radius: float

    def signed(self, x: Tensor) -> Tensor:
        return lookup(self.distance, x, self.radius)

    def occupancy(self, margin: float) -> Tensor:
        """bool cells [z,y,x], one fewer than nodes along each axis: whether a corner lies within `margin`."""
        near = (self.distance < margin).float()[None, None]
        return F.max_pool3d(near, 2, 1)[0, 0] > 0

    def extent(self, margin: float) -> Tensor:
        """[2,3] corners of the axis-aligned box around what lies within `margin` of the hull."""
        inside = torch.nonzero(self.distance < margin)
        if len(inside) == 0:
            raise InputError("the views' masks have no common object: check the cameras and the masks")
        step = 2 * self.radius / (self.distance.shape[0] - 1)
        low, high = inside.min(dim=0).values.flip(0), inside.max(dim=0).values.flip(0)
        return torch.stack([(low - 1) * step - self.radius, (high + 1) * step - self.radius]).clamp(
            -self.radius, self.radius
        )


def visual_hull(views: ViewSet, config: HullConfig, radius: float, forgive: float = 0.0) -> Hull:
    """Carve the box by the masks: a node is outside where more than `tolerance` of the views see background there.

    Views without any foreground carve nothing, nor does a view where the node is outside its picture. forgive: by how
    many world units the outlines are widened where otherwise nothing were left (a thin object, cameras not yet right).
    Raises InputError where no view has foreground or nothing is left.
    """
    mask = views.mask
    seen = (mask > _MASK_LEVEL).flatten(1).any(dim=1)
    if not bool(seen.any()):
        raise InputError("the views show no object: every mask is empty; check alpha of rgb/*.png and normal/*.png")
    if not bool(seen.all()):
        log.warning("views %s have an empty mask and are not used", torch.nonzero(~seen)[:, 0].tolist())
    points = grid_points(config.resolution, radius, mask.device)
    n = config.resolution
    used = torch.nonzero(seen)[:, 0].tolist()
    kept = carve(
        points, mask[used], views.cameras[used], config.tolerance, outside=False, behind="unknown", padding="border"
    )
    solid = kept.reshape(n, n, n).cpu().numpy()
    # The border is air, or the object would have no surface there.
    for axis in range(3):
        np.moveaxis(solid, axis, 0)[[0, -1]] = False
    if not solid.any() and forgive > 0:
        log.warning("the masks have no common object as the cameras stand: carved with outlines widened by %g", forgive)
        return visual_hull(replace(views, mask=_widened(views, forgive)), config, radius)
    if not solid.any():
        raise InputError(
            "the views' masks have no common object: cameras and masks disagree, or the object is outside the box "
            f"of half side {radius} (field.radius)"
        )
    step = 2 * radius / (n - 1)
    distance = ndimage.distance_transform_edt(~solid) - ndimage.distance_transform_edt(solid)
    # Half a cell: the transform counts from node to node, the surface lies between.
    distance = (distance - 0.5 * np.sign(distance)) * step
    return Hull(torch.from_numpy(distance.astype(np.float32)).to(mask.device), radius)


def _widened(views: ViewSet, distance: float) -> Tensor:
    """The masks [v,h,w] grown by `distance` (world units at the object)."""
    reach = max(1, round(distance / pixel_size(views.cameras)))
    return dilate(views.mask, reach)


def pixel_size(cameras: Cameras) -> float:
    """World units that the coarsest camera's pixel spans at the origin, where the object is."""
    pixel = 1 / cameras.intrinsics[:, 0]
    if cameras.model == "perspective":
        pixel = pixel * cameras.c2w[:, :3, 3].norm(dim=-1)
    return float(pixel.max())


class RayPool:
    """The pixels worth a ray: the object and a ring around it, of all views; all flat, views one after another."""

    def __init__(self, views: ViewSet, config: SamplingConfig) -> None:
        h, w = views.mask.shape[1:]
        origins, directions = views.cameras.rays()
        ring = max(1, round(config.ring_px * h / 256))
        foreground = views.mask > _MASK_LEVEL
        near = F.max_pool2d((views.mask > 0.02).float()[:, None], 2 * ring + 1, 1, ring)[:, 0] > 0
        near &= foreground.flatten(1).any(dim=1)[:, None, None]
        order = torch.nonzero((foreground & near).flatten())[:, 0], torch.nonzero((near & ~foreground).flatten())[:, 0]
        self.inner, self.outer = order
        self.origins, self.directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        self.rgb, self.normals = views.rgb.reshape(-1, 3), views.normals.reshape(-1, 3)
        self.mask = views.mask.reshape(-1)
        self.per_view = h * w
        self.foreground_share = config.foreground

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` pixel ids [count], `foreground_share` of them on the object."""
        inner = round(count * self.foreground_share) if len(self.outer) else count
        pick = [_choose(self.inner, inner, generator)]
        if count > inner:
            pick.append(_choose(self.outer, count - inner, generator))
        return torch.cat(pick)

    def view_of(self, ids: Tensor) -> Tensor:
        return torch.div(ids, self.per_view, rounding_mode="floor")


def _choose(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (count,), generator=generator).to(pool.device)]


def sample_rays(
    origins: Tensor,
    directions: Tensor,
    march: March,
    cache: Tensor,
    radius: float,
    samples: int,
    inv_s: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Sorted distances [r,k] along rays [r,3], dense where the cached SDF [z,y,x] says a surface may be.

    The cache is read at the march's edges; the samples follow the NeuS weights of those values within the occupied
    steps, blurred by a step since the cache is a little old and coarse, plus a small even share so that nothing is
    ever unseen. With `generator` the samples are stratified at random, without it they are at the strata's middles.
    """
    t = march.edges
    sdf = lookup(cache, origins[:, None] + t[..., None] * directions[:, None], radius)
    cell = 2 * radius / (cache.shape[0] - 1)
    weights = section_weights(section_alpha(sdf, min(inv_s, 2 / cell)))
    weights = F.max_pool1d(weights[:, None], 3, 1, 1)[:, 0]
    # Where nothing is opaque yet, stay near what is closest to being a surface.
    closeness = torch.exp(-sdf.abs() / cell)
    closeness = 0.5 * (closeness[:, 1:] + closeness[:, :-1])
    # A ray with no occupied step still gets its samples, somewhere: they find air.
    density = (weights + 0.05 * closeness + 2e-3) * march.occupied + 1e-6
    cdf = F.pad((density / density.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
    k = samples
    strata = torch.arange(k, device=origins.device).expand(len(origins), k)
    if generator is None:
        jitter = torch.full((len(origins), k), 0.5, device=origins.device)
    else:
        jitter = torch.rand(len(origins), k, generator=generator).to(origins.device)
    u = ((strata + jitter) / k).contiguous()
    right = torch.searchsorted(cdf, u, right=True).clamp(1, t.shape[1] - 1)
    c0, c1 = cdf.gather(1, right - 1), cdf.gather(1, right)
    t0, t1 = t.gather(1, right - 1), t.gather(1, right)
    return t0 + (t1 - t0) * ((u - c0) / (c1 - c0).clamp_min(1e-9)).clamp(0, 1)
