"""Tiny networks of the real classes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d.models import NovaUNet

SIZES: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 32,
    "num_frames": 4,
}


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight, so that nothing is a constant by its initialisation."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return model


@pytest.fixture(scope="session")
def sizes() -> dict[str, Any]:
    return SIZES


@pytest.fixture(scope="session")
def stock() -> nn.Module:
    """diffusers' own UNet, small, with shaken weights."""
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(0)
    return shake(UNetSpatioTemporalConditionModel(**SIZES, projection_class_embeddings_input_dim=96)).eval()


@pytest.fixture(scope="session")
def inputs() -> dict[str, Tensor]:
    """Two objects, two tasks, four views of 8x8 latents."""
    rng = torch.Generator().manual_seed(1)
    azimuth = torch.arange(4) * torch.pi / 2
    return {
        "sample": torch.randn(2, 2, 4, 8, 8, 8, generator=rng),
        "c_noise": torch.tensor([0.4, -0.9]),
        "image_embeds": torch.randn(2, 1, 16, generator=rng),
        "noise_aug": torch.tensor([0.02, 0.3]),
        "cameras": torch.stack([azimuth, torch.zeros(4)], dim=-1).expand(2, -1, -1),
    }


def small_unet(**changes: Any) -> NovaUNet:
    torch.manual_seed(0)
    return NovaUNet(**(SIZES | {"norm_groups": 8} | changes))


@pytest.fixture(scope="session")
def make_unet() -> Any:
    return small_unet


@pytest.fixture(scope="session")
def shaken() -> Any:
    return shake


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
