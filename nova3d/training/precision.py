"""Chooses float32 or bfloat16 for training on a CPU by a measurement."""

import logging
import time
from functools import cache

import torch

from nova3d.training.config import Precision

log = logging.getLogger(__name__)


@cache
def cpu_bf16_is_fast(size: int = 384, repeats: int = 12) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on this CPU.

    CPUs with avx512_bf16 or AMX are several times faster in bfloat16. CPUs without them emulate it and are up to 60
    times slower. The result is measured once a process (about 20 ms) and logged.

    Args:
        size: side of the square matrices.
        repeats: products of either kind; the fastest of each counts.

    Returns:
        True where bfloat16 took at most 0.8 of float32's time.
    """
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        a @ a  # the first product chooses its kernel
        best = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
        times[dtype] = best
    gflops = {dtype: 2 * size**3 / seconds / 1e9 for dtype, seconds in times.items()}
    fast = times[torch.bfloat16] <= 0.8 * times[torch.float32]
    log.info(
        "this CPU multiplies at %.0f GFLOP/s in float32 and %.0f in bfloat16: %s is used",
        gflops[torch.float32],
        gflops[torch.bfloat16],
        "bfloat16" if fast else "float32",
    )
    return fast


def resolve(precision: Precision, device_type: str) -> str:
    """The mixed precision that "auto" stands for: "bf16" on CUDA and on CPUs that are fast in it, else "no".

    Args:
        precision: of a config.
        device_type: "cpu", "cuda", "mps".

    Returns:
        "no" or "bf16".
    """
    if precision != "auto":
        return precision
    fast = device_type == "cuda" or (device_type == "cpu" and cpu_bf16_is_fast())
    return "bf16" if fast else "no"
