"""The training loop, around accelerate."""

import logging
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
from accelerate.utils import gather_object, get_int_from_env
from torch import Tensor

from nova3d.errors import InputError
from nova3d.tasks import TASKS
from nova3d.training.checkpoint import load_checkpoint, save_checkpoint
from nova3d.training.config import OptimConfig, TrainConfig
from nova3d.training.data import Draws, Item, Prefetcher, make_batch
from nova3d.training.ema import discard_snapshots, save_snapshot
from nova3d.training.logs import BAD_STEPS, LossBySigma, StatsLog, gradient_norms, log_bad_step, truncate_after
from nova3d.training.setup import Run, prepare
from nova3d.training.validation import Validation, save_model
from nova3d.utils.files import locked, writable_folder
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
STOP_FILE = "STOP"
RANK_VARIABLES = ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"]  # of torchrun and of MPIs


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        finished: False where the run was stopped.
        step: finished steps.
        path: the model's folder of a finished run, else the last checkpoint's.
    """

    finished: bool
    step: int
    path: Path


def train(
    config: TrainConfig, device: str, progress: Progress | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainingResult:
    """Train to `config.steps`, resuming from the checkpoint that `config.resume` selects.

    Every draw is a function of (seed, step, index in the global batch), so a resumed run repeats the uninterrupted one.

    Args:
        config: of the run.
        device: "cpu", "cuda", "cuda:1".
        progress: called at every log entry.
        stop: called after every step. Where it returns True in any process, the run saves a checkpoint and ends.

    Returns:
        How the run ended.

    Raises:
        InputError: for bad data, folders or checkpoints, for too many bad steps in a row, and while another run uses
            `config.out`.
    """
    folder = writable_folder(config.out)
    rank = get_int_from_env(RANK_VARIABLES, 0)  # read before accelerate starts: a refused run must change no file
    with nullcontext() if rank else locked(folder, "a training run"):
        return training_loop(prepare(config, device), progress, stop)


def training_loop(
    run: Run, progress: Progress | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainingResult:
    """The loop of `train`, for a run that is set up."""
    config, out, accelerator, main = run.config, run.out, run.accelerator, run.accelerator.is_main_process
    start = load_checkpoint(out, run.load_state, run.identity, config.resume, run.collectives)
    shards, every = config.data.validation, config.validate_every
    validation = Validation(run, shards, start) if shards and every else None
    run.begin(start)
    stats = StatsLog(out / "stats.jsonl", start) if main else None  # one process truncates and writes the file
    if main:
        truncate_after(out / BAD_STEPS, start)
        discard_snapshots(out, start)
    losses = LossBySigma(accelerator.device)
    schedule = run.loader.global_batch.schedule(start, config.steps)
    done, stopping = start, False

    with Prefetcher(run.loader, schedule, config.data.prefetch, config.data.threads) as batches:
        for step in range(start, config.steps):
            values, stopping = train_step(run, step, batches, losses, stop)
            done = step + 1
            last = done == config.steps or stopping
            save = last or done % config.checkpoint_every == 0

            if stats:
                stats.add(step, values)
            if save or done % config.log_every == 0:  # with every checkpoint, so that a resumed log is the same
                by_sigma = LossBySigma.means(accelerator.reduce(losses.pop(), "sum"))
                if stats and (means := stats.flush(by_sigma | memory_stats(accelerator.device))):
                    if config.trackers:
                        accelerator.log(means, step=done)
                    if progress:
                        progress(done, config.steps, f"training, loss {means.get('loss', float('nan')):.4f}")

            if done % config.optim.snapshot_every == 0 or done == config.steps:
                for sigma_rel, average in run.profiles.items():
                    save_snapshot(out, done, sigma_rel, average, main)
            if save:
                keep = config.keep_checkpoints
                checkpoint = save_checkpoint(out, done, run.save_state, run.identity, keep, run.collectives)
            if validation and every and done % every == 0:
                validation(done)
            if last:
                break

    finished = done == config.steps
    if finished:
        save_model(run, out / "model", done)
    else:
        log.info("stopped on request: saved '%s'; the same command resumes from there", checkpoint)
    if config.trackers:
        accelerator.end_training()  # it ends the processes' group too, so nothing can be gathered after it
    return TrainingResult(finished, done, out / "model" if finished else checkpoint)


def train_step(
    run: Run, step: int, batches: Prefetcher[tuple[list[Item], Draws]], losses: LossBySigma, stop: Callable[[], bool]
) -> tuple[dict[str, float], bool]:
    """One optimizer step over the global batch.

    Args:
        run: of which the weights, the optimizer and the averages change.
        step: zero-based.
        batches: yields the micro-batches of this process.
        losses: to which the losses are added.
        stop: called once.

    Returns:
        The values to log, and whether any process has a request to stop.

    Raises:
        InputError: for too many bad steps in a row.
    """
    config, accelerator = run.config, run.accelerator
    started, waited = time.perf_counter(), 0.0
    factor = linear_decay_factor(config.optim, step, config.steps)
    for state, group in zip(run.optimizer.param_groups, run.groups, strict=True):
        state["lr"] = group.learning_rate * factor

    micro_losses: list[Tensor] = []
    uids: list[str] = []
    for _ in range(run.loader.global_batch.micro_steps):
        begun = time.perf_counter()
        items, draws = next(batches)
        waited += time.perf_counter() - begun
        batch = make_batch(items, draws, run.encoder)
        uids += batch.uids
        with accelerator.accumulate(run.wrapped):
            with accelerator.autocast():  # FSDP has no autocast
                loss = run.wrapped(batch)  # [b,t]
            accelerator.backward(loss.mean())
        micro_losses.append(loss.detach())
        losses.add(loss.detach(), batch.sigma)

    norms = gradient_norms(run.model, run.new_parameters)
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), config.optim.max_grad_norm)
    asked_to_stop = torch.tensor([float(stop())], device=accelerator.device)
    task_means = torch.stack(micro_losses).mean(dim=(0, 1))
    *per_task, stopping = accelerator.reduce(torch.cat([task_means, asked_to_stop]), "mean").tolist()
    values = {"loss": sum(per_task) / len(per_task)}
    values |= {f"loss_{task.name.lower()}": value for task, value in zip(TASKS, per_task, strict=True)}
    values["grad_norm"] = float(norm)

    if reason := run.bad_steps.check(values["loss"], values["grad_norm"]):
        everyone = gather_object(uids)
        if accelerator.is_main_process:
            log_bad_step(run.out, step + 1, reason, everyone, values)
        if run.bad_steps.too_many:
            raise InputError(
                f"{config.health.max_bad} bad steps in a row, last step {step + 1} ({reason}): their objects are in "
                f"'{run.out / BAD_STEPS}'; lower optim.learning_rate, or resume from an older checkpoint"
            )
        values = {"skipped": 1.0}
    else:
        run.optimizer.step()
        for average in (run.ema, *run.profiles.values()):
            average.update(run.model)
        values |= norms | {"skipped": 0.0}
    run.optimizer.zero_grad(set_to_none=True)

    seconds = time.perf_counter() - started
    values |= {"seconds": seconds, "data_seconds": waited, "data_wait": waited / seconds}
    values["samples_per_second"] = run.loader.global_batch.size / seconds
    values["lost_objects"] = float(run.loader.reader.skipped)
    return values, stopping > 0


def linear_decay_factor(config: OptimConfig, step: int, total: int) -> float:
    """The factor on the peak learning rates: linear warm-up, constant, then linear decay to a twentieth.

    Args:
        config: `warmup` and `decay_from`.
        step: zero-based.
        total: steps of the run.

    Returns:
        The factor, in (0, 1].
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    decay_start = config.decay_from * total
    if step < decay_start:
        return warm
    return warm * (1 - 0.95 * (step - decay_start) / max(1.0, total - decay_start))


def memory_stats(device: torch.device) -> dict[str, float]:
    """The most GPU memory that was allocated so far, in GB; empty on other devices."""
    if device.type != "cuda":
        return {}
    return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}


class StopRequest:
    """A context in which SIGTERM and SIGUSR1 request that a run stops (SLURM sends them before its time limit).

    A file named STOP in `out` does so too; leaving the context removes it. Signal handlers can be set in the main
    thread only.

    Args:
        out: the run's folder.
    """

    def __init__(self, out: Path):
        self.file = out / STOP_FILE
        self._signal: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __call__(self) -> bool:
        """Whether a request has come."""
        return self._signal is not None or self.file.exists()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):  # Windows has no SIGUSR1
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.file.unlink(missing_ok=True)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        log.info("%s: this step is finished and saved, then the run ends", signal.Signals(number).name)
