"""Sets up a run: everything it needs is built and checked before its first step."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from nova3d import config as configs
from nova3d.cameras import preset
from nova3d.data import augment
from nova3d.data.config import shard_folders
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import shard_hash
from nova3d.errors import InputError
from nova3d.models.attention_backend import pick_attention, use_attention
from nova3d.models.svd import LoadReport
from nova3d.tasks import TASKS
from nova3d.training.checkpoint import Collectives, check_space, read_states, write_states
from nova3d.training.config import TrainConfig, check, micro_steps, noise_schedule
from nova3d.training.data import (
    GlobalBatch,
    ItemReader,
    ItemSource,
    LatentEncoder,
    MicroBatchLoader,
    ShardSource,
    check_shards,
)
from nova3d.training.devices import use_device
from nova3d.training.ema import EMA, constant_decay, power_decay
from nova3d.training.latents import JoinedCaches, LatentCache, cache_identity
from nova3d.training.logs import BadStepDetector, make_trackers, start_trackers
from nova3d.training.loss import TrainingModule
from nova3d.training.networks import build_module
from nova3d.training.optim import ParameterGroup, make_optimizer, moment_bytes, parameter_groups
from nova3d.training.precision import resolve
from nova3d.utils import provenance
from nova3d.utils.files import json_types, read_json, writable_folder

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The objects of one run.

    Attributes:
        config: of the run.
        out: its folder.
        accelerator: accelerate's object.
        dataset: the training objects.
        loader: reads micro-batches.
        encoder: makes latents.
        model: the module itself.
        wrapped: the module as wrapped by accelerate.
        optimizer: as wrapped by accelerate.
        groups: its parameter groups, in its order.
        ema: the average that is validated and saved.
        profiles: power-function averages by their sigma_rel.
        bad_steps: finds steps that are skipped.
        collectives: of the run's processes.
        identity: what a checkpoint must have in common with the run.
        new_parameters: names of the parameters that SVD does not have.
        report: on SVD's weights, where the run starts from them.
    """

    config: TrainConfig
    out: Path
    accelerator: Accelerator
    dataset: MultiViewDataset
    loader: MicroBatchLoader
    encoder: LatentEncoder
    model: TrainingModule
    wrapped: nn.Module
    optimizer: Any
    groups: list[ParameterGroup]
    ema: EMA
    profiles: dict[float, EMA]
    bad_steps: BadStepDetector
    collectives: Collectives
    identity: dict[str, Any]
    new_parameters: set[str]
    report: LoadReport | None

    def begin(self, start: int) -> None:
        """Open the trackers, then write config.yaml and the report. Until here a run changes no file of its folder.

        Args:
            start: finished steps.

        Raises:
            InputError: where a tracker does not start.
        """
        if self.config.trackers:
            start_trackers(self.accelerator, self.config, self.out, start)
        if self.accelerator.is_main_process:
            configs.save(self.config, self.out / "config.yaml")
            if self.report:
                self.report.save(self.out / "svd-load-report.json")

    def save_state(self, folder: Path) -> None:
        """Write a checkpoint's files. accelerate saves networks and optimizer; averages and `bad_steps` share a file.

        Args:
            folder: of the checkpoint. Every process must call this.
        """
        self.accelerator.save_state(str(folder))
        states = {name: part.state_dict() for name, part in self._parts().items()}
        if self.accelerator.is_main_process:
            write_states(folder, states)

    def load_state(self, folder: Path) -> None:
        """Read a checkpoint's files; raises what torch raises where they are damaged."""
        self.accelerator.load_state(str(folder))
        # It restores accelerate's count of micro-steps. Their number per step may be another one now, and a step that
        # starts in the middle of a count would end without a synchronised gradient.
        self.accelerator.step = 0
        read_states(folder, self._parts())

    def _parts(self) -> dict[str, EMA | BadStepDetector]:
        profiles = {f"{sigma_rel:.3f}": average for sigma_rel, average in self.profiles.items()}
        return {"ema": self.ema, **profiles, "health": self.bad_steps}


def prepare(config: TrainConfig, device: str) -> Run:
    """Load, check and wrap everything. No file is written; a missing folder `config.out` is made.

    Args:
        config: of the run.
        device: "cpu", "cuda", "cuda:1".

    Returns:
        The run, before its first step.

    Raises:
        InputError: for errors that would end the run later.
    """
    check(config)
    out = writable_folder(config.out)
    accelerator = make_accelerator(config, device, out)
    processes = accelerator.num_processes
    global_batch = GlobalBatch(config.batch_size, processes, micro_steps(config, processes), accelerator.process_index)
    accelerator.gradient_accumulation_steps = global_batch.micro_steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it learns these from a DataLoader otherwise
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": global_batch.micro_steps,
        }
    data = config.data
    dataset = MultiViewDataset(data.shards, data.input_views, config.seed, data.input_views_per_object)
    check_rig(dataset, config.pipeline.camera_preset)
    augment.check_rig(data.augment, dataset.reader.cameras)
    size = dataset.reader.cameras.width

    torch.manual_seed(config.seed)  # random weights are the same in every process
    model, report = build_module(config, size // 8)
    source = _source(config, dataset, model)
    bf16 = accelerator.mixed_precision == "bf16"
    model.move_frozen(accelerator.device, bf16, encoder_needed=not data.cache or bool(config.validate_every))
    groups = parameter_groups(model, config.optim)
    betas = (config.optim.betas[0], config.optim.betas[1])
    optimizer = make_optimizer(config.optim.name, groups, betas, accelerator.device)
    use_attention(model.unet, pick_attention(accelerator.device, torch.bfloat16 if bf16 else torch.float32))
    if config.compile:
        model.unet.compile(dynamic=False)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(wrapped)

    optim = config.optim
    loader = MicroBatchLoader(
        ItemReader(source, data.on_corrupt, augment=data.augment),
        config.noise,
        noise_schedule(config.noise),
        config.seed,
        global_batch,
        (len(TASKS), len(dataset.reader.cameras), *latent_shape(model, size)),
        (3, size, size),
    )
    if accelerator.is_main_process:
        check_space(out, checkpoint_bytes(model, config), config.keep_checkpoints)
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
        groups=groups,
        ema=EMA(model, constant_decay(optim.ema_decay, optim.ema_warmup), optim.ema_device),
        profiles={rel: EMA(model, power_decay(rel), optim.ema_device) for rel in optim.ema_profiles},
        bad_steps=BadStepDetector(config.health),
        collectives=_collectives(accelerator),
        identity=run_identity(config, accelerator, dataset, model, global_batch),
        new_parameters={f"unet.{name}" for name in model.unet.new_parameter_names},
        report=report,
    )


def make_accelerator(config: TrainConfig, device: str, out: Path) -> Accelerator:
    """accelerate's object, its trackers closed; raises InputError for what of the config cannot be had here."""
    use_device(device)
    ddp, fsdp = DistributedDataParallelKwargs(gradient_as_bucket_view=True), fsdp_plugin()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=resolve(config.mixed_precision, torch.device(device).type),
        log_with=make_trackers(config, out) or None,
        project_dir=str(out),
        fsdp_plugin=fsdp,
        kwargs_handlers=[ddp],  # one copy of the gradients instead of two
    )
    check_sharding(config, accelerator, fsdp is not None)
    return accelerator


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """FSDP as the launcher's environment configures it.

    Weights are gathered and gradients summed in float32, and autocast computes in bfloat16: the arithmetic of a run
    without sharding. accelerate's own choice rounds the weights to bfloat16, and has no autocast to match the inputs.

    Returns:
        The plugin; None where the environment does not select FSDP.

    Raises:
        InputError: for FSDP of version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise InputError("the EMA needs FSDP of version 2: set fsdp_version: 2 in the accelerate config")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin


def check_sharding(config: TrainConfig, accelerator: Accelerator, fsdp_wanted: bool) -> None:
    """Raise InputError for what sharded weights cannot do, before anything is loaded."""
    kind = accelerator.distributed_type
    if fsdp_wanted and kind != DistributedType.FSDP:
        raise InputError("FSDP shards over GPUs only, and this run has none: launch it with another accelerate config")
    if kind == DistributedType.FSDP and config.optim.ema_device:
        raise InputError("optim.ema_device=cpu is not for sharded weights: their averages are sharded already")
    if kind == DistributedType.FSDP and config.optim.name != "adamw":
        raise InputError(f"optim.name={config.optim.name} is not for sharded weights: it needs whole tensors")
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        raise InputError("the EMA needs whole weights: use DeepSpeed's ZeRO stage 2, or FSDP of version 2")
    if kind == DistributedType.DEEPSPEED:
        log.warning("DeepSpeed takes a step before it can be checked: bad steps are reported, but not undone")


def run_identity(
    config: TrainConfig,
    accelerator: Accelerator,
    dataset: MultiViewDataset,
    model: TrainingModule,
    global_batch: GlobalBatch,
) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that resumes from it, JSON-ready."""
    kind = accelerator.distributed_type
    identity = {
        "model": {key: value for key, value in dict(model.unet.config).items() if not key.startswith("_")},
        "data": {
            "shards": shard_hash(dataset.reader.samples),
            "input_views": sorted(dataset.input_views),
            "input_views_per_object": config.data.input_views_per_object,
            "augment": str(config.data.augment) if config.data.augment.active else None,
        },
        "effective_batch": global_batch.size,
        "seed": config.seed,
        # Sharded checkpoints have other files.
        "sharding": str(kind.value) if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) else "none",
        "optimizer": config.optim.name,
        "condition": config.pipeline.condition,
    }
    if config.resume_other_data:
        log.info("resume_other_data: checkpoints of other data are accepted")
        del identity["data"]
    plain: dict[str, Any] = json_types(identity)
    return plain


def check_rig(dataset: MultiViewDataset, name: str) -> None:
    """Raise InputError unless the shards were rendered with the rig that the pipeline will claim."""
    ours, theirs = preset(name, dataset.reader.cameras.width), dataset.reader.cameras
    same = len(ours) == len(theirs) and ours.model == theirs.model
    if not same or not torch.allclose(ours.c2w, theirs.c2w, atol=1e-4):
        raise InputError(
            f"the shards in '{dataset.reader.folder}' were not rendered with pipeline.camera_preset={name}: "
            "name their rig, or render them again"
        )


def latent_shape(model: TrainingModule, size: int) -> tuple[int, int, int]:
    """(channels, h, w) of the latents of a square picture of `size` pixels."""
    side = size >> (len(model.vae.config.block_out_channels) - 1)
    return int(model.vae.config.latent_channels), side, side


def checkpoint_bytes(model: nn.Module, config: TrainConfig) -> int:
    """Size of a checkpoint: weights in float32, the optimizer's moments, and the averages."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained * (4 + moment_bytes(config.optim.name) + 4 * (1 + len(config.optim.ema_profiles)))


def run_record(run: Run) -> dict[str, Any]:
    """The provenance of a model that a run has made."""
    data = {"shards": shard_hash(run.dataset.reader.samples), "objects": len(run.dataset)}
    return provenance.record("train", run.config, data=data, seed=run.config.seed, svd=svd_source(run.config))


def svd_source(config: TrainConfig) -> str | None:
    """The weights of Stable Video Diffusion that a run's UNet derives from, whose licence it inherits.

    Args:
        config: of the run. It names them itself, or starts from a UNet whose record does.

    Returns:
        Their hub id or folder; None where no record knows of any.
    """
    record = Path(config.unet or "").parent / "record.json"
    if config.svd or not config.unet or not record.is_file():
        return config.svd
    entry = read_json(record, dict, "record")
    before = entry.get("config")
    found = entry.get("svd") or (before.get("svd") if isinstance(before, dict) else None)
    return found if isinstance(found, str) else None


def _source(config: TrainConfig, dataset: MultiViewDataset, model: TrainingModule) -> ItemSource:
    if not config.data.cache:
        if config.data.on_corrupt == "fail":
            check_shards(dataset)
        return ShardSource(dataset)
    frozen = None if model.trained_encoder is not None else model.image_encoder
    shards, folders = shard_folders(config.data.shards), shard_folders(config.data.cache)
    if len(folders) == 1:
        expected = cache_identity(dataset, model.vae, frozen, config.pipeline.condition)
        return LatentCache(folders[0], dataset, expected)
    if len(folders) != len(shards):
        raise InputError(
            f"data.cache names {len(folders)} folders and data.shards {len(shards)}: give one cache for all shards, or "
            "one for each in the same order"
        )
    caches = []
    for folder, shard in zip(folders, shards, strict=True):
        part = MultiViewDataset(shard, config.data.input_views, config.seed, config.data.input_views_per_object)
        expected = cache_identity(part, model.vae, frozen, config.pipeline.condition)
        caches.append(LatentCache(folder, part, expected))
    return JoinedCaches(caches, dataset)


def _collectives(accelerator: Accelerator) -> Collectives:
    def all_true(mine: bool) -> bool:
        count = accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum")
        return bool(count == accelerator.num_processes)

    return Collectives(accelerator.is_main_process, accelerator.wait_for_everyone, all_true)
