"""One batch of rays to the terms of the paper's loss (its eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nova3d.fusion import losses
from nova3d.fusion.conflict import CLOSED_FORM, MLP, TRIMMED, closed_form
from nova3d.fusion.rays import Marcher
from nova3d.fusion.rendering import composite, gather_rays, sample_weights
from nova3d.fusion.occupancy import RayPool, sample_rays
from nova3d.fusion.schedules import value_at
from nova3d.fusion.state import Fit, unit


@dataclass
class Scene:
    """What a batch is drawn from. cache: the SDF on the hull's nodes, now and then read anew. box: [2,3] corners.

    carved_at: the share of the run at which the hull was last carved.
    """

    pool: RayPool
    marcher: Marcher
    occupancy: Tensor
    box: Tensor
    cache: Tensor
    carved_at: float = 0.0


@dataclass(frozen=True)
class Moment:
    """Where the run stands: its share done, whether H counts yet and poses move, lambda_0, this step's randomness."""

    progress: float
    conflict: bool
    move: bool
    lambda_0: float
    generator: torch.Generator


def terms(state: Fit, scene: Scene, ids: Tensor, at: Moment) -> tuple[dict[str, Tensor], Tensor]:
    """The weighted terms for the rays of pixels `ids` [r], and the mean colour residual on the object."""
    config, c, pool = state.config, state.config.loss, scene.pool
    view, target_normal = pool.view_of(ids), pool.normals[ids]
    origins, directions = pool.origins[ids], pool.directions[ids]
    if config.pose.enabled:
        with torch.set_grad_enabled(at.move):
            origins, directions = state.poses(origins, directions, view)
            if config.pose.normals_follow:
                target_normal = state.poses.turn(target_normal, view)
    x = _sample(state, scene, origins, directions, at.generator)  # r k 3
    rays, random = x.shape[0] * x.shape[1], _random_points(state, scene.box, at.generator)
    # One query for everything keeps the cost per step in few large operations.
    query = state.sdf.query(torch.cat([x.reshape(-1, 3), *random]))
    sdf = query.sdf.split([rays, len(random[0]), len(random[1])])
    weights = sample_weights(sdf[0].view(x.shape[:2]), state.sharpness())
    # Most samples lie in front of the surface or behind it: gradient, colour and conflict are asked of the others.
    kept = torch.nonzero(weights.detach().flatten() > config.sampling.min_weight)[:, 0]
    others = torch.arange(rays, len(query.x), device=kept.device)
    gradient = query.gradient(torch.cat([kept, others])).split([len(kept), len(random[0]), len(random[1])])

    normals, ray = unit(gradient[0]), kept // x.shape[1]
    # The colour may not bend the surface through its normal input, only through the weights.
    # (index_select: its gradient is many times faster on a CPU than an index's.)
    points, features = query.x.index_select(0, kept), query.features.index_select(0, kept)
    colours, f_c = state.colour(points, normals.detach(), features)
    rgb, normal, opacity = composite(weights, kept, colours, normals)
    conflict = torch.zeros_like(opacity)
    if at.conflict and config.conflict.mode == MLP:
        h = state.conflict(f_c, features, directions.index_select(0, ray), view[ray], points)
        w = weights.flatten().index_select(0, kept)
        conflict = gather_rays((w.detach() if config.conflict.detach else w) * h, ray, len(opacity))

    mask, target = pool.mask[ids], pool.rgb[ids]
    weight = torch.where(view == 0, c.input_view, 1.0)
    residual = losses.residual(rgb, target)
    trust = weight
    if at.conflict and config.conflict.mode == CLOSED_FORM:
        conflict = closed_form(residual.detach(), at.lambda_0)
    if at.conflict and config.conflict.mode == TRIMMED:
        trust = weight * (residual.detach() <= torch.quantile(residual.detach(), 1 - config.conflict.trim))
    found = {
        "colour": losses.colour_loss(residual, conflict, at.lambda_0, trust),
        "normal": losses.normal_loss(normal, target_normal, directions.detach(), mask > 0.5, weight, c.normal_keep),
        "mask": losses.mask_loss(opacity, mask, weight),
        "eikonal": losses.eikonal_loss(torch.cat(gradient[:2])),
        "sparse": losses.sparse_loss(sdf[1], c.sparse_tau),
        "smooth": losses.smooth_loss(gradient[1], gradient[2]),
    }
    found = {name: value_at(getattr(c, name), at.progress) * term for name, term in found.items()}
    if at.move:
        found["pose"] = state.poses.prior()
    on_object = residual.detach()[mask > 0.5]
    return found, on_object.mean() if len(on_object) else on_object.sum()


def _sample(state: Fit, scene: Scene, origins: Tensor, directions: Tensor, generator: torch.Generator) -> Tensor:
    """Sample points [r,k,3] on rays [r,3]; only the rays carry a gradient, not the distances along them."""
    config, radius = state.config.sampling, state.config.field.radius
    with torch.no_grad():
        march = scene.marcher.march(origins, directions, scene.occupancy, radius, scene.box, config.probes)
        sharpness = state.sharpness.number()
        t = sample_rays(origins, directions, march, scene.cache, radius, config.samples, sharpness, generator)
    return origins[:, None] + t[..., None] * directions[:, None]


def _random_points(state: Fit, box: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [m,3] in the hull's box and their neighbours for the smoothness term."""
    m = state.config.sampling.random_points
    uniform = torch.rand(m, 3, generator=generator).to(box.device)
    points = box[0] + uniform * (box[1] - box[0])
    shift = torch.randn(m, 3, generator=generator).to(box.device) * state.config.loss.smooth_delta
    return points, points + shift
