"""U-2-Net small: its size, its bundled weights, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch

from nova3d.errors import InputError
from nova3d.images import u2net
from nova3d.utils import resources


def test_it_is_the_published_network() -> None:
    network = u2net.load()
    normed = sum(module.out_channels for module in network.modules() if type(module) is u2net._Convolution)
    # the published count has a scale and a shift of each batch norm, which are folded in here
    assert sum(parameter.numel() for parameter in network.parameters()) + 2 * normed == 1_131_181
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 119  # of the published ONNX file
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_it_finds_a_figure_on_ground_and_not_its_surroundings() -> None:
    y, x = torch.meshgrid(torch.arange(240), torch.arange(400), indexing="ij")
    inside = (x - 250) ** 2 + (y - 100) ** 2 < 60**2
    grain = torch.rand(240, 400, 1, generator=torch.Generator().manual_seed(0)) * 0.2
    picture = torch.where(inside[..., None], torch.tensor([0.9, 0.4, 0.1]), torch.tensor([0.3, 0.45, 0.3]) + grain)
    found = u2net.saliency(picture)
    assert found.shape == (320, 320) and found.min() >= 0 and found.max() <= 1
    squeezed = torch.nn.functional.interpolate(inside[None, None].float(), (320, 320), mode="area")[0, 0] > 0.5
    overlap = ((found > 0.5) & squeezed).sum() / ((found > 0.5) | squeezed).sum()
    assert overlap > 0.93
    torch.testing.assert_close(u2net.saliency((picture * 255).round().to(torch.uint8)), found, atol=0.05, rtol=0)


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(resources.root() / u2net.WEIGHTS, tmp_path / u2net.WEIGHTS)
    path = tmp_path / u2net.WEIGHTS / "u2netp.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(resources, "root", lambda: tmp_path)
    u2net.load.cache_clear()
    with pytest.raises(InputError, match=r"damaged: .*u2netp\.safetensors differs"):
        u2net.load()
    u2net.load.cache_clear()
