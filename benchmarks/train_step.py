#!/usr/bin/env python
"""One training step of every arm: pairs per second, MFU, share of waiting for data; and the data pipeline alone."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from nova3d.cli import common

# UNet, autoencoder and side of the latents; random weights.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "svd": ({}, {"down_block_types": ("DownEncoderBlock2D",) * 4}, 32),
    "small": (
        {
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            "block_out_channels": [32, 64],
            "num_attention_heads": [1, 2],
            "layers_per_block": 1,
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 32,
        },
        {"down_block_types": ("DownEncoderBlock2D",) * 4, "block_out_channels": (32,) * 4, "layers_per_block": 1},
        8,
    ),
}


def main() -> None:
    arguments = common.parser(
        "Whole steps (forward, backward, AdamW, EMA) on random weights, data from a latent cache of drawn objects. The "
        "first step is not counted; the median of the others is.",
        "python benchmarks/train_step.py --size small --arms none,gta\n"
        "  python benchmarks/train_step.py --size svd --batch 11 --dtype bfloat16 --checkpointing --peak 989",
    )
    arguments.add_argument("--size", default="small", choices=sorted(SIZES))
    arguments.add_argument("--arms", default="none,cross_domain,gta,gta_spatial,gta_temporal")
    arguments.add_argument("--batch", type=int, default=1, help="objects per step (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: autocast")
    arguments.add_argument("--peak", type=float, default=0.0, help="the device's TFLOP/s at this dtype, to print MFU")
    arguments.add_argument("--checkpointing", action="store_true")
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--channels-last", action="store_true")
    common.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.utils.compat import ensure_torchvision

    ensure_torchvision()  # before anything imports diffusers
    import torch

    from nova3d.utils import provenance

    device = torch.device(common.pick_device(options.device))
    print(f"commit {provenance.commit()[:12]}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    with tempfile.TemporaryDirectory() as folder:
        cached, shards, vae = data(Path(folder), options.size, options.batch, device)
        alone = {name: per_second(load, options.batch) for name, load in (("cache", cached), ("shards", shards))}
        print(f"{options.size}, batch {options.batch}, {options.dtype}, median of {options.steps - 1} steps\n")
        print(
            "| arm | s / step | pairs / s | TFLOP / step | MFU | data wait | peak GB | cache / step | shards / step |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for arm in options.arms.split(","):
            seconds, waited, memory = steps(arm, options, vae, cached, device)
            work = 3 * forward_flops(arm, options.size) * options.batch / 1e12
            rate = options.batch / seconds
            mfu = f"{100 * work / seconds / options.peak:.1f} %" if options.peak else "-"
            feeds = " | ".join(f"{alone[name] / rate:.0f}x" for name in ("cache", "shards"))
            held = f"{memory / 1e9:.1f}" if memory else "-"
            print(f"| {arm} | {seconds:.3f} | {rate:.2f} | {work:.3f} | {mfu} | {waited:.2%} | {held} | {feeds} |")
    print("\nMFU counts forward and backward passes, not what checkpointing computes again.")
    print("cache / step, shards / step: what the data pipeline alone (one thread, draws included) gives for one used.")


def data(folder: Path, size: str, batch: int, device: Any) -> tuple[Any, Any, Any]:
    """Loaders from a latent cache and from shards of eight drawn objects, and the autoencoder."""
    import torch

    from nova3d.cameras import orbit
    from nova3d.data.multiview import MultiViewDataset
    from nova3d.data.shards import ShardWriter, encode_views
    from nova3d.models.autoencoder import VideoAutoencoder
    from nova3d.training.config import NoiseConfig, noise_schedule
    from nova3d.training.data import GlobalBatch, ItemReader, MicroBatchLoader, ShardSource
    from nova3d.training.latents import LatentCache, build_cache, cache_identity
    from nova3d.views import ViewSet

    side = SIZES[size][2]
    rig = orbit(16, size=8 * side)
    writer = ShardWriter(folder / "shards", rig)
    inside = ((rig.pixel_centres() - 4 * side).norm(dim=-1) < 3 * side).float().expand(16, -1, -1)
    normals = rig.c2w[:, None, None, :3, 2].expand(-1, 8 * side, 8 * side, -1) * inside[..., None]
    for index in range(8):
        noise = torch.rand(16, 8 * side, 8 * side, 3, generator=torch.Generator().manual_seed(index))
        views = ViewSet(torch.where(inside[..., None] > 0, noise, 1.0), normals, inside, rig)
        writer.add(f"o{index}", encode_views(f"o{index}", views, {}))
    writer.close({})
    torch.manual_seed(0)
    vae = VideoAutoencoder(**SIZES[size][1]).to(device).requires_grad_(False).eval()
    dataset = MultiViewDataset(folder / "shards", [0])
    build_cache(folder / "cache", dataset, vae, None)
    cache = LatentCache(folder / "cache", dataset, cache_identity(dataset, vae, None))
    noise_config = NoiseConfig()
    shapes = ((2, 16, 4, side, side), (3, 8 * side, 8 * side))

    def loader(source: Any) -> MicroBatchLoader:
        schedule = noise_schedule(noise_config)
        return MicroBatchLoader(ItemReader(source), noise_config, schedule, 0, GlobalBatch(batch), *shapes)

    return loader(cache), loader(ShardSource(dataset)), vae


def per_second(load: Callable[[tuple[int, int]], Any], batch: int, seconds: float = 3.0) -> float:
    """Objects per second of a loader by itself."""
    load((0, 0))
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += 1
        load((count, 0))
    return batch * count / (time.perf_counter() - started)


def steps(arm: str, options: Any, vae: Any, load: Any, device: Any) -> tuple[float, float, int]:
    """Median seconds of a step, the share of it that waits for data, and the most GPU memory held (0 on a CPU)."""
    from dataclasses import replace

    import torch
    from torch import nn

    from nova3d.training.data import LatentEncoder, Prefetcher, make_batch
    from nova3d.training.ema import EMA, constant_decay
    from nova3d.training.loss import TrainingModule

    unet = build(arm, options.size)
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    if options.channels_last:
        unet.to(memory_format=torch.channels_last)
    clip = nn.Linear(1, 1).requires_grad_(False)  # embeddings come with the batch, as from a cache
    model = TrainingModule(unet.to(device).train(), clip, vae)
    if options.compile:
        unet.compile(dynamic=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=device.type == "cuda")
    ema, encoder = EMA(model, constant_decay(0.9999)), LatentEncoder(vae, device, keep=False)
    embeds = torch.randn(options.batch, 1, unet.config.cross_attention_dim, device=device)
    taken, waits = [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Prefetcher(load, [(step, 0) for step in range(options.steps)], 2) as batches:
        for _ in range(options.steps):
            started = time.perf_counter()
            items, draws = next(batches)
            waits.append(time.perf_counter() - started)
            batch = replace(make_batch(items, draws, encoder), embeds=embeds)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
                loss = model(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return median(taken[1:]), sum(waits[1:]) / sum(taken[1:]), memory


def build(arm: str, size: str) -> Any:
    from nova3d.models import NovaUNet

    return NovaUNet(alignment=arm, **SIZES[size][0])


def forward_flops(arm: str, size: str) -> float:
    """Of one object, multiply-adds counted twice, on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = SIZES[size][2]
    with torch.device("meta"):
        unet = build(arm, size).to("meta")
        one = torch.empty(1)
        inputs = (torch.empty(1, 2, 16, 8, side, side), one, torch.empty(1, 1, unet.config.cross_attention_dim), one)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*inputs, torch.empty(1, 16, 2))
    return float(counter.get_total_flops())


if __name__ == "__main__":
    common.run(main)
