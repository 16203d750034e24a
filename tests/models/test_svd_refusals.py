"""What loading SVD refuses, each with one line and before a tensor is read where headers tell."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nova3d.models.svd import load_svd
from nova3d.models.svd_files import TensorFiles
from nova3d.models.unet import NovaUNet

WEIGHTS = "diffusion_pytorch_model.safetensors"


def change_config(**changes: Any) -> Callable[[Path], None]:
    def damage(unet: Path) -> None:
        path = unet / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def change_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(unet: Path) -> None:
        tensors = load_file(unet / WEIGHTS)
        change(tensors)
        save_file(tensors, unet / WEIGHTS)

    return damage


def put(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    return change_tensors(lambda tensors: tensors.update({name: value}))


def to_pickle(unet: Path) -> None:
    torch.save({}, unet / "diffusion_pytorch_model.bin")
    (unet / WEIGHTS).unlink()


BIAS = "conv_in.bias"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no SVD": (shutil.rmtree, r"holds no unet of SVD: .*name a diffusers folder"),
    "no config": (lambda unet: (unet / "config.json").unlink(), r"neither unet/ nor config\.json"),
    "config cut off": (lambda unet: (unet / "config.json").write_text("{"), r"config\.json' is not valid JSON"),
    "wrong class": (change_config(_class_name="UNet2DModel"), r"describes UNet2DModel, expected .*SpatioTemporal"),
    "no weights": (lambda unet: (unet / WEIGHTS).unlink(), r"lacks diffusion_pytorch_model\.safetensors; download"),
    "pickle": (to_pickle, r"only diffusion_pytorch_model\.bin, a pickle.* get the \.safetensors"),
    "pickle inside": (lambda unet: torch.save({}, unet / WEIGHTS), r"is a pickle"),
    "truncated": (lambda unet: (unet / WEIGHTS).write_bytes((unet / WEIGHTS).read_bytes()[:-100]), r"truncated"),
    "empty": (lambda unet: (unet / WEIGHTS).write_bytes(b""), r"truncated"),
    "LFS": (
        lambda unet: (unet / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"Git LFS pointer, not the weights: run `git lfs pull`",
    ),
    "missing key": (change_tensors(lambda t: t.pop(BIAS)), r"lacks 'conv_in\.bias' \(1 missing, 0 unexpected\)"),
    "unexpected key": (put("spare.weight", torch.zeros(1)), r"unexpected key 'spare\.weight'"),
    "wrong shape": (put(BIAS, torch.zeros(31)), r"'conv_in\.bias' has the shape \(31,\), expected \(32,\)"),
    "SV3D's ids": (
        put("add_embedding.linear_1.weight", torch.zeros(128, 16)),
        r"linear_1\.weight' has the shape \(128, 16\), expected \(128, 48\)",
    ),
    "wrong type": (put(BIAS, torch.zeros(32, dtype=torch.int8)), r"stored as I8, expected one of F16, BF16, F32"),
    "double": (put(BIAS, torch.zeros(32, dtype=torch.float64)), r"stored as F64"),
    "another config": (change_config(layers_per_block=2), r"lacks '.*its config or its weights"),
    "impossible config": (change_config(num_attention_heads=3), r"no model can be built with these settings"),
    "no index": (
        lambda unet: (unet / WEIGHTS).rename(unet / "x") and (unet / f"{WEIGHTS}.index.json").write_text("[]"),
        r"no index of shards",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_refused_before_a_tensor_is_read(copy, monkeypatch, kind: str, refused) -> None:
    damage, expected = DAMAGES[kind]
    damage(copy / "unet")

    def read(self: TensorFiles, name: str) -> None:
        raise AssertionError(f"a tensor was read: {name}")

    monkeypatch.setattr(TensorFiles, "read", read)
    line = refused(copy)
    assert re.search(expected, line), line
    assert str(copy) in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(copy, value: float, refused) -> None:
    bad = torch.zeros(32)
    bad[7] = value
    put(BIAS, bad)(copy / "unet")
    assert re.search(r"'conv_in\.bias' holds NaN or infinite", refused(copy))


def test_values_that_overflow_the_type_are_refused_by_name(copy, refused) -> None:
    put(BIAS, torch.full((32,), 1e6))(copy / "unet")
    load_svd(NovaUNet, copy)
    assert re.search(r"'conv_in\.bias' does not fit into torch\.float16", refused(copy, dtype=torch.float16))


def test_an_unknown_arm_is_bad_input(svd, refused) -> None:
    assert "alignment 'gtaa' is not one of" in refused(svd[1], alignment="gtaa")
