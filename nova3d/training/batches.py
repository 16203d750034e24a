"""From objects to the tensors of one training step; everything random is a function of (seed, rank, step)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nova3d.data.latents import LatentEncoder
from nova3d.data.multiview import MultiViewDataset
from nova3d.diffusion import NoiseSchedule
from nova3d.models.autoencoder import sample_moments
from nova3d.training.config import NoiseConfig


@dataclass(frozen=True)
class Batch:
    """One micro-step's tensors, on the device.

    x0, noise [b,t,v,4,h,w]; sigma [b], shared by views and tasks (eq. 3); pictures [b,3,H,W] in [-1,1], the input
    views; noise_aug [b], picture_noise [b,3,H,W]; drop_embeds, drop_latents [b] bool; cameras [b,v,2] radians.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    pictures: Tensor
    noise_aug: Tensor
    picture_noise: Tensor
    drop_embeds: Tensor
    drop_latents: Tensor
    cameras: Tensor
    uids: tuple[str, ...]


def generator(seed: int, rank: int, step: int) -> torch.Generator:
    """The CPU generator of one step; independent streams for different (seed, rank, step)."""
    state = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def make_batch(
    dataset: MultiViewDataset,
    encoder: LatentEncoder,
    config: NoiseConfig,
    positions: list[int],
    step: int,
    rng: torch.Generator,
) -> Batch:
    """The batch of the objects at `positions` of the run for global step `step` (which sets the noise stage)."""
    addresses = [dataset.address(position) for position in positions]
    views = [dataset.views(row, view) for row, view in addresses]
    moments = torch.stack([encoder.moments(row, view, v) for (row, view), v in zip(addresses, views, strict=True)])
    device, b = moments.device, len(positions)
    shape = (*moments.shape[:3], moments.shape[3] // 2, *moments.shape[4:])
    scale = float(encoder.vae.config.scaling_factor)
    x0 = sample_moments(moments, torch.randn(shape, generator=rng).to(device), scale)
    pictures = torch.stack([v.rgb[0] for v in views]).permute(0, 3, 1, 2) * 2 - 1
    schedule = NoiseSchedule([(int(start), mean, std) for start, mean, std in config.stages])
    u = torch.rand(b, generator=rng)
    both = u < config.drop_both
    clip = (u >= config.drop_both) & (u < config.drop_both + config.drop_clip)
    latent_from = config.drop_both + config.drop_clip
    latent = (u >= latent_from) & (u < latent_from + config.drop_latent)
    return Batch(
        x0=x0,
        noise=torch.randn(shape, generator=rng).to(device),
        sigma=schedule.draw(step, b, rng).to(device),
        pictures=pictures.to(device),
        noise_aug=(config.condition_mean + config.condition_std * torch.randn(b, generator=rng)).exp().to(device),
        picture_noise=torch.randn(pictures.shape, generator=rng).to(device),
        drop_embeds=(both | clip).to(device),
        drop_latents=(both | latent).to(device),
        cameras=torch.stack([v.cameras.azimuth_elevation() for v in views]).to(device),
        uids=tuple(dataset.reader.samples[row]["uid"] for row, _ in addresses),
    )
