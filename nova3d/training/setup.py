"""Everything a run needs, built and checked before its first step."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from torch import nn

from nova3d import config as configs
from nova3d.cameras import preset
from nova3d.data import augment
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import shard_hash
from nova3d.errors import InputError
from nova3d.models.attention_backend import pick_attention, use_attention
from nova3d.tasks import TASKS
from nova3d.training.checkpoint import Together, check_space, read_parts, write_parts
from nova3d.training.config import OptimConfig, TrainConfig, check, micro_steps, noise_schedule
from nova3d.training.data import Loader, Places
from nova3d.training.ema import EMA, exponential
from nova3d.training.health import Health
from nova3d.training.latent_cache import LatentCache
from nova3d.training.latent_cache import identity as cache_identity
from nova3d.training.latents import ItemReader, LatentEncoder, ShardSource, Source, check_shards
from nova3d.training.loss import Denoising, build
from nova3d.training.optim import is_matrix, make_optimizer, moment_bytes
from nova3d.training.precision import resolve
from nova3d.training.profiles import power
from nova3d.training.sharding import check_sharding, fsdp_plugin
from nova3d.training.trackers import make_trackers, start_trackers
from nova3d.utils import provenance
from nova3d.utils.files import writable_folder

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The objects of one run. `model` is the module itself, `wrapped` what accelerate made of it. `averages`: "ema" and
    the power-function profiles by their sigma_rel."""

    config: TrainConfig
    out: Path
    accelerator: Accelerator
    dataset: MultiViewDataset
    loader: Loader
    encoder: LatentEncoder
    model: Denoising
    wrapped: nn.Module
    optimizer: Any
    averages: dict[str, EMA]
    health: Health
    together: Together
    identity: dict[str, Any]
    new_parameters: set[str]

    @property
    def ema(self) -> EMA:
        return self.averages["ema"]

    @property
    def sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    def write(self, folder: Path) -> None:
        """A checkpoint's content: the networks and the optimizer as accelerate saves them, in every process; averages
        and health in one file."""
        self.accelerator.save_state(str(folder))
        states = {name: part.state_dict() for name, part in (self.averages | {"health": self.health}).items()}
        if self.accelerator.is_main_process:
            write_parts(folder, {name: _Held(state) for name, state in states.items()})

    def read(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
        read_parts(folder, self.averages | {"health": self.health})


@dataclass
class _Held:
    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def prepare(config: TrainConfig, device: str) -> Run:
    """Load, check and wrap everything. Raises InputError for whatever would end the run later."""
    check(config)
    out = writable_folder(config.out)
    accelerator = make_accelerator(config, device, out)
    processes = accelerator.num_processes
    places = Places(config.batch_size, processes, micro_steps(config, processes), accelerator.process_index)
    accelerator.gradient_accumulation_steps = places.micro_steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it learns these from a DataLoader otherwise
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": places.micro_steps,
        }
    dataset = MultiViewDataset(
        config.data.shards, config.data.input_views, config.seed, config.data.input_views_per_object
    )
    check_rig(dataset, config.pipeline.camera_preset)
    augment.check_rig(config.data.augment, dataset.reader.cameras)
    size = dataset.reader.cameras.width

    torch.manual_seed(config.seed)  # random weights are the same in every process
    model, report = build(config, size // 8)
    source = _source(config, dataset, model)
    clip_needed = not config.data.cache or config.validate_every > 0
    model.place_frozen(accelerator.device, accelerator.mixed_precision == "bf16", clip_needed)
    betas = (config.optim.betas[0], config.optim.betas[1])
    optimizer = make_optimizer(config.optim.name, parameter_groups(model, config.optim), betas, accelerator.device)
    products = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    use_attention(model.unet, pick_attention(accelerator.device, products))
    if config.compile:
        model.unet.compile(dynamic=False)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(wrapped)

    optim = config.optim
    averages = {"ema": EMA(model, exponential(optim.ema_decay, optim.ema_warmup), optim.ema_device)}
    for rel in optim.ema_profiles:
        averages[f"{rel:.3f}"] = EMA(model, power(rel), optim.ema_device)
    latent = (len(TASKS), len(dataset.reader.cameras), *latent_shape(model, size))
    loader = Loader(
        ItemReader(source, config.data.on_corrupt, augment=config.data.augment),
        config.noise,
        noise_schedule(config.noise),
        config.seed,
        places,
        latent,
        (3, size, size),
    )
    if accelerator.is_main_process:
        check_space(out, checkpoint_bytes(model, config), config.keep_checkpoints)
        configs.save(config, out / "config.yaml")
        if report:
            report.save(out / "svd-load-report.json")
    unet = {key: value for key, value in dict(model.unet.config).items() if not key.startswith("_")}
    data = {
        "shards": shard_hash(dataset.reader.samples),
        "input_views": sorted(dataset.input_views),
        "input_views_per_object": config.data.input_views_per_object,
        "augment": str(config.data.augment) if config.data.augment.active else None,
    }
    kind = accelerator.distributed_type
    sharding = str(kind.value) if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) else "none"
    identity = {
        "model": unet,
        "data": data,
        "effective_batch": places.total,
        "seed": config.seed,
        "sharding": sharding,  # their checkpoints have other files
        "optimizer": config.optim.name,
        "condition": config.pipeline.condition,
    }
    if config.resume_other_data:
        log.info("resume_other_data: a checkpoint of other data is gone on from")
        del identity["data"]
    return Run(
        config=config,
        out=out,
        accelerator=accelerator,
        dataset=dataset,
        loader=loader,
        encoder=LatentEncoder(model.vae, accelerator.device, config.latent_cache),
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        averages=averages,
        health=Health(config.health),
        together=Together(
            accelerator.is_main_process,
            accelerator.wait_for_everyone,
            lambda mine: bool(
                accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum") == processes
            ),
        ),
        identity=json.loads(json.dumps(identity)),
        new_parameters={f"unet.{name}" for name in model.unet.new_parameter_names},
    )


def make_accelerator(config: TrainConfig, device: str, out: Path) -> Accelerator:
    """accelerate's object, with its trackers; raises InputError for trackers and sharding that cannot be had."""
    ddp, fsdp = DistributedDataParallelKwargs(gradient_as_bucket_view=True), fsdp_plugin()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=resolve(config.mixed_precision, "cpu" if device == "cpu" else torch.device(device).type),
        log_with=make_trackers(config, out) or None,
        project_dir=str(out),
        fsdp_plugin=fsdp,
        kwargs_handlers=[ddp],  # one copy of the gradients instead of two
    )
    check_sharding(config, accelerator, fsdp is not None)
    if config.trackers:
        start_trackers(accelerator, config)
    return accelerator


def parameter_groups(model: Denoising, config: OptimConfig) -> list[dict[str, Any]]:
    """Labels may learn faster; norms, biases and SVD's mix factors (of one number each) are not decayed. Muon's rule
    takes the matrices and kernels that suit it, at its own rate."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            muon = config.name == "muon" and is_matrix(name, parameter)
            factor = config.view_embedding_multiplier if "view_embedding." in name else 1.0
            rate = factor * (config.muon_learning_rate if muon else config.learning_rate)
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": parameters, "base_lr": rate, "lr": 0.0, "weight_decay": decay} | ({"muon": True} if muon else {})
        for (rate, decay, muon), parameters in groups.items()
    ]


def rate(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate's factor: linear warm-up, constant, then linear decay to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    decay_start = config.decay_from * total
    if step < decay_start:
        return warm
    return warm * (1 - 0.95 * (step - decay_start) / max(1.0, total - decay_start))


def check_rig(dataset: MultiViewDataset, name: str) -> None:
    """Raise InputError unless the shards were rendered with the rig that the pipeline will claim."""
    ours, theirs = preset(name, dataset.reader.cameras.width), dataset.reader.cameras
    same = len(ours) == len(theirs) and ours.model == theirs.model
    if not same or not torch.allclose(ours.c2w, theirs.c2w, atol=1e-4):
        raise InputError(
            f"the shards in '{dataset.reader.folder}' were not rendered with pipeline.camera_preset={name}: "
            "name their rig, or render them again"
        )


def latent_shape(model: Denoising, size: int) -> tuple[int, int, int]:
    """(channels, h, w) of the latent of a picture of `size` pixels."""
    side = size >> (len(model.vae.config.block_out_channels) - 1)
    return int(model.vae.config.latent_channels), side, side


def checkpoint_bytes(model: nn.Module, config: TrainConfig) -> int:
    """Weights in float32, Adam's two moments, and the averages."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained * (4 + moment_bytes(config.optim.name) + 4 * (1 + len(config.optim.ema_profiles)))


def data_facts(dataset: MultiViewDataset) -> dict[str, Any]:
    """What a record says of the data."""
    return {"shards": shard_hash(dataset.reader.samples), "objects": len(dataset)}


def run_record(run: Run) -> dict[str, Any]:
    """The provenance of a model that a run has made."""
    settings = configs.to_dict(run.config)
    return provenance.record("train", settings, data=data_facts(run.dataset), seed=run.config.seed)


def _source(config: TrainConfig, dataset: MultiViewDataset, model: Denoising) -> Source:
    if not config.data.cache:
        if config.data.on_corrupt == "fail":
            check_shards(dataset)
        return ShardSource(dataset)
    frozen = None if model.trained_encoder is not None else model.image_encoder
    expected = cache_identity(dataset, model.vae, frozen, config.pipeline.condition)
    return LatentCache(config.data.cache, dataset, expected)
