"""Rays: drawn from pixels, marched through occupied space, sampled near the surface, rendered as in NeuS.

Axis letters: r rays, k samples of a ray, m samples of all rays that are kept, p marching steps. All points and
directions are in the world frame, distances in world units along unit directions. Tensors are float32 unless said
otherwise.
"""

import importlib
import logging
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.config import SamplingConfig
from nova3d.hull import MASK_LEVEL, dilate
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

BACKENDS = ("torch", "nerfacc")


class RayBatch(NamedTuple):
    """Pixels of the views with their rays.

    Attributes:
        view: [r] int64, the view's number.
        origins: [r,3] float32.
        directions: [r,3] float32 unit vectors.
        rgb: [r,3] float32 in [0,1], on white.
        normal: [r,3] float32 unit vectors in the world frame, zero on the background.
        mask: [r] float32 coverage in [0,1].
    """

    view: Tensor
    origins: Tensor
    directions: Tensor
    rgb: Tensor
    normal: Tensor
    mask: Tensor


class PixelSampler:
    """Draws pixels of the object and of a ring around it, from all views that show the object.

    Args:
        views: the pictures.
        config: width of the ring and share of the pixels on the object.
        consistent: [v,h,w] float32, 0 for pixels that contradict the first solid and are never drawn. None: all may be
            drawn.
    """

    def __init__(self, views: ViewSet, config: SamplingConfig, consistent: Tensor | None = None) -> None:
        h, w = views.mask.shape[1:]
        origins, directions = views.cameras.rays()
        ring = max(1, round(config.ring_px * h / 256))
        foreground = views.mask > MASK_LEVEL
        near = dilate((views.mask > 0.02).float(), ring) > 0
        near &= foreground.flatten(1).any(dim=1)[:, None, None]
        if consistent is not None:
            near &= consistent > 0
        self.inner = torch.nonzero((foreground & near).flatten())[:, 0]
        self.outer = torch.nonzero((near & ~foreground).flatten())[:, 0]
        self.origins, self.directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        self.rgb, self.normals = views.rgb.reshape(-1, 3), views.normals.reshape(-1, 3)
        self.mask = views.mask.reshape(-1)
        self.pixels_per_view = h * w
        self.foreground_share = config.foreground

    def draw(self, count: int, generator: torch.Generator) -> RayBatch:
        """Draw `count` pixels with replacement, `foreground_share` of them on the object.

        Args:
            count: number of rays r.
            generator: CPU source of randomness.

        Returns:
            The pixels' values, and their rays by the cameras as given.
        """
        inner = round(count * self.foreground_share) if len(self.outer) else count
        ids = [_choose(self.inner, inner, generator)]
        if count > inner:
            ids.append(_choose(self.outer, count - inner, generator))
        pixel = torch.cat(ids)
        return RayBatch(
            view=torch.div(pixel, self.pixels_per_view, rounding_mode="floor"),
            origins=self.origins[pixel],
            directions=self.directions[pixel],
            rgb=self.rgb[pixel],
            normal=self.normals[pixel],
            mask=self.mask[pixel],
        )


def _choose(pixels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return pixels[torch.randint(len(pixels), (count,), generator=generator).to(pixels.device)]


# Marching: which parts of a ray lie where a surface may be.


class RayIntervals(NamedTuple):
    """Marching steps of rays.

    Attributes:
        edges: [r,p+1] float32 distances along the rays.
        occupied: [r,p] bool, whether a surface may lie between two edges.
    """

    edges: Tensor
    occupied: Tensor


class Marcher(Protocol):
    """Marches rays through an occupancy grid over [-radius, radius]^3, in equal steps from where they enter the box."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> RayIntervals:
        """Cut rays into steps and mark those whose middle lies in an occupied cell.

        Args:
            origins: [r,3] float32.
            directions: [r,3] float32 unit vectors.
            occupancy: [z,y,x] bool cells.
            radius: half the side of the grid's box.
            box: [2,3] float32 corners of the box to march through.
            steps: number of steps p, which span the box's diagonal.

        Returns:
            The steps' edges and occupancy.
        """
        ...


class TorchMarcher:
    """The portable reference, which looks up the cell of every step of every ray."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> RayIntervals:
        """See `Marcher`."""
        near, far = ray_aabb_intersect(origins, directions, box)
        edges, middles = _equal_steps(near, box, steps)
        x = origins[:, None] + middles[..., None] * directions[:, None]
        n = torch.tensor(occupancy.shape, device=x.device).flip(0)
        cell = ((x / radius + 1) * 0.5 * n).long().clamp_min(0).minimum(n - 1)
        occupied = occupancy[cell[..., 2], cell[..., 1], cell[..., 0]] & (middles < far[:, None])
        return RayIntervals(edges, occupied)


class NerfaccMarcher:
    """CUDA: nerfacc's grid traversal, whose packed intervals are scattered back to the steps."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> RayIntervals:
        """See `Marcher`."""
        nerfacc = importlib.import_module("nerfacc")
        near, far = ray_aabb_intersect(origins, directions, box)
        edges, _ = _equal_steps(near, box, steps)
        size = float((box[1] - box[0]).norm()) / steps
        aabb = torch.tensor([-radius] * 3 + [radius] * 3, device=origins.device)
        intervals, samples, _ = nerfacc.traverse_grids(
            origins.contiguous(),
            directions.contiguous(),
            occupancy.permute(2, 1, 0)[None].contiguous(),  # nerfacc's cells are [level, x, y, z]
            aabb[None],
            near_planes=near.contiguous(),
            far_planes=far.contiguous(),
            step_size=size,
            cone_angle=0.0,
        )
        middles = (intervals.vals[intervals.is_left] + intervals.vals[intervals.is_right]) / 2
        ray = samples.ray_indices
        index = ((middles - near[ray]) / size).long().clamp(0, steps - 1)
        occupied = torch.zeros(len(origins), steps, dtype=torch.bool, device=origins.device)
        occupied[ray, index] = True
        return RayIntervals(edges, occupied)


def pick_marcher(name: str, device: torch.device | str) -> Marcher:
    """Choose the marcher.

    Args:
        name: auto, torch or nerfacc. What auto chose on CUDA is logged.
        device: where the rays are.

    Returns:
        The marcher.

    Raises:
        InputError: where the name is unknown or that marcher cannot work on the device.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"sampling.backend '{name}' is none of auto, {', '.join(BACKENDS)}")
    on_cuda = torch.device(device).type == "cuda"
    reason = "it needs CUDA" if not on_cuda else _nerfacc_fault()
    if name == "nerfacc" and reason:
        raise InputError(f"sampling.backend 'nerfacc' does not work here ({reason}): use auto or torch")
    if name == "torch" or reason:
        if name == "auto" and on_cuda:
            log.info("march: torch (nerfacc: %s)", reason)
        return TorchMarcher()
    log.info("march: nerfacc")
    return NerfaccMarcher()


def _nerfacc_fault() -> str:
    """Why nerfacc cannot be used, or "". Its CUDA code is built on first use, which may fail."""
    try:
        backend = importlib.import_module("nerfacc.cuda._backend")
    except (ImportError, OSError) as error:
        return str(error)
    return "" if backend._C is not None else "its CUDA code could not be built"


def ray_aabb_intersect(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with an axis-aligned box.

    Args:
        origins: [r,3] float32.
        directions: [r,3] float32.
        box: [2,3] float32, lower and upper corner.

    Returns:
        Entry and exit distance [r], both >= 0; they are equal where a ray misses the box.
    """
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    ends = (box[:, None] - origins) * inverse
    near = ends.amin(dim=0).amax(dim=-1).clamp_min(0)
    far = ends.amax(dim=0).amin(dim=-1)
    return near, torch.maximum(far, near)


def _equal_steps(near: Tensor, box: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Edges [r,p+1] and middles [r,p] of equal steps from the entry on; p of them span the box's diagonal."""
    size = (box[1] - box[0]).norm() / steps
    edges = near[:, None] + size * torch.arange(steps + 1, device=near.device)
    return edges, edges[:, :-1] + size / 2


# Sample: distances along the rays, dense near the surface.


def importance_sample(
    origins: Tensor,
    directions: Tensor,
    intervals: RayIntervals,
    cached_sdf: Tensor,
    radius: float,
    samples: int,
    inv_s: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Sample distances by the inverse transform of the NeuS weights of a cached SDF.

    The cached SDF is read at the intervals' edges. Its weights within occupied intervals are blurred by one interval,
    since the cache is coarse and a little old, and mixed with a small even share so that no part is ever unseen.

    Args:
        origins: [r,3] float32.
        directions: [r,3] float32 unit vectors.
        intervals: the march of these rays.
        cached_sdf: [z,y,x] float32, node values over [-radius, radius]^3.
        radius: half the side of that box.
        samples: number of samples k.
        inv_s: inverse standard deviation s of the NeuS paper, above 0, per world unit.
        generator: for stratified random samples; None takes the strata's middles.

    Returns:
        [r,k] float32, sorted along each ray.
    """
    t = intervals.edges
    sdf = trilinear(cached_sdf, origins[:, None] + t[..., None] * directions[:, None], radius)
    cell = 2 * radius / (cached_sdf.shape[0] - 1)
    weights = render_weights(alpha_from_sdf(sdf, min(inv_s, 2 / cell)))
    weights = F.max_pool1d(weights[:, None], 3, 1, 1)[:, 0]
    # Where nothing is opaque yet, stay near what is closest to being a surface.
    closeness = torch.exp(-sdf.abs() / cell)
    closeness = 0.5 * (closeness[:, 1:] + closeness[:, :-1])
    # A ray without occupied intervals still gets samples, which find air.
    density = (weights + 0.05 * closeness + 2e-3) * intervals.occupied + 1e-6
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


def trilinear(grid: Tensor, x: Tensor, radius: float) -> Tensor:
    """Interpolate node values.

    Args:
        grid: [z,y,x] float32 node values over [-radius, radius]^3.
        x: [...,3] float32 points.
        radius: half the side of the box.

    Returns:
        [...] float32; outside the box, the border's value.
    """
    flat = (x / radius).reshape(1, 1, 1, -1, 3)
    values = F.grid_sample(grid[None, None], flat, mode="bilinear", padding_mode="border", align_corners=True)
    return values.reshape(x.shape[:-1])


# Render: NeuS (arXiv 2106.10689), as functions of padded [r,k] samples.


def alpha_from_sdf(sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """Opacity of the sections between samples (NeuS eq. 13).

    alpha_i = max((Phi(f_i) - Phi(f_i+1)) / Phi(f_i), 0), where Phi(f) = sigmoid(inv_s f). The values at
    both ends of a section are used, so sections of any length are right and no slope has to be estimated.

    Args:
        sdf: [r,k] float32 at sorted samples.
        inv_s: inverse standard deviation s of the NeuS paper, above 0, per world unit.

    Returns:
        [r,k-1] float32 in [0,1].
    """
    # The log of the ratio Phi(f_i+1) / Phi(f_i) is exact far inside, where both are zero in float32.
    log_phi = F.logsigmoid(sdf * inv_s)
    return 1 - torch.exp((log_phi[:, 1:] - log_phi[:, :-1]).clamp_max(0))


def render_weights(alpha: Tensor) -> Tensor:
    """Rendering weights T_i alpha_i, where T_i is the transmittance before section i.

    Args:
        alpha: [r,k-1] float32 in [0,1].

    Returns:
        [r,k-1] float32 in [0,1]; each ray's sum is at most 1.
    """
    transmittance = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(alpha[:, :1]), transmittance[:, :-1]], dim=-1)
    return before * alpha


def sample_weights(sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """Rendering weights of samples: each section's weight is shared between its two ends.

    A section is split where the SDF crosses zero, so the end nearer to the surface gets the larger share.

    Args:
        sdf: [r,k] float32 at sorted samples.
        inv_s: inverse standard deviation s of the NeuS paper, above 0, per world unit.

    Returns:
        [r,k] float32 in [0,1]; each ray's sum is at most 1.
    """
    weights = render_weights(alpha_from_sdf(sdf, inv_s))
    size = sdf.detach().abs() + 1e-6
    to_first = size[:, 1:] / (size[:, 1:] + size[:, :-1])
    zero = torch.zeros_like(weights[:, :1])
    return torch.cat([weights * to_first, zero], dim=-1) + torch.cat([zero, weights * (1 - to_first)], dim=-1)


def composite(weights: Tensor, kept: Tensor, colour: Tensor, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Render colour on white, normal and opacity.

    Only kept samples have a colour and a normal. The others have next to no weight, and the colours of the kept ones
    stand for them.

    Args:
        weights: [r,k] float32 rendering weights of all samples.
        kept: [m] int64 flat indices into r * k.
        colour: [m,3] float32 in [0,1].
        normal: [m,3] float32 unit vectors.

    Returns:
        rgb: [r,3] float32 in [0,1], on white.
        normal: [r,3] float32, not normalised.
        opacity: [r] float32 in [0,1].
    """
    opacity = weights.sum(dim=-1)
    w, ray = weights.reshape(-1).index_select(0, kept), kept // weights.shape[1]
    total = accumulate(w, ray, len(weights))
    scale = (opacity / total.clamp_min(1e-6)).detach()[:, None]
    rgb = accumulate(w[:, None] * colour, ray, len(weights)) * scale + (1 - opacity)[:, None]
    return rgb, accumulate(w[:, None] * normal, ray, len(weights)), opacity


def accumulate(values: Tensor, ray: Tensor, count: int) -> Tensor:
    """Sum samples' values along their rays.

    Args:
        values: [m,...] float32.
        ray: [m] int64, each sample's ray.
        count: number of rays r.

    Returns:
        [r,...] float32.
    """
    return values.new_zeros(count, *values.shape[1:]).index_add(0, ray, values)
