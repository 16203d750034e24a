#!/usr/bin/env python
"""Colours of generated views before and after `nova3d.foreground`, against the true ones."""

from pathlib import Path

import torch
from torch import Tensor

from nova3d.cli import common
from nova3d.data.shards import ShardReader
from nova3d.foreground import foreground_colours
from nova3d.inflate import inflated_views
from nova3d.metrics.colours import colour_moments, shifted_colours, straight_colours
from nova3d.sampling import SampleConfig, generate_views, load_pipeline
from nova3d.views import ViewSet

_LEAST_PIXELS = 20  # of a view that is scored


def main() -> None:
    arguments = common.parser(
        "PSNR of generated colours inside both outlines, generated and true, over the hidden views, mean of the "
        "objects; and the sum of their squared errors over that of the picture's colours carried through its inflated "
        "outline. Colours are shifted first, as fusion levels them: near the picture their mean is the picture's.",
        "python benchmarks/foreground_colours.py --model mini --shards JOB/val",
    )
    arguments.add_argument("--model", default="mini", help="default: %(default)s")
    arguments.add_argument("--shards", nargs="+", required=True, help="shard folders of the model's rig")
    arguments.add_argument("--objects", type=int, default=40, help="of each, at most; default: %(default)s")
    options = arguments.parse_args()
    pipeline = load_pipeline(SampleConfig(model=options.model), "cpu")
    print("| shards | generated, dB | unmixed, dB | least difference of an object | error ratio | unmixed |")
    print("|---|---|---|---|---|---|")
    for folder in options.shards:
        reader = ShardReader(folder)
        psnr, moments = [], []
        for i in range(min(options.objects, len(reader))):
            truth = reader.views(i)
            picture = truth.straight_alpha(0)
            views, _ = generate_views(pipeline, picture, SampleConfig(model=options.model, framed=True, seed=i))
            pair = views, foreground_colours(views, 0)
            inflated = inflated_views(picture, truth.cameras)
            psnr.append(torch.stack([colour_psnr(made, truth) for made in pair]))
            moments.append(torch.stack([colour_moments(made, inflated, truth).sum(dim=0) for made in pair]))
        before, after = torch.stack(psnr).T
        errors = torch.stack(moments).sum(dim=0)
        ratios = (errors[:, 2] / errors[:, 3]).tolist()
        cells = before.mean(), after.mean(), (after - before).min(), *ratios
        print(f"| {Path(folder)} | " + " | ".join(f"{value:.3f}" for value in cells) + " |", flush=True)


def colour_psnr(views: ViewSet, truth: ViewSet) -> Tensor:
    """Mean PSNR in dB of the hidden views' straight colours inside both outlines; a scalar."""
    error = (shifted_colours(views, truth) - straight_colours(truth)).square().mean(dim=-1)
    inside = (views.mask > 0.5) & (truth.mask > 0.9)
    hidden = [v for v in range(1, len(views)) if int(inside[v].sum()) > _LEAST_PIXELS]
    return torch.stack([-10 * error[v][inside[v]].mean().clamp_min(1e-8).log10() for v in hidden]).mean()


if __name__ == "__main__":
    main()
