"""Training the autoencoder: exact resume, a loss that falls, batches that are functions of the step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nova3d.cameras import preset
from nova3d.data.shards import ShardReader, ShardWriter, encode_views
from nova3d.errors import InputError
from nova3d.inflate import inflated_views
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.autoencoder import (
    AutoencoderModelConfig,
    AutoencoderTrainConfig,
    batch,
    generated_batch,
    start_model,
    train_autoencoder,
)
from tests.helpers.networks import tiny_unet


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
    first, guides = batch(reader, config, 0)
    assert guides is None and first.shape == (2, 2, 3, 16, 16) and first.abs().max() <= 1
    assert torch.equal(first, batch(reader, config, 0)[0])
    assert not torch.equal(first, batch(reader, config, 1)[0])
    lengths = first[1].norm(dim=1)  # a normal map holds unit vectors and zeros
    assert bool(((lengths < 0.01) | ((lengths - 1).abs() < 0.02)).all())
    config.full_frame_from = 0.0
    assert batch(reader, config, 0)[0].shape[-1] == 32


def test_a_guide_is_the_inflated_outline_of_the_input_view_as_the_clips_views_see_it(
    shards: Path, tmp_path: Path
) -> None:
    config, reader = settings(shards, tmp_path), ShardReader(shards)
    plain, _ = batch(reader, config, 1)
    config.model.guide_channels = 4
    clips, guides = batch(reader, config, 1)
    assert torch.equal(clips, plain) and guides is not None and guides.shape == (2, 2, 4, 16, 16)
    config.full_frame_from, config.frames = 0.0, len(reader.cameras)
    (rgb, normals), guides = batch(reader, config, 1)
    assert guides is not None
    # One of the views is the input view: there the colours' guide is the picture, and the normals' has its outline.
    assert min(float((a - b).abs().max()) for a, b in zip(rgb, guides[0, :, :3], strict=True)) < 0.02
    outlines = (normals.norm(dim=1) > 0.5).float()
    overlap = (outlines * guides[1, :, 3]).sum(dim=(1, 2)) / (outlines + guides[1, :, 3]).clamp(max=1).sum(dim=(1, 2))
    assert float(overlap.max()) > 0.95


def test_a_guided_decoder_is_trained_on_a_kept_encoder(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="decoder_only needs start="):
        train_autoencoder(replace(settings(shards, tmp_path / "b"), decoder_only=True), "cpu")
    start = train_autoencoder(settings(shards, tmp_path / "a"), "cpu")
    config = settings(shards, tmp_path / "b")
    config.start, config.decoder_only, config.latent_noise, config.optimizer = str(start), True, 0.2, "muon"
    config.model.guide_channels = 4
    before, after = (VideoAutoencoder.from_pretrained(f) for f in (start, train_autoencoder(config, "cpu")))
    assert after.config.scaling_factor == before.config.scaling_factor
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        a, b = (model.encode(frames).latent_dist.mode() for model in (before, after))
        assert torch.equal(a, b)
        guided = after.decode_guided(a, torch.ones(2, 4, 32, 32), 2)
        assert not torch.allclose(guided, after.decode(a, num_frames=2).sample)
    config.start, config.model.guide_channels = str(tmp_path / "b" / "vae"), 3
    with pytest.raises(InputError, match=r"has model.guide_channels=4, the config has 3"):
        train_autoencoder(replace(config, out=str(tmp_path / "c")), "cpu")
    config.model.guide_channels = 0  # the guide is left out, the rest kept
    plain, guided = start_model(config, 32).state_dict(), after.state_dict()
    assert all(torch.equal(value, guided[name]) for name, value in plain.items())
    assert {name.split(".")[1] for name in guided.keys() - plain.keys()} == {"guides"}


def test_a_decoder_learns_from_what_a_model_generates(shards: Path, tmp_path: Path) -> None:
    """Its batches hold the model's own latents of the picture, the true views and the guides, view by view."""
    rig = preset("ortho16", 32)
    disc = ((rig.pixel_centres() - 16).norm(dim=-1) < 9).float()
    picture = torch.cat([torch.tensor([0.8, 0.3, 0.1]).expand(32, 32, 3), disc[..., None]], dim=-1)
    writer = ShardWriter(tmp_path / "ball", rig, 8)
    writer.add("ball", encode_views("ball", inflated_views(picture, rig), {}))
    writer.close({})
    ball = ShardReader(tmp_path / "ball")

    torch.manual_seed(0)
    start = train_autoencoder(settings(shards, tmp_path / "a"), "cpu")
    vae = VideoAutoencoder.from_pretrained(start)
    model = Nova3DPipeline(tiny_unet(), vae, size=32, condition="inflated", sigma_max=80.0, steps=1, guidance_high=1.0)
    model.set_progress_bar_config(disable=True)
    model.save_pretrained(tmp_path / "model")

    config = settings(tmp_path / "ball", tmp_path / "b")
    config.start, config.decoder_only, config.model.guide_channels = str(start), True, 4
    config.generator, config.frames = str(tmp_path / "model"), 16
    clips, guides, latents = generated_batch(model, ball, config, 2)
    assert clips.shape == (2, 16, 3, 32, 32) and guides.shape == (2, 16, 4, 32, 32)
    again = generated_batch(model, ball, config, 2)
    assert all(torch.equal(x, y) for x, y in zip(again, (clips, guides, latents), strict=True))
    # A ball looks the same from every side, and so does its guide.
    assert float((guides[:, :, :3] - clips).abs().mean()) < 0.02
    made = model(picture, framed=True, seed=2 * config.clips, output_type="latent").latents[0]
    assert latents.shape == made.shape
    offsets = [float((latents.roll(k, 1) * vae.config.scaling_factor - made).abs().mean()) for k in range(16)]
    assert min(offsets) < 0.1 * sorted(offsets)[1]  # the clip's views are the model's, from another one on

    after = VideoAutoencoder.from_pretrained(train_autoencoder(config, "cpu"))
    assert all(torch.equal(x, y) for x, y in zip(after.encoder.parameters(), vae.encoder.parameters(), strict=True))
    assert any(bool(conv.weight.any()) for conv in after.decoder.guides)  # they started at zero
    with pytest.raises(InputError, match="generator= is for decoder_only=true"):
        train_autoencoder(replace(config, decoder_only=False, out=str(tmp_path / "c")), "cpu")
    with pytest.raises(InputError, match="makes 16 views of 32 px, the shards hold 4 of 32 px"):
        train_autoencoder(replace(config, shards=str(shards), out=str(tmp_path / "c")), "cpu")
    other = train_autoencoder(replace(settings(shards, tmp_path / "d"), seed=1), "cpu")
    with pytest.raises(InputError, match="has another encoder than start"):
        train_autoencoder(replace(config, start=str(other), out=str(tmp_path / "c")), "cpu")


@pytest.mark.parametrize("crop", [15, 64, 0])
def test_a_crop_that_does_not_fit_is_refused(shards: Path, tmp_path: Path, crop: int) -> None:
    with pytest.raises(InputError, match=f"crop {crop} must be a multiple of 2 and at most 32"):
        train_autoencoder(replace(settings(shards, tmp_path), crop=crop), "cpu")
