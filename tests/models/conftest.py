"""Tiny networks of the real classes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.models import NovaUNet
from nova3d.models.svd import load_svd
from tests.helpers.networks import TINY_UNET, tiny_unet

SIZES: dict[str, Any] = TINY_UNET | {"sample_size": 8, "num_frames": 4}


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
    return tiny_unet(**(SIZES | changes))


@pytest.fixture(scope="session")
def make_unet() -> Any:
    return small_unet


@pytest.fixture(scope="session")
def shaken() -> Any:
    return shake


@pytest.fixture(scope="session")
def svd_sizes() -> dict[str, Any]:
    """A tiny SVD UNet's sizes, in the words of diffusers' own class."""
    ours = {"cross_attention_dim": 24, "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 48}
    return {k: v for k, v in SIZES.items() if k != "num_frames"} | ours


@pytest.fixture(scope="session")
def svd(svd_sizes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A tiny SVD UNet and the diffusers folder it was saved in."""
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(3)
    unet = UNetSpatioTemporalConditionModel(**svd_sizes).eval()
    folder = tmp_path_factory.mktemp("svd")
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    return unet, folder


@pytest.fixture
def copy(svd: tuple[nn.Module, Path], tmp_path: Path) -> Path:
    """A copy of that folder to damage."""
    return shutil.copytree(svd[1], tmp_path / "copy")


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Call it as load_svd: the one line with which loading is refused."""

    def call(path: Any, **arguments: Any) -> str:
        with pytest.raises(InputError) as caught:
            load_svd(NovaUNet, path, **arguments)
        line = str(caught.value)
        assert "\n" not in line
        return line

    return call


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
