"""A run that starts from SVD's weights: what is copied, what is frozen, and that it learns and saves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from transformers import CLIPVisionModelWithProjection

from nova3d import Nova3DPipeline
from nova3d.models import NovaUNet
from nova3d.training.config import TrainConfig
from nova3d.training.trainer import train
from tests.helpers.networks import tiny_svd


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_svd(tmp_path_factory.mktemp("svd"))


def test_two_steps_from_svd(svd: Path, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config("from-svd", svd=str(svd), vae="", steps=2, batch_size=1)
    result = train(config, "cpu")
    assert result.finished and result.step == 2
    report = json.loads((Path(config.out) / "svd-load-report.json").read_text())
    assert report["reshaped"] == ["add_embedding.linear_1.weight"] and report["unused"] == []
    assert any(".alignment." in name for name in report["new"])
    start, _ = NovaUNet.from_svd(svd, alignment=config.model.alignment)
    trained = Nova3DPipeline.load(result.path)
    assert trained.unet.config.alignment == config.model.alignment
    moved = (trained.unet.conv_in.weight - start.conv_in.weight).abs().max()
    assert 0 < moved < 0.01  # it began where SVD is, and has learnt
    for part, cls in (("vae", AutoencoderKLTemporalDecoder), ("image_encoder", CLIPVisionModelWithProjection)):
        stored = cls.from_pretrained(svd / part).state_dict()
        kept = getattr(trained, part).state_dict()
        assert all(torch.equal(kept[name], value) for name, value in stored.items()), part
