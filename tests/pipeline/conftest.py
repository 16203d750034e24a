"""A pipeline of tiny random networks, and pictures for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nova3d.pipeline import Nova3DPipeline
from nova3d.views import ViewSet
from tests.helpers.networks import tiny_autoencoder, tiny_image_encoder, tiny_unet

SIZE = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(**unet_config: Any) -> Nova3DPipeline:
    torch.manual_seed(0)
    unet = tiny_unet(**({"sample_size": 8} | unet_config))
    vae = tiny_autoencoder(sample_size=SIZE)
    with torch.no_grad():  # labels, alignment, conditions and time must matter
        for model in (unet, vae):
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        vae.decoder.conv_out.weight.mul_(8)  # normals long enough to count as surface
    parts = (unet.eval(), vae.eval(), tiny_image_encoder())
    return Nova3DPipeline(*parts, size=SIZE, sigma_max=80.0, steps=2, guidance_high=2.0)


@pytest.fixture(scope="session")
def pipeline() -> Nova3DPipeline:
    """The one to call; tests that change a pipeline take `make_pipeline`."""
    return build()


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Nova3DPipeline]:
    return build


def disc(colour: tuple[float, float, float], side: int = 40) -> Tensor:
    """A straight-alpha picture of a disc."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    alpha = ((x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 3) ** 2).float()
    return torch.cat([torch.tensor(colour).expand(side, side, 3) * alpha[..., None], alpha[..., None]], dim=-1)


@pytest.fixture(scope="session")
def red() -> Tensor:
    return disc((0.9, 0.2, 0.1))


@pytest.fixture(scope="session")
def blue() -> Tensor:
    return disc((0.1, 0.3, 0.9))


@pytest.fixture(scope="session")
def same() -> Callable[..., bool]:
    """Whether two view sets agree to a tolerance in colour, and to three times it in the mask."""

    def compare(a: ViewSet, b: ViewSet, tolerance: float = 0.0) -> bool:
        return bool((a.rgb - b.rgb).abs().max() <= tolerance) and bool((a.mask - b.mask).abs().max() <= 3 * tolerance)

    return compare
