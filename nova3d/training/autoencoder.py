"""Training the small autoencoder of the mini model: SVD's own class, RGB views and normal maps alike."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d import config as configs
from nova3d.data.shards import ShardReader, shard_hash
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.normals import rotate
from nova3d.training.autoencoder_init import start_as_block_average
from nova3d.training.batches import generator
from nova3d.training.checkpoint import load_checkpoint, read_parts, save_checkpoint, write_parts
from nova3d.training.stats import StatsLog
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


@dataclass
class AutoencoderTrainConfig:
    """What `scripts/train_autoencoder.py` reads."""

    shards: str = "assets/train-sample"
    out: str = "outputs/mini-autoencoder"
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    steps: int = 800
    clips: int = 8  # clips per step; each is one task of one object
    frames: int = 2  # consecutive views per clip, so that the temporal layers learn too
    crop: int = 64  # pixels; crops are centred on the object's pixels
    full_frame_from: float = 0.85  # share of the run after which whole pictures replace crops
    learning_rate: float = 2e-3
    warmup: int = 50
    kl_weight: float = 1e-6  # Rombach et al. 2022
    l1_weight: float = 0.2  # beside the squared error; L1 alone starts by painting everything the median grey
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200


def train_autoencoder(
    config: AutoencoderTrainConfig, device: str, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Train, resume where a checkpoint is found, and save a diffusers folder at `config.out`/vae; returns it.

    The saved config's scaling_factor is 1 / std of the latents over training views.
    """
    reader = ShardReader(config.shards)
    torch.manual_seed(config.seed)
    model = build(config.model, reader.cameras.width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    out = Path(config.out)
    parts = {"model": model, "optimizer": optimizer}
    identity = {"model": vars(config.model), "shards": shard_hash(reader.samples), "seed": config.seed}
    start = load_checkpoint(out, lambda folder: read_parts(folder, parts), identity)
    stats = StatsLog(out / "stats.jsonl", start)
    for step in range(start, config.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.warmup, config.steps)
        clips = batch(reader, config, step).to(device)
        losses = reconstruction_losses(model, clips, config, generator(config.seed, 0, step))
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
    model.register_to_config(scaling_factor=1 / latent_std(model, reader, config.seed))
    model.save_pretrained(out / "vae", safe_serialization=True)
    data = {"shards": shard_hash(reader.samples)}
    provenance.write(out, provenance.record("train_autoencoder", configs.to_dict(config), data=data))
    return out / "vae"


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
    )
    start_as_block_average(model)
    return model


def reconstruction_losses(
    model: VideoAutoencoder, clips: Tensor, config: AutoencoderTrainConfig, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of clips [n,f,3,h,w] in [-1,1]: squared error, L1, KL; psnr in dB for the log. `rng` draws the latents."""
    frames = clips.flatten(0, 1)
    posterior = model.encode(frames).latent_dist
    restored = model.decode(posterior.sample(rng), num_frames=clips.shape[1]).sample
    mse, l1 = F.mse_loss(restored, frames), F.l1_loss(restored, frames)
    kl = posterior.kl().mean()
    psnr = -10 * (mse.detach() / 4).log10()  # range 2, hence / 4
    loss = mse + config.l1_weight * l1 + config.kl_weight * kl
    return {"loss": loss, "l1": l1.detach(), "kl": kl.detach(), "psnr": psnr}


def batch(reader: ShardReader, config: AutoencoderTrainConfig, step: int) -> Tensor:
    """Clips [n,f,3,h,w] in [-1,1] of step `step`: a function of (seed, step) alone. Tasks alternate."""
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    crop = reader.cameras.width if step >= config.full_frame_from * config.steps else config.crop
    count = max(1, config.clips * config.crop**2 // crop**2) if crop != config.crop else config.clips
    clips = [_clip(reader, config.frames, crop, index % 2, rng) for index in range(max(2, count))]
    return torch.stack(clips)


def _clip(reader: ShardReader, frames: int, crop: int, task: int, rng: torch.Generator) -> Tensor:
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
    if crop == clip.shape[-1]:
        return clip
    inside = torch.nonzero(views.mask.amax(dim=0) > 0)
    centre = inside[int(torch.randint(len(inside), (), generator=rng))] if len(inside) else torch.tensor([0, 0])
    y, x = (int(min(max(int(c) - crop // 2, 0), clip.shape[-1] - crop)) for c in centre)
    return clip[:, :, y : y + crop, x : x + crop]


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


def _schedule(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
