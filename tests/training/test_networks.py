"""Networks read from folders: float16 files alone, beside others, damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.training.networks import load_pretrained
from tests.helpers.networks import tiny_autoencoder, tiny_image_encoder


def autoencoder() -> VideoAutoencoder:
    torch.manual_seed(0)
    return tiny_autoencoder()


@pytest.mark.parametrize("make", [autoencoder, tiny_image_encoder])
def test_a_folder_with_float16_files_alone_is_read_in_float32(make: Any, tmp_path: Path) -> None:
    network: nn.Module = make().half()
    network.save_pretrained(tmp_path, variant="fp16")
    assert [path.name.endswith(".fp16.safetensors") for path in tmp_path.glob("*.safetensors")] == [True]
    read = load_pretrained(type(network), str(tmp_path))
    state = network.state_dict()
    assert read.state_dict().keys() == state.keys()
    for name, value in read.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name
    assert all(parameter.dtype == torch.float32 for parameter in read.parameters())


def test_float32_files_are_read_where_a_folder_has_both(tmp_path: Path) -> None:
    network = autoencoder()
    network.save_pretrained(tmp_path)
    autoencoder().half().save_pretrained(tmp_path, variant="fp16")
    read = load_pretrained(VideoAutoencoder, str(tmp_path))
    for name, value in read.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    assert not torch.equal(read.encoder.conv_in.weight, network.encoder.conv_in.weight.half().float())


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_pretrained(VideoAutoencoder, str(tmp_path))
    autoencoder().save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"cut short")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_pretrained(VideoAutoencoder, str(tmp_path))


@pytest.mark.parametrize("make", [autoencoder, tiny_image_encoder])
def test_weights_that_are_not_those_of_the_config_are_refused(make: Any, tmp_path: Path) -> None:
    network: nn.Module = make()
    network.save_pretrained(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    weights = load_file(path)
    first, *others = sorted(weights)
    save_file({**weights, "surplus": torch.ones(1)}, path, {"format": "pt"})
    if make is autoencoder:
        with pytest.raises(InputError, match=r"its config has no place for the weight 'surplus'$"):
            load_pretrained(type(network), str(tmp_path))
    else:
        load_pretrained(type(network), str(tmp_path))
    save_file({name: weights[name] for name in others[1:]}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"its weights lack '{first}' and 1 more differ"):
        load_pretrained(type(network), str(tmp_path))
