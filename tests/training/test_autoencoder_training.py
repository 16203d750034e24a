"""Training the autoencoder: exact resume, a loss that falls, batches that are functions of the step."""

import json
from pathlib import Path

import pytest
import torch

from nova3d.data.shards import ShardReader
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.training.autoencoder import AutoencoderModelConfig, AutoencoderTrainConfig, batch, train_autoencoder


def settings(shards: Path, out: Path) -> AutoencoderTrainConfig:
    model = AutoencoderModelConfig([32, 32], 1, 4, 8)
    return AutoencoderTrainConfig(
        str(shards), str(out), model, steps=3, clips=2, crop=16, warmup=1, log_every=1, checkpoint_every=1
    )


def test_three_steps_and_an_exact_resume(shards: Path, tmp_path: Path) -> None:
    whole = train_autoencoder(settings(shards, tmp_path / "a"), "cpu")

    def kill(done: int, _: int, __: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(settings(shards, tmp_path / "b"), "cpu", kill)
    resumed = train_autoencoder(settings(shards, tmp_path / "b"), "cpu")
    rows = [[json.loads(x) for x in (tmp_path / n / "stats.jsonl").read_text().splitlines()] for n in "ab"]
    assert [r["step"] for r in rows[1]] == [1, 2, 3]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    a, b = (VideoAutoencoder.from_pretrained(folder) for folder in (whole, resumed))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert a.config.scaling_factor == b.config.scaling_factor != 0.18215
    reader = ShardReader(shards)
    views = reader.views(0, [0])
    frames = torch.cat([views.rgb * 2 - 1, views.normals]).permute(0, 3, 1, 2)
    with torch.no_grad():
        scaled = a.encode(frames).latent_dist.mode() * a.config.scaling_factor
    assert 0.3 < float(scaled.std()) < 3


def test_batches_are_functions_of_the_step_and_alternate_tasks(shards: Path, tmp_path: Path) -> None:
    config, reader = settings(shards, tmp_path), ShardReader(shards)
    first = batch(reader, config, 0)
    assert first.shape == (2, 2, 3, 16, 16) and first.abs().max() <= 1
    assert torch.equal(first, batch(reader, config, 0))
    assert not torch.equal(first, batch(reader, config, 1))
    lengths = first[1].norm(dim=1)  # a normal map holds unit vectors and zeros
    assert bool(((lengths < 0.01) | ((lengths - 1).abs() < 0.02)).all())
    config.full_frame_from = 0.0
    assert batch(reader, config, 0).shape[-1] == 32
