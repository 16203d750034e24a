"""The training loop: one readable page around accelerate."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor

from nova3d.errors import InputError
from nova3d.training.checkpoint import load_checkpoint, save_checkpoint
from nova3d.training.config import TrainConfig
from nova3d.training.data import Ahead, Draws, make_batch
from nova3d.training.health import BAD_STEPS, gradient_norms, report_bad_step
from nova3d.training.latents import Item
from nova3d.training.logs import LossTable, StatsLog
from nova3d.training.profiles import save_snapshot
from nova3d.training.setup import Run, prepare, rate
from nova3d.training.validation import Validation, save_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """`finished`: `path` is the model's folder; else the run was asked to stop, and it is the checkpoint's."""

    finished: bool
    step: int
    path: Path


def train(
    config: TrainConfig,
    device: str,
    progress: Callable[[int, int, str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train to `config.steps`, resuming where `config.resume` says.

    Every draw is a function of (seed, step, place in the global batch), so a resumed run repeats the uninterrupted one.
    stop: asked after every step; where it says so in any process, the run saves and ends. Raises InputError for bad
    data, folders or checkpoints, and where too many steps in a row are bad.
    """
    run = prepare(config, device)
    out, accelerator, main = run.out, run.accelerator, run.accelerator.is_main_process
    start = load_checkpoint(out, run.read, run.identity, config.resume, run.together)
    # One writer: several processes would cut the same file back at once.
    stats = StatsLog(out / "stats.jsonl", start) if main else None
    validation = Validation(run, start) if config.validate_every and config.data.validation else None
    table = LossTable(accelerator.device)
    micro_steps, done, stopping = run.loader.places.micro_steps, start, False
    addresses = [(step, micro) for step in range(start, config.steps) for micro in range(micro_steps)]

    with Ahead(run.loader, addresses, config.data.prefetch, config.data.threads) as batches:
        for step in range(start, config.steps):
            values, stopping = take_step(run, step, batches, table, stop)
            done = step + 1
            if stats:
                stats.add(step, values)
            save_now = done % config.checkpoint_every == 0 or done == config.steps or stopping
            if done % config.log_every == 0 or save_now:  # with every checkpoint, so that a resumed log is the same
                sums = accelerator.reduce(table.take(), "sum")
                if stats and (means := stats.flush(LossTable.means(sums) | _memory(accelerator.device))):
                    if config.trackers:
                        accelerator.log(means, step=done)
                    if progress:
                        progress(done, config.steps, f"loss {means.get('loss', float('nan')):.4f}")
            if done % config.optim.snapshot_every == 0 or done == config.steps:
                _snapshots(run, done)
            if save_now:
                last = save_checkpoint(out, done, run.write, run.identity, config.keep_checkpoints, run.together)
            if validation and done % config.validate_every == 0:
                validation(done)
            if stopping and done < config.steps:
                break
    if config.trackers:
        accelerator.end_training()
    if done < config.steps:
        log.info("asked to stop: saved '%s'; the same command goes on from there", last)
        return Outcome(False, done, last)
    save_model(run, out / "model", done)
    return Outcome(True, done, out / "model")


def take_step(
    run: Run, step: int, batches: Ahead[tuple[list[Item], Draws]], table: LossTable, stop: Callable[[], bool]
) -> tuple[dict[str, float], bool]:
    """One step over the global batch; returns what the log says of it, and whether any process was asked to stop."""
    config, accelerator, model = run.config, run.accelerator, run.model
    micro_steps = run.loader.places.micro_steps
    started, waited = time.perf_counter(), 0.0
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate(config.optim, step, config.steps)
    losses: list[Tensor] = []
    uids: list[str] = []
    for _ in range(micro_steps):
        asked = time.perf_counter()
        items, draws = next(batches)
        waited += time.perf_counter() - asked
        batch = make_batch(items, draws, run.encoder)
        uids += batch.uids
        with accelerator.accumulate(run.wrapped):
            with accelerator.autocast():  # what accelerate does by itself but for FSDP
                loss = run.wrapped(batch)
            accelerator.backward(loss.mean())
        losses.append(loss.detach())
        table.add(loss.detach(), batch.sigma)
    parts = gradient_norms(model, run.new_parameters)
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), config.optim.max_grad_norm)
    asked_to_stop = torch.tensor([float(stop())], device=accelerator.device)
    per_task = torch.stack(losses).mean(dim=(0, 1))
    rgb, normal, stopping = accelerator.reduce(torch.cat([per_task, asked_to_stop]), "mean").tolist()
    values = {"loss": (rgb + normal) / 2, "loss_rgb": rgb, "loss_normal": normal, "grad_norm": float(norm)}

    if reason := run.health.fault(values["loss"], values["grad_norm"]):
        everyone = gather_object(uids)
        if accelerator.is_main_process:
            report_bad_step(run.out, step, reason, everyone, values)
        if run.health.hopeless:
            raise InputError(
                f"{config.health.max_bad} bad steps in a row, last step {step} ({reason}): their objects are in "
                f"'{run.out / BAD_STEPS}'; lower optim.learning_rate, or resume from an older checkpoint"
            )
        values = {"skipped": 1.0}
    else:
        run.optimizer.step()
        for average in run.averages.values():
            average.update(model)
        values |= parts | {"skipped": 0.0}
    run.optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    values |= {"seconds": seconds, "data_seconds": waited, "data_wait": waited / seconds}
    values |= {
        "samples_per_second": run.loader.places.total / seconds,
        "lost_objects": float(run.loader.reader.skipped),
    }
    return values, stopping > 0


def _snapshots(run: Run, step: int) -> None:
    for name, average in run.averages.items():
        if name != "ema":
            save_snapshot(run.out, step, float(name), average, run.accelerator.is_main_process)


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
