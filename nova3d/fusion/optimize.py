"""The fit: optimises fields and poses to the views (paper III).

Each step draws rays, renders them by the fields, weights the losses of eq. 6 and updates fields and poses.
Shapes: r rays, k samples per ray, m samples that are kept, n random points. Tensors are float32 unless said otherwise.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion import losses
from nova3d.fusion.checkpoint import Snapshot
from nova3d.fusion.config import CLOSED_FORM, MLP, NONE, TRIMMED, FusionConfig
from nova3d.fusion.rays import RayBatch, accumulate, composite, importance_sample, sample_weights
from nova3d.fusion.state import FusionState, fit_to_hull, initial_state
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_LOG_EVERY = 10  # steps between two readings of the losses; each one waits for the device
_SNAPSHOT_EVERY = 50  # steps between two snapshots in memory
_SAVE_SECONDS = 20.0  # between two checkpoints on disk
_RESTARTS = 2  # most restarts of a diverged fit from its last snapshot, each with half the learning rates


class DivergedError(InputError):
    """The loss is not finite, and halving the learning rates did not help."""


def fit(
    views: ViewSet,
    config: FusionConfig,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    seconds: float | None = None,
    detail: ViewSet | None = None,
) -> FusionState:
    """Optimise fields and poses. The same seed gives the same result on a CPU.

    A fit that diverges is restarted from its last snapshot with half the learning rates, twice at most.

    Args:
        views: the views, on the device to fit on.
        config: all settings.
        progress: called every few steps with the step, the number of steps and the loss; what it raises ends the fit.
        checkpoint: a file to save to, and to continue from where it was saved by the same run. The caller removes it.
        seconds: a time limit, to which the schedule is shortened; the result then depends on the machine.
        detail: the outline view at a resolution of its own.

    Returns:
        The fit's state after its last step.

    Raises:
        InputError: where the views show no object or the checkpoint cannot be written.
        DivergedError: where the fit fails.
    """
    started = saved = time.perf_counter()
    state = initial_state(views, config, detail)
    config = state.config
    if not (checkpoint and Snapshot.load(checkpoint, state, detail)):
        fit_to_hull(state)
    snapshot, seconds_before, steps = Snapshot.of(state), state.seconds, config.optim.steps
    while state.step < steps and (done := _share_done(state, seconds)) < 1:
        if state.step % config.hull.refresh == 0 or len(state.cached_sdf) == 0:
            state.refresh_occupancy(done)
        set_learning_rates(state, done)
        logged = train_step(state, done)
        state.seconds = seconds_before + time.perf_counter() - started
        if logged is None:
            continue
        if not math.isfinite(logged["loss"]):
            snapshot = _restart(state, snapshot, checkpoint, detail)
            continue
        state.history.append(logged | {"seconds": state.seconds})
        if state.step - snapshot.step >= _SNAPSHOT_EVERY:
            snapshot = Snapshot.of(state)
        if checkpoint and time.perf_counter() - saved > _SAVE_SECONDS:
            Snapshot.of(state).save(checkpoint, config, state.views, detail)
            saved = time.perf_counter()
        done = max(done, state.step / steps)
        if progress:
            progress(round(done * steps), steps, f"fitting, step {state.step}/{steps}, loss {logged['loss']:.4f}")
    state.lambda_0 = losses.conflict_penalty(1.0, state.mean_residual, config.conflict)
    if state.step < steps:
        log.warning("the time budget ended the fit after %d of %d steps; its schedule was shortened", state.step, steps)
    return state


@dataclass(frozen=True)
class StepContext:
    """The values that hold for one step.

    Attributes:
        progress: share of the run that is done, in [0,1].
        conflict: whether H is used already.
        poses_move: whether poses are refined.
        lambda_0: the penalty of eq. 5.
        generator: CPU source of this step's randomness.
    """

    progress: float
    conflict: bool
    poses_move: bool
    lambda_0: float
    generator: torch.Generator


class Rendering(NamedTuple):
    """A batch of rays rendered by the fields, with the values that the regularisers read.

    Attributes:
        rgb: [r,3] float32 in [0,1], on white.
        normal: [r,3] float32, not normalised.
        opacity: [r] float32 in [0,1].
        conflict: [r] float32 H in [0,1].
        gradient: [m,3] float32, of the SDF at the kept samples.
        random_points: [n,3] float32, uniform in the hull's box.
        random_sdf: [n] float32, the SDF there.
        random_gradient: [n,3] float32, its gradient there.
        neighbour_gradient: [n,3] float32, its gradient at a small random offset from each of these points.
    """

    rgb: Tensor
    normal: Tensor
    opacity: Tensor
    conflict: Tensor
    gradient: Tensor
    random_points: Tensor
    random_sdf: Tensor
    random_gradient: Tensor
    neighbour_gradient: Tensor


def train_step(state: FusionState, progress: float) -> dict[str, float] | None:
    """One optimisation step.

    Args:
        state: is updated.
        progress: share of the run that is done.

    Returns:
        The weighted losses, every few steps; otherwise None.
    """
    config, step = state.config, state.step
    # Seeded by the step alone, so that a resumed run draws the same samples as an uninterrupted one. It is `step_seed`
    # of `nova3d.utils.seeds`, written out so that a step is read in few files.
    generator = torch.Generator().manual_seed((config.optim.seed * 1_000_003 + step) % 2**63)
    state.sdf.open_levels = open_levels(progress, config)
    context = StepContext(
        progress=progress,
        conflict=config.conflict.mode != NONE and progress >= config.conflict.start,
        poses_move=config.pose.enabled and config.pose.start <= progress < config.pose.stop,
        lambda_0=losses.conflict_penalty(progress, state.mean_residual, config.conflict),
        generator=generator,
    )
    batch = state.pixels.draw(config.sampling.rays, generator)
    batch = refine_rays(state, batch, context)
    rendering = render(state, batch, context)
    residual = losses.colour_residual(rendering.rgb, batch.rgb)
    terms = loss_terms(state, batch, rendering, residual, context)
    loss = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    if context.poses_move:
        state.poses.project()
    state.step += 1
    if step % _LOG_EVERY:
        return None
    on_object = residual.detach()[batch.mask > 0.5]
    mean_residual = float(on_object.mean() if len(on_object) else on_object.sum())
    if math.isfinite(float(loss.detach())):
        state.mean_residual = mean_residual if step == 0 else 0.8 * state.mean_residual + 0.2 * mean_residual
    logged = {name: float(term.detach()) for name, term in terms.items()}
    logged |= {"step": float(step), "loss": float(loss.detach()), "inv_s": state.sharpness.item()}
    return logged | {"lambda_0": context.lambda_0, "residual": state.mean_residual}


def refine_rays(state: FusionState, batch: RayBatch, context: StepContext) -> RayBatch:
    """Move rays by their views' M_v.

    Args:
        state: its poses are applied.
        batch: rays by the cameras as given.
        context: this step's values.

    Returns:
        The moved rays. Target normals are rotated only with `pose.normals_follow`.
    """
    if not state.config.pose.enabled:
        return batch
    with torch.set_grad_enabled(context.poses_move):
        origins, directions = state.poses(batch.origins, batch.directions, batch.view)
        normal = batch.normal
        if state.config.pose.normals_follow:
            normal = state.poses.rotate(normal, batch.view)
    return batch._replace(origins=origins, directions=directions, normal=normal)


def render(state: FusionState, batch: RayBatch, context: StepContext) -> Rendering:
    """The forward pass: volume-render colour, normal, opacity and conflict H of a batch of rays.

    The SDF is queried once for all points, which is faster than several smaller queries. Most samples lie before or
    behind the surface. Only samples with a weight above `sampling.min_weight` get a gradient, a colour and a conflict.

    Args:
        state: the fields.
        batch: the rays, moved by their poses.
        context: this step's values.

    Returns:
        The rendered rays.
    """
    config, radius = state.config, state.config.field.radius
    with torch.no_grad():  # the gradient reaches the rays, not the distances along them
        intervals = state.marcher.march(
            batch.origins, batch.directions, state.occupancy, radius, state.box, config.sampling.probes
        )
        t = importance_sample(
            batch.origins,
            batch.directions,
            intervals,
            state.cached_sdf,
            radius,
            config.sampling.samples,
            state.sharpness.item(),
            context.generator,
        )
    x = batch.origins[:, None] + t[..., None] * batch.directions[:, None]  # r k 3
    random, neighbour = _random_points(state, context.generator)
    query = state.sdf.query(torch.cat([x.reshape(-1, 3), random, neighbour]))
    sdf, random_sdf, _ = query.sdf.split([t.numel(), len(random), len(neighbour)])
    weights = sample_weights(sdf.view(t.shape), state.sharpness())
    kept = torch.nonzero(weights.detach().flatten() > config.sampling.min_weight)[:, 0]
    others = torch.arange(t.numel(), len(query.x), device=kept.device)
    gradient, random_gradient, neighbour_gradient = query.gradient(torch.cat([kept, others])).split(
        [len(kept), len(random), len(neighbour)]
    )
    normals, ray = F.normalize(gradient, dim=-1, eps=1e-6), kept // t.shape[1]
    # The colour loss acts on the surface through the weights only, so the normal input is detached.
    # The gradient of index_select is many times faster on a CPU than that of an index.
    points, features = query.x.index_select(0, kept), query.features.index_select(0, kept)
    colours, f_c = state.colour(points, normals.detach(), features)
    rgb, normal, opacity = composite(weights, kept, colours, normals)
    conflict = torch.zeros_like(opacity)
    if context.conflict and config.conflict.mode == MLP:
        h = state.conflict(f_c, features, batch.directions.index_select(0, ray), batch.view[ray], points)
        w = weights.flatten().index_select(0, kept)
        conflict = accumulate((w.detach() if config.conflict.detach else w) * h, ray, len(opacity))
    return Rendering(rgb, normal, opacity, conflict, gradient, random, random_sdf, random_gradient, neighbour_gradient)


def loss_terms(
    state: FusionState, batch: RayBatch, rendering: Rendering, residual: Tensor, context: StepContext
) -> dict[str, Tensor]:
    """The weighted terms of eq. 6.

    Args:
        state: for the settings, the first solid and the pose prior.
        batch: the targets.
        rendering: the same rays, rendered.
        residual: [r] float32, `losses.colour_residual` of both.
        context: this step's values.

    Returns:
        Scalars by name; the loss is their sum.
    """
    config, conflict, c = state.config.loss, rendering.conflict, state.config.conflict
    trusted = state.trusted_among_others[batch.view]
    conflict = torch.where(trusted, 0.0, conflict)
    weight = colour_weight = state.view_weights[int(context.poses_move)][batch.view]
    if context.conflict and c.mode == CLOSED_FORM:
        free = losses.closed_form_conflict(residual.detach(), context.lambda_0)
        conflict = torch.where(trusted, 0.0, free)
    if context.conflict and c.mode == TRIMMED:
        kept = residual.detach() <= torch.quantile(residual.detach(), 1 - c.trim)
        colour_weight = weight * (kept | trusted)
    foreground, directions = batch.mask > 0.5, batch.directions.detach()
    terms = {
        "colour": losses.colour_loss(residual, conflict, context.lambda_0, colour_weight),
        "normal": losses.normal_loss(
            rendering.normal, batch.normal, directions, foreground, weight, config.normal_keep
        ),
        "mask": losses.mask_loss(rendering.opacity, batch.mask, weight),
        "eikonal": losses.eikonal_loss(torch.cat([rendering.gradient, rendering.random_gradient])),
        "sparse": losses.sparse_loss(rendering.random_sdf, config.sparse_tau),
        "smooth": losses.smooth_loss(rendering.random_gradient, rendering.neighbour_gradient),
    }
    if state.outline_view is not None:
        distance = state.hull.signed_distance(rendering.random_points)
        terms["solid"] = losses.solid_loss(rendering.random_sdf, distance, state.margin)
    terms = {name: losses.weight_at(getattr(config, name), context.progress) * term for name, term in terms.items()}
    if context.poses_move:
        terms["pose"] = state.poses.prior()
    return terms


def _random_points(state: FusionState, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n,3] in the hull's box and their neighbours [n,3] for the smoothness term."""
    n, box = state.config.sampling.random_points, state.box
    uniform = torch.rand(n, 3, generator=generator).to(box.device)
    points = box[0] + uniform * (box[1] - box[0])
    offset = torch.randn(n, 3, generator=generator).to(box.device) * state.config.loss.smooth_delta
    return points, points + offset


def open_levels(progress: float, config: FusionConfig) -> float:
    """Number of open grid levels: linear from `start_levels` to all levels at `open_until` of the run."""
    c = config.encoding
    share = min(1.0, progress / max(1e-9, c.open_until))
    return min(float(c.levels), c.start_levels + share * (c.levels - c.start_levels))


def set_learning_rates(state: FusionState, progress: float) -> None:
    """Set the learning rates: linear warm-up, then a cosine to `final_lr` at each parameter group's `stop`."""
    c = state.config.optim
    warm_up = min(1.0, (state.step + 1) / max(1.0, c.warm_up * c.steps)) * state.rate_scale
    for group in state.optimizer.param_groups:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / group["stop"])))
        group["lr"] = group["initial_lr"] * warm_up * (group["final_lr"] + (1 - group["final_lr"]) * cosine)


def _share_done(state: FusionState, seconds: float | None) -> float:
    """The share of the run that is done: of its steps or of its time, whichever is larger."""
    share = state.step / state.config.optim.steps
    return share if seconds is None else max(share, min(1.0, state.seconds / max(seconds, 1e-3)))


def _restart(state: FusionState, snapshot: Snapshot, checkpoint: Path | None, detail: ViewSet | None) -> Snapshot:
    """Go back to the snapshot with half the learning rates; raises DivergedError after too many restarts."""
    step, spent, restarts = state.step, state.seconds, state.restarts + 1
    if restarts > _RESTARTS:
        advice = "lower optim.lr_grid or encoding.finest"
        if checkpoint:
            snapshot.save(checkpoint, state.config, state.views, detail, diverged=True)
            advice += f" (with a lower optim.lr_grid the fit goes on from step {snapshot.step}, kept in '{checkpoint}')"
        raise DivergedError(f"the fit diverged at step {step}: {advice}")
    log.warning("the fit diverged at step %d: going on from step %d with half the rates", step, snapshot.step)
    snapshot.restore(state)
    state.restarts, state.rate_scale, state.seconds = restarts, 0.5**restarts, spent
    snapshot.restarts, snapshot.rate_scale, snapshot.seconds = state.restarts, state.rate_scale, state.seconds
    return snapshot
