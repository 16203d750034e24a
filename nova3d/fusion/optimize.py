"""The fit: one readable loop from a ViewSet to trained fields, refined poses and their history."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nova3d.fusion import losses
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.conflict import ConflictField, penalty
from nova3d.fusion.fields import ColourField, FieldSample, SDFField, Sharpness
from nova3d.fusion.poses import PoseRefiner
from nova3d.fusion.rendering import Rendered, composite, sample_weights
from nova3d.fusion.sampling import RayPool, grid_points, sample_rays, visual_hull
from nova3d.fusion.state import Fit, unit
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


def fit(views: ViewSet, config: FusionConfig, progress: Progress | None = None) -> tuple[Fit, list[dict[str, float]]]:
    """Optimise fields and poses on `views`, on the views' device. Same seed, same result on a CPU.

    Raises InputError where the views show no object, DivergedError where the loss is not finite.
    """
    generator = torch.Generator().manual_seed(config.optim.seed)
    state = _initial(views, config, generator)
    _fit_hull(state, generator)
    pool = RayPool(views, config.sampling)
    box = state.hull.extent(config.hull.dilate)
    optimizer, rates = _optimizer(state)
    history: list[dict[str, float]] = []
    cache = torch.empty(0)
    residual_level = 0.0
    started = time.perf_counter()
    steps = config.optim.steps
    for step in range(steps):
        at = step / steps
        state.sdf.open_levels = open_levels(at, config)
        _set_rates(optimizer, rates, step, config)
        if step % config.hull.refresh == 0:
            cache = state.read_cache()
        use_conflict = config.conflict.enabled and at >= config.conflict.start
        move = config.pose.enabled and config.pose.start <= at < config.pose.stop
        ids = pool.draw(config.sampling.rays, generator)
        lambda_0 = max(penalty(at, config.conflict), 2 * residual_level)
        terms, residual = _terms(state, pool, ids, cache, box, use_conflict, move, lambda_0, generator)
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if move:
            state.poses.project()
        state.step = step + 1
        if step % 10 == 0 or step == steps - 1:
            value = float(total.detach())
            if not math.isfinite(value):
                raise DivergedError(f"the fit diverged at step {step}: lower optim.lr_grid or encoding.finest")
            # H may not become the cheapest answer to an ordinary residual: 2 lambda_0 stays well above it.
            residual_level = float(residual) if step == 0 else 0.8 * residual_level + 0.2 * float(residual)
            entry = {name: float(term.detach()) for name, term in terms.items()}
            entry |= {"step": float(step), "loss": value, "inv_s": state.sharpness.number(), "lambda_0": lambda_0}
            entry |= {"residual": residual_level, "seconds": time.perf_counter() - started}
            history.append(entry)
            if progress is not None:
                left = entry["seconds"] / (step + 1) * (steps - step - 1)
                progress((step + 1) / steps, f"fit {step + 1}/{steps}, loss {value:.4f}, {left:.0f} s left")
    return state, history


def open_levels(at: float, config: FusionConfig) -> float:
    """Grid levels open at `at` in [0,1] of the run, with a fraction for the opening one."""
    c = config.encoding
    share = min(1.0, at / max(1e-9, c.open_until))
    return min(float(c.levels), c.start_levels + share * (c.levels - c.start_levels))


def _initial(views: ViewSet, config: FusionConfig, generator: torch.Generator) -> Fit:
    device = views.mask.device
    sdf = SDFField(config.encoding, config.field, config.encoding.finest or views.cameras.height, generator)
    features = 1 + config.field.geometry_features
    colour = ColourField(features, config.field.colour_hidden, generator)
    conflict = ConflictField(config.field.colour_hidden, features, len(views), config.conflict, generator)
    return Fit(
        config,
        sdf.to(device),
        colour.to(device),
        conflict.to(device),
        Sharpness(config.field.inv_s).to(device),
        PoseRefiner(views.cameras, config.pose).to(device),
        visual_hull(views, config.hull, config.field.radius),
        views.cameras,
    )


def _fit_hull(state: Fit, generator: torch.Generator) -> None:
    """Regress the hull's distance: the surface then starts near the object, and no rendering is spent on a sphere."""
    config = state.config
    if config.field.init != "hull":
        return
    state.sdf.open_levels = config.encoding.start_levels
    optimizer = torch.optim.Adam(
        [
            {"params": [state.sdf.grid.table], "lr": config.optim.lr_grid},
            {"params": [p for n, p in state.sdf.named_parameters() if n != "grid.table"], "lr": 5e-3},
        ],
        betas=(0.9, 0.99),
        eps=1e-15,
        fused=True,
    )
    nodes = grid_points(state.hull.distance.shape[0], config.field.radius, state.hull.distance.device)
    near = nodes[state.hull.distance.flatten().abs() < 0.05]
    cell = 2 * config.field.radius / (state.hull.distance.shape[0] - 1)
    for _ in range(config.hull.fit_steps):
        close = near[torch.randint(len(near), (3072,), generator=generator).to(near.device)]
        anywhere = nodes[torch.randint(len(nodes), (1024,), generator=generator).to(near.device)]
        x = torch.cat([close, anywhere])
        x = x + ((torch.rand(x.shape, generator=generator) - 0.5) * cell).to(x.device)
        loss = (state.sdf.sdf(x) - state.hull.signed(x)).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _terms(
    state: Fit,
    pool: RayPool,
    ids: Tensor,
    cache: Tensor,
    box: Tensor,
    use_conflict: bool,
    move: bool,
    lambda_0: float,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:
    """The weighted terms of one batch of rays, and the median colour residual on the object."""
    config, c = state.config, state.config.loss
    view, origins, directions = pool.view_of(ids), pool.origins[ids], pool.directions[ids]
    target_normal = pool.normals[ids]
    moved = config.pose.enabled
    if moved:
        with torch.set_grad_enabled(move):
            origins, directions = state.poses(origins, directions, view)
            if config.pose.normals_follow:
                target_normal = state.poses.turn(target_normal, view)
    with torch.no_grad():
        t = sample_rays(
            origins, directions, cache, box, config.field.radius, config.sampling, state.sharpness.number(), generator
        )
    r, k = t.shape
    x = (origins[:, None] + t[..., None] * directions[:, None]).reshape(-1, 3)
    random, neighbour = _random_points(state, box, generator)
    # One query for everything keeps the cost per step in few large operations.
    sample = state.sdf(torch.cat([x, random, neighbour]))
    on_rays = FieldSample(*(part[: r * k] for part in sample))
    m = len(random)
    random_sdf, random_gradient = sample.sdf[r * k : r * k + m], sample.gradient[r * k : r * k + m]
    rendered = _render(state, on_rays, x, directions, view, (r, k), use_conflict)

    mask, target = pool.mask[ids], pool.rgb[ids]
    weight = torch.where(view == 0, c.input_view, 1.0)
    directions = directions.detach()
    terms = {
        "colour": c.colour * losses.colour_loss(rendered.colour, target, rendered.conflict, lambda_0, weight),
        "normal": c.normal
        * losses.normal_loss(rendered.normal, target_normal, directions, mask > 0.5, weight, c.normal_keep),
        "mask": c.mask * losses.mask_loss(rendered.opacity, mask, weight),
        "eikonal": c.eikonal * losses.eikonal_loss(sample.gradient[: r * k + m]),
        "sparse": c.sparse * losses.sparse_loss(random_sdf, c.sparse_tau),
        "smooth": c.smooth * losses.smooth_loss(random_gradient, sample.gradient[r * k + m :]),
    }
    if move:
        terms["pose"] = state.poses.prior()
    residual = (rendered.colour.detach() - target).norm(dim=-1)[mask > 0.5]
    return terms, residual.median() if len(residual) else residual.sum()


def _render(
    state: Fit,
    sample: FieldSample,
    x: Tensor,
    directions: Tensor,
    view: Tensor,
    shape: tuple[int, int],
    use_conflict: bool,
) -> Rendered:
    r, k = shape
    weights = sample_weights(sample.sdf.view(r, k), state.sharpness())
    # The colour may not bend the surface through its normal input, only through the weights.
    normal = unit(sample.gradient)
    colour, f_c = state.colour(x.detach() if not x.requires_grad else x, normal.detach(), sample.features)
    conflict = None
    if use_conflict:
        d = directions[:, None].expand(r, k, 3).reshape(-1, 3)
        ids = view[:, None].expand(r, k).reshape(-1)
        conflict = state.conflict(f_c, sample.features, d, ids, x).view(r, k)
    return composite(weights, colour.view(r, k, 3), normal.view(r, k, 3), conflict, detach=state.config.conflict.detach)


def _random_points(state: Fit, box: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [m,3] in the hull's box and their neighbours for the smoothness term."""
    m = state.config.sampling.random_points
    uniform = torch.rand(m, 3, generator=generator).to(box.device)
    points = box[0] + uniform * (box[1] - box[0])
    shift = torch.randn(m, 3, generator=generator).to(box.device) * state.config.loss.smooth_delta
    return points, points + shift


def _optimizer(state: Fit) -> tuple[torch.optim.Optimizer, list[float]]:
    c = state.config.optim
    mlps: list[nn.Parameter] = [p for n, p in state.sdf.named_parameters() if n != "grid.table"]
    mlps += [*state.colour.parameters(), *state.conflict.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [state.sdf.grid.table], "lr": c.lr_grid},
        {"params": mlps, "lr": c.lr_mlp},
        {"params": list(state.sharpness.parameters()), "lr": c.lr_inv_s},
        {"params": list(state.poses.parameters()), "lr": state.config.pose.lr},
    ]
    # Plain Adam: weight decay would pull the tables to zero.
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True), [g["lr"] for g in groups]


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[float], step: int, config: FusionConfig) -> None:
    """Linear warm-up, then cosine to `final_lr`; the poses' cosine ends where they are frozen."""
    c = config.optim
    warm = min(1.0, (step + 1) / max(1.0, c.warm_up * c.steps))
    for index, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        share = step / c.steps / (config.pose.stop if index == 3 else 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        group["lr"] = rate * warm * (c.final_lr + (1 - c.final_lr) * cosine)
