"""Training the small autoencoder of the mini model: SVD's own class, RGB views and normal maps alike."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d import config as configs
from nova3d.data.shards import ShardReader, shard_hash
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.models.conditioning import inflated_guide
from nova3d.normals import rotate
from nova3d.training.autoencoder_init import start_as_block_average
from nova3d.training.checkpoint import load_checkpoint, read_parts, save_checkpoint, write_parts
from nova3d.training.data import generator
from nova3d.training.logs import StatsLog
from nova3d.training.loss import pretrained
from nova3d.training.optim import is_matrix, make_optimizer
from nova3d.training.precision import resolve
from nova3d.utils import provenance
from nova3d.views import yaw_rotation

log = logging.getLogger(__name__)


@dataclass
class AutoencoderModelConfig:
    """Arguments of VideoAutoencoder; each further width halves the resolution."""

    block_out_channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 8
    guide_channels: int = 0
    """4: the decoder also sees the inflated outline of the input view, colours or normals and mask; 0: no guide."""


@dataclass
class AutoencoderTrainConfig:
    """What `scripts/train_autoencoder.py` reads."""

    shards: str = "assets/train-sample"
    """Shards to train on: a folder, or several with commas between them."""
    out: str = "outputs/mini-autoencoder"
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    steps: int = 800
    clips: int = 8  # clips per step; each is one task of one object
    frames: int = 2  # consecutive views per clip, so that the temporal layers learn too
    crop: int = 64  # pixels; crops are centred on the object's pixels
    full_frame_from: float = 0.85  # share of the run after which whole pictures replace crops
    optimizer: str = "adamw"
    """adamw, adamw8bit or muon (matrices and kernels by Muon's rule, the rest by AdamW's)."""
    learning_rate: float = 2e-3
    muon_learning_rate: float = 3e-3
    """Muon's rate for matrices and kernels, where optimizer is muon."""
    mixed_precision: str = "no"
    """no, bf16, or auto: bf16 where this machine is fast in it."""
    warmup: int = 50
    final_rate: float = 0.1
    """Share of the rate that the cosine decay ends at."""
    kl_weight: float = 1e-6  # Rombach et al. 2022
    l1_weight: float = 0.2  # beside the squared error; L1 alone starts by painting everything the median grey
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    start: str = ""
    """Folder of a trained autoencoder of the same sizes to go on from; "" starts as block averages. One without a guide
    may be gone on from with one."""
    decoder_only: bool = False
    """Keep the encoder, and with it the latents that a UNet was trained on."""
    latent_noise: float = 0.0
    """Deviation of the noise on the latents that the decoder learns from, in deviations of the latents: a generator's
    latents are never exact."""


def train_autoencoder(
    config: AutoencoderTrainConfig, device: str, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Train, resume where a checkpoint is found, and save a diffusers folder at `config.out`/vae; returns it.

    The saved config's scaling_factor is 1 / std of the latents over training views.
    """
    reader = ShardReader(config.shards)
    torch.manual_seed(config.seed)
    model = start_model(config, reader.cameras.width).to(device)
    optimizer = make_optimizer(config.optimizer, parameter_groups(model, config), (0.9, 0.99), torch.device(device))
    precision = resolve(config.mixed_precision, torch.device(device).type)
    out = Path(config.out)
    parts = {"model": model, "optimizer": optimizer}
    identity = {
        "model": vars(config.model),
        "shards": shard_hash(reader.samples),
        "seed": config.seed,
        "optimizer": config.optimizer,
        "start": config.start,
        "decoder_only": config.decoder_only,
        "latent_noise": config.latent_noise,
    }
    start = load_checkpoint(out, lambda folder: read_parts(folder, parts), identity)
    stats = StatsLog(out / "stats.jsonl", start)
    for step in range(start, config.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * _schedule(step, config.warmup, config.steps, config.final_rate)
        clips, guides = batch(reader, config, step)
        clips, guides = clips.to(device), None if guides is None else guides.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            losses = reconstruction_losses(model, clips, config, generator(config.seed, 0, step), guides)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stats.add(step, {k: v.item() for k, v in losses.items()} | {"seconds": time.perf_counter() - started})
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            means = stats.flush()
            if progress:
                progress(step + 1, config.steps, f"loss {means['loss']:.4f} psnr {means['psnr']:.2f}")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            stats.flush()
            save_checkpoint(out, step + 1, lambda folder: write_parts(folder, parts), identity)
    if not config.decoder_only:
        model.register_to_config(scaling_factor=1 / latent_std(model, reader, config.seed))
    model.save_pretrained(out / "vae", safe_serialization=True)
    data = {"shards": shard_hash(reader.samples)}
    provenance.write(out, provenance.record("train_autoencoder", configs.to_dict(config), data=data))
    return out / "vae"


def start_model(config: AutoencoderTrainConfig, size: int) -> VideoAutoencoder:
    """The autoencoder that training starts from.

    Raises:
        InputError: where `start` has other sizes than `model`, where it has a guide that `model` lacks, and where only
            the decoder is to be trained and there is no `start`.
    """
    model = build(config.model, size)
    if config.start:
        trained = pretrained(VideoAutoencoder, config.start)
        wanted = vars(config.model) | ({} if trained.config.guide_channels else {"guide_channels": 0})
        for key, value in wanted.items():
            there = getattr(trained.config, key)
            if (list(there) if isinstance(there, list | tuple) else there) != value:
                raise InputError(f"start '{config.start}' has model.{key}={there}, the config says {value}")
        model.load_state_dict(trained.state_dict(), strict=False)  # a new guide's weights stay at zero
        model.register_to_config(scaling_factor=trained.config.scaling_factor)
    elif config.decoder_only:
        raise InputError("decoder_only needs start=, the autoencoder whose encoder is kept")
    if config.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    return model


def parameter_groups(model: VideoAutoencoder, config: AutoencoderTrainConfig) -> list[dict[str, Any]]:
    """Parameter groups: matrices and kernels apart where Muon is the optimizer; weight decay on all."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        muon = config.optimizer == "muon" and is_matrix(name, parameter)
        (matrices if muon else others).append(parameter)
    groups = [{"params": others, "base_lr": config.learning_rate, "lr": 0.0, "weight_decay": 1e-4}]
    if matrices:
        groups.append(
            {"params": matrices, "base_lr": config.muon_learning_rate, "lr": 0.0, "weight_decay": 1e-4, "muon": True}
        )
    return groups


def build(config: AutoencoderModelConfig, size: int) -> VideoAutoencoder:
    """An untrained autoencoder that starts as block averages."""
    model = VideoAutoencoder(
        down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        sample_size=size,
        force_upcast=False,
        norm_groups=config.norm_groups,
        guide_channels=config.guide_channels,
    )
    start_as_block_average(model)
    return model


def reconstruction_losses(
    model: VideoAutoencoder,
    clips: Tensor,
    config: AutoencoderTrainConfig,
    rng: torch.Generator,
    guides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch of clips.

    Args:
        model: the autoencoder.
        clips: [n,f,3,h,w] in [-1,1].
        config: the losses' weights and the noise on the latents.
        rng: draws the latents and their noise.
        guides: [n,f,4,h,w] for a guided decoder, else None.

    Returns:
        `loss`; `l1` and `kl`; `psnr` in dB, for the log.
    """
    frames, count = clips.flatten(0, 1), clips.shape[1]
    with torch.set_grad_enabled(not config.decoder_only):
        posterior = model.encode(frames).latent_dist
        latents = posterior.sample(rng)
    if config.latent_noise:
        # Any strength up to the full one, the same for a clip: generators' errors differ in size.
        strength = config.latent_noise * torch.rand(len(clips), generator=rng) / model.config.scaling_factor
        noise = torch.randn(latents.shape, generator=rng) * strength.repeat_interleave(count)[:, None, None, None]
        latents = latents + noise.to(latents)
    if guides is None:
        restored = model.decode(latents, num_frames=count).sample
    else:
        restored = model.decode_guided(latents, guides.flatten(0, 1), count)
    mse, l1 = F.mse_loss(restored, frames), F.l1_loss(restored, frames)
    kl = posterior.kl().mean()
    psnr = -10 * (mse.detach() / 4).log10()  # range 2, hence / 4
    loss = mse + config.l1_weight * l1 + config.kl_weight * kl
    return {"loss": loss, "l1": l1.detach(), "kl": kl.detach(), "psnr": psnr}


def batch(reader: ShardReader, config: AutoencoderTrainConfig, step: int) -> tuple[Tensor, Tensor | None]:
    """What step `step` learns from, a function of (seed, step) alone. Tasks alternate.

    Returns:
        Clips [n,f,3,h,w] in [-1,1], and for a guided decoder their guides [n,f,4,h,w], else None.
    """
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    crop = reader.cameras.width if step >= config.full_frame_from * config.steps else config.crop
    count = max(1, config.clips * config.crop**2 // crop**2) if crop != config.crop else config.clips
    guided = config.model.guide_channels > 0
    pairs = [_clip(reader, config.frames, crop, index % 2, rng, guided) for index in range(max(2, count))]
    guides = [guide for _, guide in pairs if guide is not None]
    return torch.stack([clip for clip, _ in pairs]), torch.stack(guides) if guided else None


def _clip(
    reader: ShardReader, frames: int, crop: int, task: int, rng: torch.Generator, guided: bool
) -> tuple[Tensor, Tensor | None]:
    row = int(torch.randint(len(reader), (), generator=rng))
    first = int(torch.randint(len(reader.cameras), (), generator=rng))
    turn = int(torch.randint(len(reader.cameras), (), generator=rng))
    order = [(first + k) % len(reader.cameras) for k in range(frames)]
    views = reader.views(row, order)
    if task == 0:
        picture = views.rgb * 2 - 1
    else:  # any of the views can be the input view, and its frame is the normals' frame
        azimuth = reader.cameras.azimuth_elevation()[turn, 0]
        picture = rotate(views.normals, yaw_rotation(-azimuth))
    clip = picture.permute(0, 3, 1, 2)
    guide = None
    if guided:
        seen = [(view - turn) % len(reader.cameras) for view in order]
        guide = inflated_guide(reader.views(row, [turn]).straight_alpha(0), reader.cameras, seen)[task]
    if crop == clip.shape[-1]:
        return clip, guide
    inside = torch.nonzero(views.mask.amax(dim=0) > 0)
    centre = inside[int(torch.randint(len(inside), (), generator=rng))] if len(inside) else torch.tensor([0, 0])
    y, x = (int(min(max(int(c) - crop // 2, 0), clip.shape[-1] - crop)) for c in centre)
    window = (slice(None), slice(None), slice(y, y + crop), slice(x, x + crop))
    return clip[window], None if guide is None else guide[window]


@torch.no_grad()
def latent_std(model: VideoAutoencoder, reader: ShardReader, seed: int, objects: int = 32) -> float:
    """Standard deviation of the mean latents over RGB views and normal maps of some objects."""
    rng = torch.Generator().manual_seed(seed)
    latents = []
    for row in torch.randperm(len(reader), generator=rng)[:objects].tolist():
        views = reader.views(row, list(range(0, len(reader.cameras), 4)))
        frames = torch.cat([views.rgb * 2 - 1, views.normals]).permute(0, 3, 1, 2).to(model.device)
        latents.append(model.encode(frames).latent_dist.mode())
    return float(torch.cat(latents).std())


def _schedule(step: int, warmup: int, total: int, final: float) -> float:
    """Linear warm-up, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
