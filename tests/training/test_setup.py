"""Training goes on from a model's own weights; augmentation in a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from nova3d import Nova3DPipeline
from nova3d.data.augment import AugmentConfig
from nova3d.errors import InputError
from nova3d.training.config import DataConfig, TrainConfig, UNetConfig
from nova3d.training.data import Prefetcher
from nova3d.training.networks import frozen_networks
from nova3d.training.setup import prepare
from nova3d.training.trainer import train

Make = Callable[..., TrainConfig]


def moved(before: nn.Module, after: nn.Module) -> float:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_unet_and_image_encoder_go_on_from_a_models_weights(make_config: Make, one_level: UNetConfig) -> None:
    make_config = partial(make_config, model=one_level)
    first = train(make_config("first"), "cpu").path
    parts = {"unet": str(first / "unet"), "image_encoder": str(first / "image_encoder")}
    config = make_config("second", **parts, train_image_encoder=True)
    begun, start = prepare(config, "cpu").model, Nova3DPipeline.load(first)
    assert moved(start.unet, begun.unet) == moved(start.image_encoder, begun.image_encoder) == 0
    assert all(p.requires_grad for p in begun.image_encoder.parameters()) and begun.image_encoder.training
    assert frozen_networks(config)[1] is None  # a latent cache holds no embeddings of an encoder that changes

    second = Nova3DPipeline.load(train(config, "cpu").path)
    assert moved(start.unet, second.unet) > 0 and moved(start.image_encoder, second.image_encoder) > 0
    assert moved(start.vae, second.vae) == 0
    frozen = Nova3DPipeline.load(train(make_config("frozen", **parts), "cpu").path)
    assert moved(start.unet, frozen.unet) > 0 and moved(start.image_encoder, frozen.image_encoder) == 0

    with pytest.raises(InputError, match=r"train_image_encoder needs image_encoder="):
        prepare(make_config("third", train_image_encoder=True), "cpu")


def test_augmented_runs_resume_exactly_and_know_their_augmentation(
    make_config: Make, shards: Path, one_level: UNetConfig
) -> None:
    make_config = partial(make_config, model=one_level)
    changed = DataConfig(str(shards), augment=AugmentConfig(0.5, [0.8, 1.1], 40.0, 0.2, 0.2, 0.3))
    whole = Nova3DPipeline.load(train(make_config("whole", data=changed), "cpu").path)
    assert not train(make_config("parts", data=changed), "cpu", stop=lambda: True).finished
    parts = Nova3DPipeline.load(train(make_config("parts", data=changed), "cpu").path)
    assert moved(whole.unet, parts.unet) == 0
    plain = Nova3DPipeline.load(train(make_config("plain"), "cpu").path)
    assert moved(whole.unet, plain.unet) > 0
    with pytest.raises(InputError, match=r"another 'data\.augment'"):
        train(make_config("parts"), "cpu")


def test_any_split_over_processes_sees_the_same_augmented_objects(make_config: Make, shards: Path) -> None:
    changed = DataConfig(str(shards), augment=AugmentConfig(mirror=0.5, hue_deg=60), prefetch=0)
    runs = [
        prepare(make_config(f"split{size}", data=changed, batch_size=size, accumulation=4 // size), "cpu")
        for size in (1, 4)
    ]
    seen = []
    for run in runs:
        with Prefetcher(run.loader, run.loader.global_batch.schedule(2, 3), 0) as batches:
            seen.append(torch.stack([item.picture for items, _ in batches for item in items]))
    assert torch.equal(*seen)


def test_augmentation_with_a_latent_cache_is_refused(make_config: Make, shards: Path, tmp_path: Path) -> None:
    both = DataConfig(str(shards), cache=str(tmp_path / "cache"), augment=AugmentConfig(mirror=0.5))
    with pytest.raises(InputError, match=r"the objects of data\.cache are changed when it is made"):
        prepare(make_config("both", data=both), "cpu")
