#!/usr/bin/env python
"""What every arm costs at SVD's real size: parameters and arithmetic, counted on the meta device in seconds."""

from typing import Any

from nova3d.cli import common
from nova3d.errors import InputError


def main() -> None:
    arguments = common.parser(
        "Parameters, new keys and FLOPs (2 per multiply-add) of one forward pass per view and task, for every arm.",
        "python benchmarks/model_cost.py --latents 32,64",
    )
    arguments.add_argument("--latents", default="32,64", help="sides of the latents (default: %(default)s)")
    arguments.add_argument("--views", type=int, default=16)
    options = arguments.parse_args()
    try:
        sides = [int(side) for side in options.latents.split(",")]
    except ValueError as error:
        raise InputError(f"--latents must be whole numbers with commas between, got '{options.latents}'") from error

    from nova3d.models import NovaUNet
    from nova3d.models.alignment import ALIGNMENTS

    print("| arm | parameters | new keys | alignment parameters |", end="")
    print("".join(f" GFLOP per view, {side}x{side} | share of `none` |" for side in sides))
    print("|---|---|---|---|" + "---|---|" * len(sides))
    base: dict[int, float] = {}
    for arm in ALIGNMENTS:
        unet = _on_meta(NovaUNet, arm)
        alignment = sum(unet.get_parameter(n).numel() for n in unet.new_parameter_names if ".alignment." in n)
        row = f"| `{arm}` | {sum(p.numel() for p in unet.parameters()):,} | {len(unet.new_parameter_names)} "
        row += f"| {alignment:,} |"
        for side in sides:
            work = _flops(unet, options.views, side) / (2 * options.views) / 1e9
            base.setdefault(side, work)
            row += f" {work:.1f} | {work / base[side]:.3f} |"
        print(row)


def _on_meta(cls: Any, arm: str) -> Any:
    import torch

    with torch.device("meta"):
        unet = cls(alignment=arm)
    return unet.to("meta").eval()  # mix_factor ignores the device above


def _flops(unet: Any, views: int, side: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        sample, cameras = torch.empty(1, 2, views, 8, side, side), torch.empty(1, views, 2)
        embeds, one = torch.empty(1, 1, unet.config.cross_attention_dim), torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(sample, one, embeds, one, cameras)
    return float(counter.get_total_flops())


if __name__ == "__main__":
    common.run(main)
