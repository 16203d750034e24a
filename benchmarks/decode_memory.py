#!/usr/bin/env python
"""Peak memory and time of decoding one video with an autoencoder of SVD's size, as a whole and in pieces (CPU).

Weights are random: memory and time do not depend on them. Each setting runs in a process of its own, so that its peak
is nobody else's; "memory" is that process's largest resident set above what it held before it decoded.
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from nova3d.cli import common

# (views, rows) of a piece, 0 for all
SETTINGS = ((0, 0), (8, 0), (4, 0), (2, 0), (1, 0), (1, 128), (1, 64), (1, 32))


def main() -> None:
    arguments = common.parser(__doc__, "python benchmarks/decode_memory.py --size 256 --views 16")
    arguments.add_argument("--size", type=int, default=256, help="pixels of a view (default: %(default)s)")
    arguments.add_argument("--views", type=int, default=16, help="views of the video (default: %(default)s)")
    arguments.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 512])
    options = arguments.parse_args()
    print(
        "| views, rows of a piece | memory GB | CPU s | wall s | largest difference to plain |\n|---|---|---|---|---|"
    )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            case = (setting, options.size, options.views, tuple(options.widths), Path(folder) / "plain.pt")
            with context.Pool(1) as pool:
                memory, cpu, wall, difference = pool.apply(measure, case)
            name = "plain" if setting == (0, 0) else ", ".join(str(s or "all") for s in setting)
            print(f"| {name} | {memory:.2f} | {cpu:.0f} | {wall:.0f} | {difference:.0e} |", flush=True)


def measure(
    setting: tuple[int, int], size: int, views: int, widths: tuple[int, ...], plain: Path
) -> tuple[float, float, float, float]:
    """GB, CPU and wall seconds of one decode, and its largest difference to the plain one, which comes first and is
    kept in the file `plain`."""
    import torch

    from nova3d.models.autoencoder import VideoAutoencoder, decode

    torch.manual_seed(0)
    vae = VideoAutoencoder(block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths)).eval()
    side = size // 2 ** (len(widths) - 1)
    latents = torch.randn(1, 1, views, 4, side, side) * vae.config.scaling_factor
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    wall, cpu = time.perf_counter(), time.process_time()
    decoded = decode(vae, latents, *setting)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not plain.exists():
        torch.save(decoded, plain)
    return (peak - before) / 1e9, cpu, wall, float((decoded - torch.load(plain)).abs().max())


if __name__ == "__main__":
    common.run(main)
