#!/usr/bin/env python
"""Self-attention by torch's fused kernel (SDPA) beside two batched matrix products: CPU or device time, both ways."""

import logging
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from nova3d.cli import common

SHAPES = {  # rows, tokens, width, heads: one object of 2 tasks, 16 views and 16 x 16 latents
    "spatial": (32, 256, 64, 2),
    "spatial alignment": (16, 512, 64, 2),
    "temporal": (512, 16, 64, 2),
    "temporal alignment": (256, 32, 64, 2),
    "row": (32, 256, 128, 4),
}


def main() -> None:
    arguments = common.parser(
        "Times diffusers' Attention with either backend on random tokens, in turns in one run, forward alone and with "
        "backward. The ratio is the median over rounds of products / SDPA in a round; below 1 the products win. "
        "The error is the greatest difference of the outputs over the greatest output.",
        "python benchmarks/attention.py --dtype float32,bfloat16",
    )
    arguments.add_argument("--shapes", default=",".join(SHAPES), help="of: %(default)s")
    arguments.add_argument("--dtype", default="float32,bfloat16")
    arguments.add_argument("--rounds", type=int, default=7)
    common.add_device(arguments)
    options = arguments.parse_args()

    import torch
    from torch import Tensor

    from nova3d.utils import provenance
    from nova3d.utils.compat import ensure_torchvision

    ensure_torchvision()  # before anything imports diffusers
    from diffusers.models.attention_processor import Attention

    from nova3d.models.attention_backend import AttentionBackend, pick_attention, use_attention

    logging.getLogger("nova3d.models").setLevel(logging.WARNING)  # the backend changes with every call
    device = torch.device(common.pick_device(options.device))
    print(f"commit {provenance.commit()[:12]}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    print(f"{options.rounds} rounds after one to warm up\n")
    print(
        "| shape | rows x tokens x width, heads | dtype | pass | SDPA [ms] | products [ms] | ratio | error | chosen |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.shapes.split(","):
        rows, tokens, width, heads = SHAPES[name]
        for dtype_name in options.dtype.split(","):
            dtype = getattr(torch, dtype_name)
            torch.manual_seed(0)
            attention = Attention(query_dim=width, heads=heads, dim_head=width // heads).to(device, dtype)
            x = torch.randn(rows, tokens, width, device=device).to(dtype).requires_grad_()

            def forward(attention: Attention = attention, x: Tensor = x) -> Tensor:
                with torch.no_grad():
                    return attention(x)

            def both(attention: Attention = attention, x: Tensor = x) -> Tensor:
                output: Tensor = attention(x)
                output.sum().backward()
                return output.detach()

            for label, call in (("forward", forward), ("forward and backward", both)):
                seconds: dict[AttentionBackend, list[float]] = {"sdpa": [], "products": []}
                outputs: dict[AttentionBackend, Tensor] = {}
                for round_ in range(options.rounds + 1):
                    for backend in seconds:
                        use_attention(attention, backend)
                        spent, outputs[backend] = _timed(call, device)
                        if round_:
                            seconds[backend].append(spent)
                ratio = median(b / a for a, b in zip(seconds["sdpa"], seconds["products"], strict=True))
                off = float((outputs["sdpa"] - outputs["products"]).abs().max() / outputs["sdpa"].abs().max())
                fused, products = (1e3 * median(seconds[backend]) for backend in seconds)
                print(
                    f"| {name} | {rows} x {tokens} x {width}, {heads} | {dtype_name} | {label} | {fused:.2f} "
                    f"| {products:.2f} | {ratio:.2f} | {off:.1e} | {pick_attention(device, dtype)} |"
                )


def _timed(call: Callable[[], Any], device: Any) -> tuple[float, Any]:
    """Seconds of a call and its result: CPU seconds on a CPU, which other work does not change; else wall seconds."""
    clock = time.process_time
    if device.type != "cpu":
        import torch

        torch.cuda.synchronize()
        clock = time.perf_counter
    started = clock()
    result = call()
    if device.type != "cpu":
        torch.cuda.synchronize()
    return clock() - started, result


if __name__ == "__main__":
    common.run(main)
