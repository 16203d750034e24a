"""The fit: one readable loop from a ViewSet to trained fields, refined poses and their history."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.fusion import objective
from nova3d.fusion.checkpoint import Snapshot
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.conflict import NONE, ConflictField, penalty
from nova3d.fusion.encoding import pick_backend
from nova3d.fusion.fields import ColourField, SDFField, Sharpness
from nova3d.fusion.rays import pick_marcher
from nova3d.fusion.poses import PoseRefiner
from nova3d.fusion.occupancy import RayPool, grid_points, visual_hull
from nova3d.fusion.state import Fit
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]

_LOG_EVERY = 10  # steps between two readings of the losses (each waits for the device)
_SNAPSHOT_EVERY = 50  # steps between two good states kept in memory
_SAVE_EVERY = 20.0  # seconds between two checkpoints on disk
_RETRIES = 2  # how often a diverged run goes on from its last good state, with half the rates


class DivergedError(InputError):
    """The loss is not finite, and halving the rates did not help."""


def fit(
    views: ViewSet,
    config: FusionConfig,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    seconds: float | None = None,
) -> tuple[Fit, list[dict[str, float]]]:
    """Optimise fields and poses on `views`, on the views' device. Same seed, same result on a CPU.

    checkpoint: a file to continue from where it is this run's, and to save to on the way; the caller removes it.
    seconds: hurry the schedule so that the fit ends about then (what is done depends on the machine, then).
    A run that diverges goes on from its last good state with half the rates, twice at most. Raises InputError where
    the views show no object, DivergedError where the fit fails.
    """
    started = time.perf_counter()
    state = _initial(views, config)
    optimizer, rates = _optimizer(state)
    marcher = pick_marcher(config.sampling.backend, views.mask.device)
    none = torch.empty(0)
    scene = objective.Scene(RayPool(views, config.sampling), marcher, none, none, none)
    run = Snapshot.load(checkpoint, state, scene, optimizer, views) if checkpoint else None
    if run is None:
        _fit_hull(state, torch.Generator().manual_seed(config.optim.seed))
        run = Snapshot()
    steps, saved, good = config.optim.steps, started, run.copy(state, scene, optimizer)
    before = run.seconds
    while run.step < steps and (at := _progress(run, steps, seconds)) < 1:
        if run.step % config.hull.refresh == 0 or len(scene.cache) == 0:
            _look_again(state, scene, views, at)
        _set_rates(optimizer, rates, at, run.step, config, run.rate)
        entry = _step(state, scene, optimizer, run, at)
        run.step += 1
        run.seconds = before + time.perf_counter() - started
        if entry is None:
            continue
        if not math.isfinite(entry["loss"]):
            run = _recover(run, good, state, scene, optimizer, checkpoint)
            continue
        run.history.append(entry | {"seconds": run.seconds})
        if run.step - good.step >= _SNAPSHOT_EVERY:
            good = run.copy(state, scene, optimizer)
        if checkpoint and time.perf_counter() - saved > _SAVE_EVERY:
            run.copy(state, scene, optimizer).save(checkpoint, config, views)
            saved = time.perf_counter()
        if progress is not None:
            share = max(at, run.step / steps)
            left = run.seconds / max(share, 1e-6) * (1 - share)
            progress(share, f"fit {run.step}/{steps}, loss {entry['loss']:.4f}, {left:.0f} s left")
    state.step, state.lambda_0 = run.step, _lambda(1.0, run, config)
    if run.step < steps:
        log.warning("the time budget ended the fit after %d of %d steps, with its schedule hurried", run.step, steps)
    return state, run.history


def _look_again(state: Fit, scene: objective.Scene, views: ViewSet, at: float) -> None:
    """Carve the hull by the poses found so far, and read the SDF into the cache.

    While poses may be wrong the hull is too small here and too large there, so the surface may lie outside it; once
    they stand still it is carved for the last time and its margin closes.
    """
    config = state.config
    moving = config.pose.enabled and at < config.pose.stop
    margin = config.hull.dilate + (config.pose.slack if moving else 0.0)
    carve = moving and at - scene.carved_at >= config.pose.recarve
    if config.pose.enabled and 0 < margin < state.margin:
        state.poses.settle()
    if margin != state.margin or len(scene.box) == 0 or carve:
        scene.carved_at = at
        if config.pose.enabled and state.step > 0:
            forgive = config.pose.slack if moving else 0.0
            state.hull = visual_hull(replace(views, cameras=state.cameras), config.hull, config.field.radius, forgive)
        state.margin = margin
        scene.occupancy, scene.box = state.hull.occupancy(margin), state.hull.extent(margin)
    scene.cache = state.read_cache()


def _step(
    state: Fit, scene: objective.Scene, optimizer: torch.optim.Optimizer, run: Snapshot, at: float
) -> dict[str, float] | None:
    """One step at the share `at` of the run; the losses every few steps, else nothing."""
    config = state.config
    # Of (seed, step) alone, so that a resumed run draws what the whole one would have.
    generator = torch.Generator().manual_seed(config.optim.seed * 1_000_003 + run.step)
    state.sdf.open_levels = open_levels(at, config)
    moment = objective.Moment(
        progress=at,
        conflict=config.conflict.mode != NONE and at >= config.conflict.start,
        move=config.pose.enabled and config.pose.start <= at < config.pose.stop,
        lambda_0=_lambda(at, run, config),
        generator=generator,
    )
    ids = scene.pool.draw(config.sampling.rays, generator)
    terms, residual = objective.terms(state, scene, ids, moment)
    total = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    if moment.move:
        state.poses.project()
    state.step = run.step + 1
    if run.step % _LOG_EVERY:
        return None
    loss = float(total.detach())
    if math.isfinite(loss):
        run.residual = float(residual) if run.step == 0 else 0.8 * run.residual + 0.2 * float(residual)
    entry = {name: float(term.detach()) for name, term in terms.items()}
    entry |= {"step": float(run.step), "loss": loss, "inv_s": state.sharpness.number(), "lambda_0": moment.lambda_0}
    return entry | {"residual": run.residual}


def _recover(
    run: Snapshot,
    good: Snapshot,
    state: Fit,
    scene: objective.Scene,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path | None,
) -> Snapshot:
    """Back to the last good state with half the rates; raises DivergedError after too many such falls."""
    good.restore(state, scene, optimizer)
    step, falls = run.step, run.falls + 1
    if falls > _RETRIES:
        kept = ""
        if checkpoint:
            good.save(checkpoint, state.config, None)
            kept = f" (the state of step {good.step} is kept in '{checkpoint}')"
        raise DivergedError(f"the fit diverged at step {step}: lower optim.lr_grid or encoding.finest{kept}")
    log.warning("the fit diverged at step %d: going on from step %d with half the rates", step, good.step)
    good.falls, good.rate, good.seconds = falls, 0.5**falls, run.seconds
    return good.detached()


def _lambda(at: float, run: Snapshot, config: FusionConfig) -> float:
    """H may not become the cheapest answer to an ordinary residual: lambda_0 stays well above it."""
    return max(penalty(at, config.conflict), config.conflict.floor * run.residual)


def _progress(run: Snapshot, steps: int, seconds: float | None) -> float:
    """The share of the run done: of its steps, or of its time where that is shorter."""
    share = run.step / steps
    return share if seconds is None else max(share, min(1.0, run.seconds / max(seconds, 1e-3)))


def open_levels(at: float, config: FusionConfig) -> float:
    """Grid levels open at `at` in [0,1] of the run, with a fraction for the opening one."""
    c = config.encoding
    share = min(1.0, at / max(1e-9, c.open_until))
    return min(float(c.levels), c.start_levels + share * (c.levels - c.start_levels))


def _initial(views: ViewSet, config: FusionConfig) -> Fit:
    generator = torch.Generator().manual_seed(config.optim.seed)
    device = views.mask.device
    backend = pick_backend(config.encoding.backend, device)
    sdf = SDFField(config.encoding, config.field, config.encoding.finest or views.cameras.height, generator, backend)
    features = 1 + config.field.geometry_features
    colour = ColourField(features, config.field.colour_hidden, generator)
    conflict = ConflictField(
        config.field.colour_hidden, features, len(views), config.conflict, generator, config.field.radius
    )
    return Fit(
        config,
        sdf.to(device),
        colour.to(device),
        conflict.to(device),
        Sharpness(config.field.inv_s).to(device),
        PoseRefiner(views.cameras, config.pose).to(device),
        visual_hull(views, config.hull, config.field.radius, config.pose.slack if config.pose.enabled else 0.0),
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


def _optimizer(state: Fit) -> tuple[torch.optim.Optimizer, list[float]]:
    c = state.config.optim
    mlps: list[nn.Parameter] = [p for n, p in state.sdf.named_parameters() if n != "grid.table"]
    mlps += [*state.colour.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [state.sdf.grid.table], "lr": c.lr_grid},
        {"params": mlps, "lr": c.lr_mlp},
        {"params": list(state.sharpness.parameters()), "lr": c.lr_inv_s},
        {"params": list(state.poses.parameters()), "lr": state.config.pose.lr},
        {"params": list(state.conflict.parameters()), "lr": c.lr_conflict},
    ]
    # Plain Adam: weight decay would pull the tables to zero.
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True), [g["lr"] for g in groups]


def _set_rates(
    optimizer: torch.optim.Optimizer, rates: list[float], at: float, step: int, config: FusionConfig, scale: float
) -> None:
    """Linear warm-up, then cosine to `final_lr`; the poses' cosine ends where they are frozen."""
    c = config.optim
    warm = min(1.0, (step + 1) / max(1.0, c.warm_up * c.steps)) * scale
    for index, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        share = at / (config.pose.stop if index == 3 else 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        final = config.pose.final_lr if index == 3 else c.final_lr
        group["lr"] = rate * warm * (final + (1 - final) * cosine)
