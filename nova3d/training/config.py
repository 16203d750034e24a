"""The typed config of `scripts/train.py`; defaults are the paper's where the paper says, else cited."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class UNetConfig:
    """NovaUNet's constructor; the defaults are SVD's sizes."""

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
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    steps: int = 25
    solver: str = "euler"
    guidance_low: float = 1.0
    guidance_high: float = 2.5


@dataclass
class DataConfig:
    """shards: what is trained on. validation: shards of other objects ("" for none)."""

    shards: str = "assets/train-sample"
    validation: str = ""
    input_views: list[int] = field(default_factory=list)  # which views may be the input view; empty: all


@dataclass
class OptimConfig:
    """AdamW, lr 2e-5, EMA 0.9999 (paper III); the label MLP may learn faster, as in Wonder3D."""

    learning_rate: float = 2e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    warmup: int = 500
    decay_from: float = 1.0  # share of the run after which the rate falls linearly to a twentieth; 1 keeps it
    view_embedding_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: str = "none"  # or inverse


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
class TrainConfig:
    """One run. vae, image_encoder, unet: folders of pretrained parts, or ""; a trained autoencoder is always needed."""

    out: str = "outputs/train"
    vae: str = ""
    image_encoder: str = ""  # "" trains a small one from scratch, together with the UNet
    unet: str = ""  # "" starts from random weights
    data: DataConfig = field(default_factory=DataConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    steps: int = 30_000
    batch_size: int = 1  # objects (RGB and normal pairs of 16 views) per device and micro-step
    accumulation: int = 1
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    validate_every: int = 0  # 0: never
    validation_objects: int = 4
    latent_cache: bool = True  # keep the RGB views' latents in memory after their first use


def data_identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that a checkpoint must share to be resumed."""
    return {"model": config["model"], "shards": config["data"]["shards"]}
