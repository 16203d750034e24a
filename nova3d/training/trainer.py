"""The training loop: one readable page around accelerate."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from nova3d import config as configs
from nova3d import provenance
from nova3d.cameras import preset
from nova3d.data.latents import LatentEncoder
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import shard_hash
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.batches import generator, make_batch
from nova3d.training.checkpoint import load_checkpoint, save_checkpoint
from nova3d.training.config import OptimConfig, TrainConfig, data_identity
from nova3d.training.ema import EMA
from nova3d.training.module import Denoising, build
from nova3d.training.stats import StatsLog
from nova3d.training.validation import validate

log = logging.getLogger(__name__)
MAX_BAD_STEPS = 5  # non-finite losses in a row after which the run stops


def train(config: TrainConfig, device: str, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Train to `config.steps`, resuming from the newest checkpoint in `config.out`; returns the model folder.

    Every draw is a function of (seed, rank, step), so a resumed run repeats the uninterrupted one. Raises
    InputError for bad data, folders or checkpoints, and where the loss stays non-finite.
    """
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation
    )
    out, identity = Path(config.out), data_identity(configs.to_dict(config))
    dataset = MultiViewDataset(config.data.shards, config.data.input_views, config.seed)
    torch.manual_seed(config.seed)
    size = dataset.reader.cameras.width
    check_rig(dataset, config.pipeline.camera_preset)
    model = build(config, size, size // 8)
    vae = model._frozen[0].to(accelerator.device)
    encoder = LatentEncoder(vae, accelerator.device, config.latent_cache)
    optimizer = torch.optim.AdamW(_groups(model, config.optim), betas=tuple(config.optim.betas))  # type: ignore[arg-type]
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, config.optim.ema_decay, config.optim.ema_warmup)
    parts = {"model": model, "optimizer": optimizer, "ema": ema}
    start = load_checkpoint(out, parts, identity)
    # One writer: several processes would cut the same file back at once.
    stats = StatsLog(out / "stats.jsonl", start) if accelerator.is_main_process else None
    rank, ranks, bad = accelerator.process_index, accelerator.num_processes, 0

    for step in range(start, config.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate(config.optim, step, config.steps)
        losses: list[Tensor] = []
        values: dict[str, float] = {}
        rng = generator(config.seed, rank, step)
        for micro in range(config.accumulation):
            first = ((step * config.accumulation + micro) * ranks + rank) * config.batch_size
            positions = list(range(first, first + config.batch_size))
            asked = time.perf_counter()
            batch = make_batch(dataset, encoder, config.noise, positions, step, rng)
            values["data_seconds"] = values.get("data_seconds", 0.0) + time.perf_counter() - asked
            with accelerator.accumulate(wrapped):
                loss = wrapped(batch)
                accelerator.backward(loss.mean())
                losses.append(loss.detach())
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        per_task = accelerator.reduce(torch.stack(losses).mean(dim=(0, 1)), "mean")
        finite = bool(torch.isfinite(per_task).all()) and bool(torch.isfinite(torch.as_tensor(norm)))
        if finite:
            optimizer.step()
            ema.update(model)
        bad = _count_bad(bad, finite, step, batch.uids)
        optimizer.zero_grad(set_to_none=True)
        if finite:
            values |= {"loss": float(per_task.mean()), "loss_rgb": float(per_task[0]), "grad_norm": float(norm)}
            values |= {"loss_normal": float(per_task[1]), "seconds": time.perf_counter() - started}
            if stats:
                stats.add(step, values)
        done = step + 1
        if stats:
            if done % config.log_every == 0 or done == config.steps:
                means = stats.flush()
                if progress and "loss" in means:
                    progress(done, config.steps, f"loss {means['loss']:.4f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                save_checkpoint(out, done, parts, identity)
            if config.validate_every and config.data.validation and done % config.validate_every == 0:
                with ema.applied(model):
                    validate(pipeline(model, config, size), config, out, done)
    if accelerator.is_main_process:
        ema.copy_to(model)
        save(pipeline(model, config, size), config, dataset, out)
    accelerator.wait_for_everyone()
    return out / "model"


def check_rig(dataset: MultiViewDataset, name: str) -> None:
    """Raise InputError unless the shards were rendered with the rig that the pipeline will claim."""
    ours, theirs = preset(name, dataset.reader.cameras.width), dataset.reader.cameras
    same = len(ours) == len(theirs) and ours.model == theirs.model
    if not same or not torch.allclose(ours.c2w, theirs.c2w, atol=1e-4):
        raise InputError(
            f"the shards in '{dataset.reader.folder}' were not rendered with pipeline.camera_preset={name}: "
            "name their rig, or render them again"
        )


def rate(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate's factor: linear warm-up, constant, then linear decay to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    decay_start = config.decay_from * total
    if step < decay_start:
        return warm
    return warm * (1 - 0.95 * (step - decay_start) / max(1.0, total - decay_start))


def pipeline(model: Denoising, config: TrainConfig, size: int) -> Nova3DPipeline:
    """The model as a pipeline (sharing its weights)."""
    return Nova3DPipeline(model.unet, model._frozen[0], model.image_encoder, size=size, **vars(config.pipeline))


def save(result: Nova3DPipeline, config: TrainConfig, dataset: MultiViewDataset, out: Path) -> None:
    """Write the diffusers folder with its provenance."""
    result.save_pretrained(out / "model", safe_serialization=True)
    data = {"shards": shard_hash(dataset.reader.samples), "objects": len(dataset)}
    provenance.write(out / "model", provenance.record("train", configs.to_dict(config), data=data, seed=config.seed))


def _groups(model: Denoising, config: OptimConfig) -> list[dict[str, object]]:
    """Parameter groups: labels may learn faster; norms and biases are not decayed."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = config.view_embedding_multiplier if "view_embedding." in name else 1.0
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "base_lr": config.learning_rate * factor, "lr": 0.0, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _count_bad(bad: int, finite: bool, step: int, uids: tuple[str, ...]) -> int:
    if finite:
        return 0
    log.warning("step %d skipped: loss or gradient is not finite (objects %s)", step, ", ".join(uids))
    if bad + 1 >= MAX_BAD_STEPS:
        raise InputError(f"the loss was not finite {MAX_BAD_STEPS} steps in a row, last at step {step}: lower the rate")
    return bad + 1
