#!/usr/bin/env python
"""One denoising step of NovaUNet beside diffusers' own SVD UNet: time, ratio, peak memory, arithmetic."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from nova3d.cli import common

SIZES: dict[str, dict[str, Any]] = {
    "svd": {},  # the constructors' defaults: 1.52 B parameters
    "small": {
        "block_out_channels": (64, 128, 256, 256),
        "num_attention_heads": (1, 2, 4, 4),
        "cross_attention_dim": 128,
    },
}


def main() -> None:
    arguments = common.parser(
        "Forward passes of one object (both tasks) through the stock UNet, which sees two videos, and through every "
        "arm, in turns in one run; weights are random. The ratio is the median over rounds of arm / stock in a round.",
        "python benchmarks/unet_step.py --size small --latent 32 --arms none,gta",
    )
    arguments.add_argument("--size", default="small", choices=sorted(SIZES))
    arguments.add_argument("--latent", type=int, default=32, help="side of the latents (default: %(default)s)")
    arguments.add_argument("--views", type=int, default=16)
    arguments.add_argument("--objects", type=int, default=1, help="batch (default: %(default)s)")
    arguments.add_argument("--arms", default="none,cross_domain,gta,gta_spatial,gta_temporal")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments.add_argument("--compile", action="store_true", help="torch.compile both")
    arguments.add_argument("--peak", type=float, default=0.0, help="the device's TFLOP/s at this dtype, to print MFU")
    common.add_device(arguments)
    options = arguments.parse_args()

    import torch

    from nova3d.utils import provenance
    from nova3d.utils.compat import ensure_torchvision

    ensure_torchvision()  # before anything imports diffusers
    from diffusers.utils import logging

    logging.set_verbosity_error()

    device, dtype = torch.device(common.pick_device(options.device)), getattr(torch, options.dtype)
    shape = (options.objects, 2, options.views, 8, options.latent, options.latent)
    print(f"commit {provenance.commit()[:12]}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    print(f"{options.size}, latents {shape}, {options.dtype}, {options.rounds} rounds after one to warm up\n")
    sample = torch.randn(shape, device=device).to(dtype)
    stock = _stock(options.size, device, dtype)
    steps = {"stock": _stock_step(stock, sample)}
    nothing = sample.to("meta")
    flops = {"stock": _flops(_stock_step(_stock(options.size, nothing.device, dtype), nothing))}
    for arm in options.arms.split(","):
        steps[arm] = _step(_arm(arm, options.size, device, dtype, stock), sample)
        flops[arm] = _flops(_step(_arm(arm, options.size, nothing.device, dtype), nothing))
    if options.compile:
        steps = {name: torch.compile(step) for name, step in steps.items()}

    with torch.no_grad():
        expected = steps["stock"]()
        apart = max(float((step() - expected).abs().max()) for step in steps.values())
        largest = float(expected.abs().max())
        print(f"largest difference to the stock UNet's answer: {apart:.1e} (its largest value: {largest:.2f})\n")
        memory = {name: _peak_memory(step, device) for name, step in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)

    print("| arm | ms / step (best) | ratio to stock | peak MB above weights | TFLOP | TFLOP ratio | TFLOP/s |", end="")
    print(" MFU |" if options.peak else "")
    print("|---|---|---|---|---|---|---|" + ("---|" if options.peak else ""))
    for name in steps:
        ratio = median(a / b for a, b in zip(seconds[name], seconds["stock"], strict=True))
        best, work = min(seconds[name]), flops[name] / 1e12
        row = f"| {name} | {1e3 * best:.0f} | {ratio:.3f} | {memory[name]:.0f} | {work:.3f} "
        row += f"| {flops[name] / flops['stock']:.3f} | {work / best:.2f} |"
        print(row + (f" {100 * work / best / options.peak:.0f} % |" if options.peak else ""))


def _stock(size: str, device: Any, dtype: Any) -> Any:
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    with device:
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(**SIZES[size])
    return unet.to(device, dtype).eval()  # mix_factor ignores the device above


def _stock_step(unet: Any, sample: Any) -> Callable[[], Any]:
    """The same latents [b,t,v,8,h,w] as b*t videos, and the answer in the same shape."""
    import torch

    videos, width = sample.shape[0] * sample.shape[1], unet.config.cross_attention_dim
    c_noise = torch.zeros(videos, device=sample.device)
    embeds = torch.ones(videos, 1, width, device=sample.device, dtype=sample.dtype)
    ids = torch.tensor([[6.0, 127.0, 0.02]], device=sample.device).expand(videos, 3)
    return lambda: unet(sample.flatten(0, 1), c_noise, embeds, added_time_ids=ids).sample.unflatten(0, sample.shape[:2])


def _arm(arm: str, size: str, device: Any, dtype: Any, stock: Any = None) -> Any:
    """A NovaUNet that shares `stock`'s weights: its function at step 0, without a second copy."""
    from nova3d.models import NovaUNet

    with device:
        unet = NovaUNet(alignment=arm, id_mode="constant", **SIZES[size])
    unet = unet.to(device, dtype).eval()
    if stock is not None:
        unet.load_state_dict(stock.state_dict(), strict=False, assign=True)
    return unet


def _step(unet: Any, sample: Any) -> Callable[[], Any]:
    import torch

    b, _, v = sample.shape[:3]
    c_noise, aug = torch.zeros(b, device=sample.device), torch.full((b,), 0.02, device=sample.device)
    embeds = torch.ones(b, 1, unet.config.cross_attention_dim, device=sample.device, dtype=sample.dtype)
    cameras = torch.zeros(b, v, 2, device=sample.device)
    return lambda: unet(sample, c_noise, embeds, aug, cameras).sample


def _flops(step: Callable[[], Any]) -> float:
    """Multiply-adds counted twice, on the meta device: nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step()
    return float(counter.get_total_flops())


def _peak_memory(step: Callable[[], Any], device: Any) -> float:
    """MB that one step needs above what is held before it; on a CPU, by the allocations that torch's profiler sees."""
    import torch

    if device.type == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


if __name__ == "__main__":
    common.run(main)
