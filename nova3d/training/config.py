"""The typed config of `scripts/train.py`; defaults are the paper's where the paper says, else cited."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from nova3d.data import augment
from nova3d.data.augment import AugmentConfig
from nova3d.diffusion import NoiseSchedule
from nova3d.errors import InputError
from nova3d.tasks import CONDITIONS
from nova3d.training.optim import OPTIMIZERS

TRACKERS = ("tensorboard", "wandb")
NO_ENCODER = "none"  # as `image_encoder`: the model has none


@dataclass
class UNetConfig:
    """NovaUNet's constructor; the defaults are SVD's sizes. With `svd=` only the alignment keys count."""

    down_block_types: list[str] = field(
        default_factory=lambda: [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"]
    )
    up_block_types: list[str] = field(
        default_factory=lambda: ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3]
    )
    block_out_channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    num_attention_heads: list[int] = field(default_factory=lambda: [5, 10, 20, 20])
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256
    norm_groups: int = 32
    alignment: str = "gta"
    alignment_init: str = "copied"
    row_attention: bool = False
    """Attention along image rows over all views, in spatial blocks."""


@dataclass
class ImageEncoderConfig:
    """CLIPVisionConfig of a small image encoder trained with the UNet; the projection is the cross-attention's."""

    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    image_size: int = 64
    patch_size: int = 8


@dataclass
class PipelineConfig:
    """What the saved pipeline samples with; see Nova3DPipeline. camera_preset must be the rig of the shards."""

    camera_preset: str = "ortho16"
    condition: str = "picture"
    """What the UNet's condition latents show: picture, or inflated (nova3d.models.conditioning)."""
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    steps: int = 25
    solver: str = "euler"
    guidance_low: float = 1.0
    guidance_high: float = 2.5


@dataclass
class DataConfig:
    """shards: what is trained on, one folder or several with commas between them. validation: shards of other objects
    ("" for none)."""

    shards: str = "assets/train-sample"
    validation: str = ""
    input_views: list[int] = field(default_factory=list)  # which views may be the input view; empty: all
    input_views_per_object: int | None = None
    """Of `input_views`, so many are drawn for every object by a hash of its uid. None: all. A latent cache then holds
    these only."""
    cache: str = ""  # folder of scripts/cache_latents.py; "": encode the shards' views while training
    on_corrupt: str = "fail"  # a damaged object ends the run, or (skip) the next readable one takes its place
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # random changes of the objects; default none
    prefetch: int = 2  # micro-batches read ahead; 0 reads when asked
    threads: int = 1  # that read ahead, a micro-batch each


@dataclass
class OptimConfig:
    """AdamW, lr 2e-5, EMA 0.9999 (paper III); the label MLP may learn faster, as in Wonder3D.

    Weight decay is decoupled and leaves norms, biases and SVD's mix factors alone.
    """

    name: str = "adamw"
    """adamw, adamw8bit (moments in 8 bits, by bitsandbytes) or muon (matrices and kernels by Muon's rule, the rest by
    AdamW's)."""
    learning_rate: float = 2e-5
    muon_learning_rate: float = 0.01
    """Muon's rate for matrices and kernels, where the optimizer is muon."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    warmup: int = 500
    decay_from: float = 1.0  # share of the run after which the rate falls linearly to a twentieth; 1 keeps it
    view_embedding_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: str = "none"  # or inverse
    ema_device: str = ""  # "": beside the weights; cpu: in main memory
    ema_profiles: list[float] = field(default_factory=list)  # sigma_rel of power-function averages, e.g. [0.05, 0.1]
    snapshot_every: int = 1000  # steps between the profiles' snapshots


@dataclass
class NoiseConfig:
    """stages: [first step, P_mean, P_std] (paper appendix VI). Condition noise: log-normal deviation in pixel space
    (SVD's N(-3, 0.5^2)). Dropouts: both conditions, CLIP alone, latent alone; one draw per object."""

    stages: list[list[float]] = field(
        default_factory=lambda: [[0, 1.0, 1.6], [8000, 1.8, 1.6], [16000, 2.2, 1.8], [24000, 2.5, 2.0]]
    )
    condition_mean: float = -3.0
    condition_std: float = 0.5
    drop_both: float = 0.1
    drop_clip: float = 0.05
    drop_latent: float = 0.05


@dataclass
class HealthConfig:
    """A step is skipped where loss or gradient is not finite, or either exceeds `spike` times its median over the last
    `window` good steps (0: never for that reason). `max_bad` skips in a row end the run."""

    spike: float = 10.0
    window: int = 200
    max_bad: int = 5


@dataclass
class TrainConfig:
    """One run. svd: folder or hub id of Stable Video Diffusion: UNet, autoencoder and image encoder start from it, the
    last two frozen. Without it, vae, image_encoder, unet: folders of pretrained parts; an autoencoder is always needed.
    Of these the UNet is trained, the autoencoder never, the image encoder where train_image_encoder says so.
    """

    out: str = "outputs/train"
    svd: str = ""
    svd_variant: str = ""  # "" or fp16
    vae: str = ""
    image_encoder: str = ""
    """Folder of a frozen image encoder. "" trains a small one from scratch, together with the UNet. "none" leaves it
    out: the UNet's cross-attention sees zeros."""
    train_image_encoder: bool = False  # go on training the one of image_encoder=, together with the UNet
    unet: str = ""  # "" starts from random weights
    data: DataConfig = field(default_factory=DataConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    steps: int = 30_000
    batch_size: int = 1  # objects (RGB and normal pairs of 16 views) per device and micro-step
    accumulation: int = 1  # micro-steps per step; 0: as many as effective_batch needs
    effective_batch: int = 0  # objects per step over all devices, checked at the start; 0: whatever comes out
    mixed_precision: str = "no"
    """no, bf16, or auto: bf16 on CUDA and on CPUs that a measurement finds fast in it."""
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of the UNet
    seed: int = 0
    resume_other_data: bool = False
    """Go on from a checkpoint although its shards, input views or augmentation were others."""
    resume: str = "auto"  # the newest readable checkpoint of `out`; never; or a checkpoint's folder
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 0  # 0: never
    validation_objects: int = 4
    latent_cache: bool = True  # keep the RGB views' latents in memory after their first use; for small data sets
    trackers: list[str] = field(default_factory=list)  # beside stats.jsonl: tensorboard, wandb


def check(config: TrainConfig) -> None:
    """Raise InputError for a value that no run can have, before anything is loaded."""
    optim, data, health, noise = config.optim, config.data, config.health, config.noise
    counts = (config.steps, config.batch_size, config.log_every, config.checkpoint_every, config.keep_checkpoints)
    demands: list[tuple[bool, str]] = [
        (
            config.mixed_precision in ("no", "bf16", "auto"),
            "mixed_precision must be no, bf16 or auto: SVD overflows in fp16",
        ),
        (optim.name in OPTIMIZERS, f"optim.name must be one of {', '.join(OPTIMIZERS)}"),
        (
            config.pipeline.condition in CONDITIONS,
            f"pipeline.condition must be one of {', '.join(CONDITIONS)}",
        ),
        (
            config.pipeline.condition == "picture" or bool(data.cache),
            "pipeline.condition=inflated trains from a latent cache: set data.cache (scripts/cache_latents.py)",
        ),
        (data.on_corrupt in ("fail", "skip"), "data.on_corrupt must be fail or skip"),
        (
            data.input_views_per_object is None or data.input_views_per_object >= 1,
            "data.input_views_per_object must be at least 1",
        ),
        (data.threads >= 1, "data.threads must be at least 1"),
        (data.threads == 1 or not data.cache, "data.cache is read by one thread: leave data.threads at 1"),
        (
            not (data.cache and data.augment.active),
            "data.cache holds latents of the objects as rendered: set data.cache='', or leave data.augment out",
        ),
        (optim.ema_warmup in ("none", "inverse"), "optim.ema_warmup must be none or inverse"),
        (optim.ema_device in ("", "cpu"), "optim.ema_device must be cpu or empty"),
        (all(0 < rel < 0.28 for rel in optim.ema_profiles), "optim.ema_profiles must lie between 0 and 0.28"),
        (
            not (config.svd and (config.unet or config.vae or config.image_encoder)),
            "svd= brings all three networks: leave unet=, vae= and image_encoder= empty",
        ),
        (
            config.image_encoder not in ("", NO_ENCODER) or not config.train_image_encoder,
            "train_image_encoder goes on training the one that image_encoder= names, and none is named",
        ),
        (
            min(counts) >= 1,
            "steps, batch_size, log_every, checkpoint_every and keep_checkpoints must be at least 1",
        ),
        (
            min(config.accumulation, config.effective_batch, data.prefetch) >= 0,
            "accumulation, effective_batch and data.prefetch must not be negative",
        ),
        (health.max_bad >= 1 and health.window >= 1, "health.max_bad and health.window must be at least 1"),
        (health.spike == 0 or health.spike > 1, "health.spike must be 0 or above 1"),
        (noise.drop_both + noise.drop_clip + noise.drop_latent <= 1, "noise.drop_* must not sum to more than 1"),
        (set(config.trackers) <= set(TRACKERS), f"trackers must be among {', '.join(TRACKERS)}"),
    ]
    for met, message in demands:
        if not met:
            raise InputError(message)
    augment.check(data.augment)
    try:
        noise_schedule(noise)
    except (ValueError, TypeError) as error:
        raise InputError(f"noise.stages: {error}") from error


def noise_schedule(config: NoiseConfig) -> NoiseSchedule:
    """The stages of a config; raises ValueError where they are not [first step, mean, deviation] in order."""
    return NoiseSchedule([(int(start), mean, std) for start, mean, std in config.stages])


def changes(path: str | Path) -> list[str]:
    """The `key=value` overrides that a YAML file of changes stands for; raises InputError where it cannot be read."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError) as error:
        raise InputError(f"preset '{path}' cannot be read: {str(error).splitlines()[0]}") from error

    def flat(value: Any, prefix: str) -> list[str]:
        if isinstance(value, dict):
            return [line for key, entry in value.items() for line in flat(entry, f"{prefix}.{key}" if prefix else key)]
        return [f"{prefix}={json.dumps(value)}"]

    return flat(content, "")


def micro_steps(config: TrainConfig, processes: int) -> int:
    """Micro-steps per step on so many processes; raises InputError where they cannot make up the effective batch."""
    at_once = config.batch_size * processes
    wanted = config.effective_batch
    if not wanted:
        return max(1, config.accumulation)
    if wanted % at_once:
        raise InputError(
            f"effective_batch={wanted} is not a multiple of batch_size {config.batch_size} x {processes} processes = "
            f"{at_once}; change batch_size= or the number of processes"
        )
    if config.accumulation and config.accumulation * at_once != wanted:
        raise InputError(
            f"batch_size {config.batch_size} x {processes} processes x accumulation {config.accumulation} = "
            f"{at_once * config.accumulation}, not effective_batch={wanted}; accumulation=0 finds the number"
        )
    return wanted // at_once
