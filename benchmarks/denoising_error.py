#!/usr/bin/env python
"""Squared error of a model's estimate at one noise level, in latents, on the objects of shards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nova3d.cli import common
from nova3d.data.multiview import MultiViewDataset
from nova3d.models.autoencoder import encode_moments
from nova3d.models.denoiser import Denoiser
from nova3d.pipeline import Nova3DPipeline
from nova3d.tasks import TASKS

Errors = tuple[float, ...]  # one per task


def main() -> None:
    arguments = common.parser(
        "Mean squared error of D(x0 + sigma n, sigma) against x0, per task, over the hidden views of the objects. It "
        "tells what the UNet knows apart from the decoder. Compare models of one encoder only.",
        "python benchmarks/denoising_error.py --models assets/nova3d-mini --shards assets/train-sample",
    )
    arguments.add_argument("--models", nargs="+", required=True, help="model folders")
    arguments.add_argument("--shards", nargs="+", required=True, help="shard folders of the models' rig")
    arguments.add_argument("--sigma", type=float, default=80.0, help="default: %(default)s")
    arguments.add_argument("--objects", type=int, default=25, help="at most, evenly spread; default: %(default)s")
    options = arguments.parse_args()
    print("| model | " + " | ".join(f"{Path(folder)}: RGB | normals" for folder in options.shards) + " |")
    print("|---|" + "---|---|" * len(options.shards))
    for index, name in enumerate(options.models):
        pipeline = Nova3DPipeline.load(name)
        pipeline.set_progress_bar_config(disable=True)
        found = [error(pipeline, folder, options.objects, options.sigma) for folder in options.shards]
        if index == 0:
            condition = [of_condition for _, of_condition in found]
            print(row("the condition's latents, no network", condition), flush=True)
        print(row(name, [of_model for of_model, _ in found]), flush=True)


def row(name: str, errors: Sequence[Errors]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.4f}" for pair in errors for value in pair) + " |"


@torch.no_grad()
def error(pipeline: Nova3DPipeline, shards: str, objects: int, sigma: float) -> tuple[Errors, Errors]:
    """Mean squared errors of the estimate and of the condition's own latents, each per task.

    Every object is seen from one input view, drawn by its uid, and has noise of its own, equal for all models.
    """
    dataset = MultiViewDataset(shards, per_object=1)
    rows = range(0, len(dataset), max(1, len(dataset) // objects))[:objects]
    scale = pipeline.vae.config.scaling_factor
    estimates, conditions = [], []
    for number in rows:
        views = dataset.views(number, dataset.views_of(number)[0])
        frames = torch.stack([views.rgb * 2 - 1, views.normals]).permute(0, 1, 4, 2, 3)
        x0 = torch.stack([encode_moments(pipeline.vae, video).chunk(2, dim=1)[0] for video in frames])[None] * scale
        pixel_noise = [torch.Generator().manual_seed(number)]
        conditioning = pipeline.encode_image(views.straight_alpha(0)[None], 0.02, pixel_noise)
        angles = views.cameras.azimuth_elevation()
        denoise = Denoiser(pipeline.unet, conditioning, angles, torch.ones(len(views)))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(number))
        estimates.append(squared(denoise(x0 + sigma * noise, torch.tensor(sigma)), x0))
        latent = conditioning.latent if conditioning.latent.dim() == x0.dim() else conditioning.latent[:, None, None]
        conditions.append(squared((latent * scale).expand_as(x0), x0))
    mean = [torch.tensor(errors).mean(dim=0).tolist() for errors in (estimates, conditions)]
    return tuple(mean[0]), tuple(mean[1])


def squared(estimate: Tensor, x0: Tensor) -> list[float]:
    """Mean squared error of each task over the hidden views of [1,t,v,4,h,w]."""
    return [float((estimate - x0)[0, task, 1:].square().mean()) for task in TASKS]


if __name__ == "__main__":
    common.run(main)
