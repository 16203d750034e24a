"""SVD's original single file at the real size: every name, every shape, and inspecting such a file.

svd_original_keys.txt.gz lists the keys and shapes of the real file: those of the published model code's UNet,
autoencoders and image encoder, built at SVD's sizes without storage.
"""

import gzip
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.errors import InputError
from nova3d.models import svd_files, svd_original
from nova3d.models.image_encoder import clip_layout
from nova3d.models.svd import inspect_svd_parts
from nova3d.models.svd_original import CONDITION, FIRST_STAGE, UNET, VISUAL
from nova3d.models.unet import NovaUNet

KEYS = Path(__file__).with_name("svd_original_keys.txt.gz")
VIT_H = CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    projection_dim=1024,
    num_hidden_layers=32,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    hidden_act="gelu",
)


@pytest.fixture(scope="module")
def real() -> dict[str, tuple[int, ...]]:
    """Every key of the real file and its shape."""
    lines = gzip.decompress(KEYS.read_bytes()).decode().splitlines()
    rows = (line.split(" ") for line in lines)
    return {name: tuple(int(n) for n in shape.split(",") if n) for name, shape in rows}


def stock_at_real_size(part: str) -> nn.Module:
    with torch.device("meta"):
        if part == "unet":
            return UNetSpatioTemporalConditionModel()
        if part == "vae":
            return AutoencoderKLTemporalDecoder(
                down_block_types=("DownEncoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            )
        return CLIPVisionModelWithProjection(VIT_H)


@pytest.mark.parametrize("part", svd_files.PARTS)
def test_every_key_of_the_real_size_has_its_place_exactly_once(real, part: str) -> None:
    if part == "unet":
        _, taken = svd_original.unet_layout(real, "svd")
    elif part == "vae":
        _, taken = svd_original.vae_layout(real, "svd")
    else:
        _, taken = clip_layout(real, "svd", VISUAL)
    expected = {name: tuple(value.shape) for name, value in stock_at_real_size(part).state_dict().items()}
    with torch.device("meta"):
        found = {name: tuple(place.cut(torch.empty(real[place.name])).shape) for name, place in taken.items()}
    assert found == expected
    times = Counter(place.name for place in taken.values())
    assert all(count == (3 if "in_proj" in name else 1) for name, count in times.items())
    owned = {"unet": (UNET,), "vae": (f"{CONDITION}encoder.", f"{CONDITION}quant", f"{FIRST_STAGE}decoder.")}
    assert set(times) == {name for name in real if name.startswith(owned.get(part, (VISUAL,)))}


def test_the_real_size_is_told_from_the_shapes(real) -> None:
    config, _ = svd_original.unet_layout(real, "svd")
    stock = stock_at_real_size("unet").config
    assert {"block_out_channels", "num_attention_heads", "layers_per_block", "cross_attention_dim"} <= config.keys()
    for name, value in config.items():
        theirs = stock[name]
        assert tuple(value) == tuple(theirs) if isinstance(value, list) else value == theirs, name
    config, _ = svd_original.vae_layout(real, "svd")
    assert config["block_out_channels"] == [128, 256, 512, 512]
    assert (config["layers_per_block"], config["latent_channels"]) == (2, 4)
    config, _ = clip_layout(real, "svd", VISUAL)
    assert {"hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"} <= config.keys()
    assert all(getattr(VIT_H, name) == value for name, value in config.items())


def test_inspecting_a_file_of_the_real_size(real, tmp_path) -> None:
    """Nine gigabytes on paper: the file is a true header and a hole, so nothing could be read from it."""
    path = tmp_path / "svd_xt.safetensors"
    header, offset = {}, 0
    for name, shape in real.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    report = inspect_svd_parts(NovaUNet, path)
    assert (len(report.new), len(report.reshaped), len(report.derived)) == (228, 1, 1)
    assert sum(".alignment." in name for name in report.new) == 224
    assert report.alignment_parameters == 99_198_080
    assert report.parameters - report.new_parameters == 1_524_623_082 - 2 * 256 * 1280  # without fps and motion id
    assert report.stored == {"F16": len(report.copied) + 2}
    assert len(report.copied) + 2 == len(stock_at_real_size("unet").state_dict())
    for part in ("vae", "image_encoder"):
        stock = stock_at_real_size(part)
        assert report.parts[part].parameters == sum(p.numel() for p in stock.parameters())
        assert report.parts[part].copied == list(stock.state_dict())
    used = ("model.", f"{CONDITION}encoder.", f"{CONDITION}quant_conv.", f"{FIRST_STAGE}decoder.", VISUAL)
    assert report.unused == sorted(name for name in real if not name.startswith(used))


def test_heads_that_shapes_cannot_tell_are_refused(real) -> None:
    narrow: dict[str, Any] = real | {f"{UNET}input_blocks.1.0.out_layers.3.weight": (96, 96, 3, 3)}
    with pytest.raises(InputError, match="no multiples of SVD's 64 channels per head"):
        svd_original.unet_layout(narrow, "svd")
    odd: dict[str, Any] = real | {f"{VISUAL}conv1.weight": (100, 3, 14, 14)}
    with pytest.raises(InputError, match="does not tell the number of heads"):
        clip_layout(odd, "svd", VISUAL)
