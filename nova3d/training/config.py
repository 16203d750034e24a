"""The configs of `nova3d train` and `train-autoencoder`; defaults are the paper's where it states them, else cited."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from nova3d import config as configs
from nova3d.choices import AlignmentInit, Solver
from nova3d.config import Range, Sentinel
from nova3d.data.config import AugmentConfig
from nova3d.errors import InputError
from nova3d.tasks import ConditionKind
from nova3d.utils import yaml_text
from nova3d.utils.resources import Shipped

if TYPE_CHECKING:
    from nova3d.diffusion import NoiseSchedule

Optimizer = Literal["adamw", "adamw8bit", "muon"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
Precision = Literal["no", "bf16", "auto"]  # SVD overflows in fp16
NO_ENCODER = "none"  # as `image_encoder`: the model has no image encoder


@dataclass
class UNetConfig:
    """Arguments of NovaUNet; the defaults are SVD's sizes.

    A run that starts from `svd` uses the alignment keys only.
    """

    down_block_types: list[str] = field(
        default_factory=lambda: [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"]
    )
    """Down blocks, finest resolution first."""
    up_block_types: list[str] = field(
        default_factory=lambda: ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3]
    )
    """Up blocks, coarsest resolution first."""
    block_out_channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    """Channels of each resolution."""
    num_attention_heads: list[int] = field(default_factory=lambda: [5, 10, 20, 20])
    """Attention heads of each resolution."""
    layers_per_block: int = 2
    """Residual layers of a block."""
    cross_attention_dim: int = 1024
    """Width of the image embedding."""
    addition_time_embed_dim: int = 256
    """Width of the embedding of the noise augmentation."""
    norm_groups: int = 32
    """Groups of the group norms; they divide every width."""
    alignment: str = "gta"
    """Which blocks have alignment units: none, cross_domain, gta, gta_spatial or gta_temporal (`ALIGNMENTS`)."""
    alignment_init: AlignmentInit = "copied"
    """How the attention of the alignment units starts (nova3d.models.alignment)."""
    row_attention: bool = False
    """Attention along image rows over all views, in spatial blocks."""


@dataclass
class ImageEncoderConfig:
    """CLIPVisionConfig of a small image encoder that is trained with the UNet.

    Its projection has the width `model.cross_attention_dim`.
    """

    hidden_size: int = 128
    """Width of the tokens."""
    intermediate_size: int = 512
    """Width of the MLPs."""
    num_hidden_layers: int = 4
    """Layers."""
    num_attention_heads: int = 4
    """Attention heads."""
    image_size: int = 64
    """Side of the pictures that it sees, in pixels."""
    patch_size: int = 8
    """Side of a patch, in pixels."""


@dataclass
class PipelineConfig:
    """What the saved pipeline samples with; see Nova3DPipeline."""

    camera_preset: str = "ortho16"
    """The cameras of the views. It must be the rig of the shards."""
    condition: ConditionKind = "picture"
    """What the UNet's condition latents show (nova3d.models.conditioning)."""
    condition_share: float = 0.0
    """Share in [0,1) of the inflated condition's own pictures in the views of the trained model."""
    sigma_min: float = 0.002
    """The last noise level before zero."""
    sigma_max: float = 700.0
    """The first noise level."""
    steps: int = 25
    """Denoising steps."""
    solver: Solver = "euler"
    """The solver of the sampling ODE."""
    guidance_low: float = 1.0
    """Guidance scale at the input view."""
    guidance_high: float = 2.5
    """Guidance scale behind the object."""


@dataclass
class DataConfig:
    """What is trained on."""

    shards: Annotated[str, Shipped("asset")] = "assets/train-sample"
    """Shard folder to train on, or several, separated by commas."""
    validation: Annotated[str | None, Shipped("asset")] = None
    """Shards of other objects, for validation. null: no validation."""
    input_views: list[int] = field(default_factory=list)
    """Views that may be the input view. Empty: all."""
    input_views_per_object: Annotated[int | None, Range(1)] = None
    """How many of `input_views` each object uses, drawn by a hash of its uid. null: all. A latent cache holds these
    only."""
    cache: str | None = None
    """Folder of a latent cache (`nova3d cache-latents`), or one for each folder of `shards`, with commas between
    them. null: the shards' views are encoded while training."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """A damaged object ends the run (fail), or the next readable one takes its place (skip)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prefetch: Annotated[int, Range(0)] = 2
    """Micro-batches read ahead. 0: a batch is read when it is needed."""
    threads: Annotated[int, Range(1)] = 1
    """Threads that read ahead, each a micro-batch."""


@dataclass
class OptimConfig:
    """Optimizer and weight averages; the defaults are the paper's: AdamW, rate 2e-5, EMA 0.9999 (section III).

    Weight decay is decoupled. Norms, biases and SVD's mix factors are not decayed.
    """

    name: Optimizer = "adamw"
    """adamw, adamw8bit (moments in 8 bits, by bitsandbytes) or muon (matrices and kernels by Muon's rule, the rest by
    AdamW's)."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    muon_learning_rate: float = 0.01
    """Muon's rate for matrices and kernels, where the optimizer is muon."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's decay rates of the moments."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup: int = 500
    """Steps over which the rate rises linearly."""
    decay_from: float = 1.0
    """Share of the run after which the rate falls linearly to a twentieth. 1: it does not fall."""
    view_embedding_multiplier: float = 1.0
    """Factor on the rate of the MLP that embeds camera and task; Wonder3D trains its labels faster."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights."""
    ema_warmup: Literal["none", "inverse"] = "none"
    """none, or inverse: the decay grows with the steps taken."""
    ema_device: Literal["cpu"] | None = None
    """Where the averages are kept. null: beside the weights. cpu: in main memory."""
    ema_profiles: list[float] = field(default_factory=list)
    """Relative widths sigma_rel of power-function averages that are kept too, e.g. [0.05, 0.1]."""
    snapshot_every: int = 1000
    """Steps between the snapshots of `ema_profiles`."""


@dataclass
class NoiseConfig:
    """Noise levels by stages (paper, appendix VI), noise on the condition picture, and dropouts of the conditions.

    One draw per object decides which of the three dropouts happens.
    """

    stages: list[list[float]] = field(
        default_factory=lambda: [[0, 1.0, 1.6], [8000, 1.8, 1.6], [16000, 2.2, 1.8], [24000, 2.5, 2.0]]
    )
    """[first step, P_mean, P_std] of each stage."""
    condition_mean: float = -3.0
    """Mean of the log of the noise level on the condition picture, in pixel space (SVD: -3)."""
    condition_std: float = 0.5
    """Deviation of that log (SVD: 0.5)."""
    drop_both: float = 0.1
    """Probability that both conditions are dropped."""
    drop_clip: float = 0.05
    """Probability that the image embedding alone is dropped."""
    drop_latent: float = 0.05
    """Probability that the condition latent alone is dropped."""


@dataclass
class HealthConfig:
    """Steps with a loss or gradient that is not finite, or far above its median, are skipped."""

    spike: Annotated[float | None, Sentinel(0)] = 10.0
    """A step is skipped where loss or gradient norm exceeds this multiple of its median. null: no limit."""
    window: Annotated[int, Range(1)] = 200
    """Accepted steps that the medians are taken over."""
    max_bad: Annotated[int, Range(1)] = 5
    """Skipped steps in a row that end the run."""


@dataclass
class TrainConfig:
    """The keys of `nova3d train`.

    An autoencoder is always needed, from `svd` or `vae`, and is never trained.
    """

    out: str = "outputs/train"
    """The run's folder."""
    svd: str | None = None
    """Folder or hub id of Stable Video Diffusion. UNet, autoencoder and image encoder start from it; the last two stay
    frozen."""
    svd_variant: str | None = None
    """Variant of SVD's weight files: null or fp16."""
    vae: Annotated[str | None, Shipped("asset")] = None
    """Folder of the trained autoencoder, without `svd`."""
    image_encoder: Annotated[str | None, Shipped("asset")] = None
    """Folder of a frozen image encoder, without `svd`. null trains a small one from scratch, together with the UNet.
    The word none leaves it out: the UNet's cross-attention sees zeros."""
    train_image_encoder: bool = False
    """Train the image encoder that `image_encoder` names too, together with the UNet."""
    unet: Annotated[str | None, Shipped("asset")] = None
    """Folder of a UNet to start from, without `svd`. null: random weights."""
    data: DataConfig = field(default_factory=DataConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    steps: Annotated[int, Range(1)] = 30_000
    """Optimizer steps in all."""
    batch_size: Annotated[int, Range(1)] = 1
    """Objects (RGB and normal pairs of 16 views) per device and micro-step."""
    accumulation: Annotated[int | None, Sentinel(0), Range(1)] = 1
    """Micro-steps per step. null: as many as effective_batch needs."""
    effective_batch: Annotated[int | None, Sentinel(0), Range(1)] = None
    """Objects per step over all devices, checked at the start. null: what the other keys give."""
    mixed_precision: Precision = "no"
    """no: float32. auto: bf16 on CUDA and on CPUs that a measurement finds fast in it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile of the UNet."""
    seed: int = 0
    """Seed of the initial weights, the order of the objects and the noise."""
    resume_other_data: bool = False
    """Resume from a checkpoint although its shards, input views or augmentation differ."""
    resume: str = "auto"
    """auto (the newest readable checkpoint of `out`), never, or a checkpoint's folder."""
    log_every: Annotated[int, Range(1)] = 20
    """Steps between log entries."""
    checkpoint_every: Annotated[int, Range(1)] = 500
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Range(1)] = 2
    """How many checkpoints are kept, the newest."""
    validate_every: Annotated[int | None, Sentinel(0)] = None
    """Steps between validations. null: never."""
    validation_objects: int = 4
    """Objects per validation."""
    latent_cache: bool = True
    """Keep the RGB views' latents in memory after their first use; for small data sets."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Loggers beside stats.jsonl."""


@dataclass
class AutoencoderModelConfig:
    """Arguments of VideoAutoencoder."""

    block_out_channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    """Channels of each resolution; each further one halves the resolution."""
    layers_per_block: int = 1
    """Residual layers of a block."""
    latent_channels: int = 4
    """Channels of the latents."""
    norm_groups: int = 8
    """Groups of the group norms."""
    guide_channels: int = 0
    """4: the decoder also sees the inflated outline of the input view, colours or normals and mask. 0: no guide."""


@dataclass
class AutoencoderTrainConfig:
    """The keys of `nova3d train-autoencoder`."""

    shards: Annotated[str, Shipped("asset")] = "assets/train-sample"
    """Shard folder to train on, or several, separated by commas."""
    out: str = "outputs/mini-autoencoder"
    """The run's folder; the model is written to OUT/vae."""
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    steps: int = 800
    """Optimizer steps in all."""
    clips: int = 8
    """Clips per step; each is one task of one object."""
    frames: int = 2
    """Consecutive views per clip, so that the temporal layers learn too."""
    crop: int = 64
    """Side of the crops in pixels; they are centred on pixels of the object."""
    full_frame_from: float = 0.85
    """Share of the run after which whole pictures replace crops."""
    optimizer: Optimizer = "adamw"
    """adamw, adamw8bit or muon (matrices and kernels by Muon's rule, the rest by AdamW's)."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    muon_learning_rate: float = 3e-3
    """Muon's rate for matrices and kernels, where optimizer is muon."""
    mixed_precision: Precision = "no"
    """no: float32. auto: bf16 on CUDA and on CPUs that a measurement finds fast in it."""
    warmup: int = 50
    """Steps over which the rate rises linearly."""
    final_rate: float = 0.1
    """Share of the rate that the cosine decay ends at."""
    kl_weight: float = 1e-6
    """Weight of the KL term (Rombach et al. 2022)."""
    l1_weight: float = 0.2
    """Weight of the absolute error beside the squared one. Alone it starts by painting the median grey."""
    seed: int = 0
    """Seed of the initial weights, the clips and the latents."""
    log_every: int = 20
    """Steps between log entries."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    start: Annotated[str | None, Shipped("asset")] = None
    """Folder of a trained autoencoder of the same sizes to start from; its guide may be new or be left out. null: block
    averages."""
    decoder_only: bool = False
    """Keep the encoder, and with it the latents that a UNet was trained on."""
    latent_noise: float = 0.0
    """Deviation of the noise on the latents that the decoder learns from, in deviations of the latents: a generator's
    latents are never exact."""
    generator: Annotated[str | None, Shipped("model")] = None
    """Folder of a model that generates views in the latents of `start`. The decoder is then trained on the latents that
    this model samples for the training objects: whole pictures, `clips` // 2 objects a step. null: on latents of
    encoded pictures."""


def check(config: TrainConfig) -> None:
    """Check values and combinations of a config before anything is loaded.

    Args:
        config: of a run.

    Raises:
        InputError: naming the key.
    """
    from nova3d.data import augment
    from nova3d.models.alignment import ALIGNMENTS

    configs.validate(config)
    optim, data, noise = config.optim, config.data, config.noise
    if config.model.alignment not in ALIGNMENTS:
        known = ", ".join(ALIGNMENTS)
        raise InputError(f"model.alignment must be one of {known}, or added by a module of --import")
    widths = zip(config.model.block_out_channels, config.model.num_attention_heads, strict=False)
    if unfit := [pair for pair in widths if pair[1] < 1 or pair[0] % pair[1]]:
        raise InputError(
            f"model.num_attention_heads: {unfit[0][1]} heads do not divide the {unfit[0][0]} channels of their level "
            "(model.block_out_channels)"
        )
    if config.svd and (config.unet or config.vae or config.image_encoder):
        raise InputError("svd= brings all three networks: leave unet=, vae= and image_encoder= empty")
    if config.train_image_encoder and (not config.image_encoder or config.image_encoder == NO_ENCODER):
        raise InputError("train_image_encoder needs image_encoder=, the encoder whose training continues")
    if config.pipeline.condition != "picture" and not data.cache:
        raise InputError(
            "pipeline.condition=inflated trains from a latent cache: set data.cache (nova3d cache-latents)"
        )
    if data.cache and data.threads > 1:
        raise InputError("data.cache is read by one thread: leave data.threads at 1")
    if data.cache and data.augment.active:
        raise InputError(
            "the objects of data.cache are changed when it is made (nova3d cache-latents data.augment...): leave "
            "data.augment out of the training, or set data.cache=null"
        )
    if not all(0 < rel < 0.28 for rel in optim.ema_profiles):
        raise InputError("optim.ema_profiles must lie between 0 and 0.28")
    if config.health.spike and config.health.spike <= 1:
        raise InputError("health.spike must be null or above 1")
    if noise.drop_both + noise.drop_clip + noise.drop_latent > 1:
        raise InputError("noise.drop_* must not sum to more than 1")
    augment.check(data.augment)
    try:
        noise_schedule(noise)
    except (ValueError, TypeError) as error:
        raise InputError(f"noise.stages: {error}") from error


def noise_schedule(config: NoiseConfig) -> "NoiseSchedule":
    """The stages of a config; raises ValueError where they are not [first step, mean, deviation] in order."""
    from nova3d.diffusion import NoiseSchedule

    for stage in config.stages:
        if len(stage) != 3:
            raise ValueError(f"{stage} is not [first step, mean, deviation]")
    return NoiseSchedule([(int(start), mean, std) for start, mean, std in config.stages])


def preset_overrides(path: str | Path) -> list[str]:
    """The `key=value` overrides that a preset, a YAML file of changes, stands for.

    Args:
        path: the file.

    Returns:
        One override for each of its keys.

    Raises:
        InputError: where the file cannot be read.
    """
    try:
        content = yaml_text.read_mapping(Path(path))
    except InputError as error:
        raise InputError(f"preset '{path}' cannot be read: {error}") from error

    flat = configs.flatten(content)
    return [
        f"{key}={value if isinstance(value, yaml_text.Plain) else json.dumps(value)}" for key, value in flat.items()
    ]


def micro_steps(config: TrainConfig, processes: int) -> int:
    """Micro-steps per step.

    Args:
        config: of a run.
        processes: that share its batch.

    Returns:
        `accumulation`, or as many as the effective batch needs.

    Raises:
        InputError: where they cannot make up the effective batch.
    """
    at_once = config.batch_size * processes
    wanted = config.effective_batch
    if not wanted:
        return max(1, config.accumulation or 1)
    if wanted % at_once:
        raise InputError(
            f"effective_batch={wanted} is not a multiple of batch_size {config.batch_size} x {processes} processes = "
            f"{at_once}; change batch_size= or the number of processes"
        )
    if config.accumulation and config.accumulation * at_once != wanted:
        raise InputError(
            f"batch_size {config.batch_size} x {processes} processes x accumulation {config.accumulation} = "
            f"{at_once * config.accumulation}, not effective_batch={wanted}; accumulation=null finds the number"
        )
    return wanted // at_once
