"""Latents of objects in shards, and the latent cache."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from nova3d.data import augment
from nova3d.data.augment import IDENTITY, UNCHANGED, Augmentation
from nova3d.data.config import AugmentConfig
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_mode, encode_moments
from nova3d.models.conditioning import inflated_guide
from nova3d.models.unet import NovaUNet
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.config import DataConfig, NoiseConfig, OptimConfig, PipelineConfig, TrainConfig, noise_schedule
from nova3d.training.data import Draws, Item, ItemReader, LatentEncoder, ShardSource, draw, make_batch
from nova3d.training.latents import JoinedCaches, LatentCache, build_cache, cache_identity
from nova3d.training.setup import prepare
from nova3d.training.trainer import train
from nova3d.utils.provenance import stable_hash
from tests.helpers.networks import tiny_image_encoder

Make = Callable[..., TrainConfig]
LATENT, PICTURE = (2, 4, 4, 8, 8), (3, 32, 32)


def drawn(step: int, indices: range, seed: int = 0, config: NoiseConfig | None = None) -> Draws:
    config = config or NoiseConfig()
    return draw(config, noise_schedule(config), seed, step, indices, LATENT, PICTURE)


@pytest.fixture
def dataset(shards: Path) -> MultiViewDataset:
    return MultiViewDataset(shards, [0, 2])


@pytest.fixture
def vae(vae_folder: Path) -> VideoAutoencoder:
    return VideoAutoencoder.from_pretrained(vae_folder)


@pytest.fixture
def clip() -> CLIPVisionModelWithProjection:
    return tiny_image_encoder(24, seed=1)


def test_rgb_moments_are_kept_in_memory_normals_are_not(
    dataset: MultiViewDataset, vae: VideoAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kept, fresh = ShardSource(dataset), LatentEncoder(vae, "cpu"), LatentEncoder(vae, "cpu", keep=False)
    first, turned = source.load(0, 0), source.load(0, 2)
    for item in (first, turned, first):
        torch.testing.assert_close(kept.moments(item), fresh.moments(item), rtol=2e-3, atol=2e-3)
    assert torch.equal(kept.moments(first)[0].roll(-2, dims=0), kept.moments(turned)[0])
    assert not torch.equal(kept.moments(first)[1].roll(-2, dims=0), kept.moments(turned)[1])
    assert first.cameras[0].abs().max() < 1e-5  # view 0 is the input view


def test_the_cache_equals_the_shards_up_to_float16(
    dataset: MultiViewDataset, vae: VideoAutoencoder, clip: CLIPVisionModelWithProjection, tmp_path: Path
) -> None:
    folder = build_cache(tmp_path / "cache", dataset, vae, clip, objects_per_file=2)
    cache = LatentCache(folder, dataset, cache_identity(dataset, vae, clip))
    source, encoder = ShardSource(dataset), LatentEncoder(vae, "cpu", keep=False)
    draws = drawn(0, range(2))
    for row, view in ((0, 0), (2, 2)):
        ours, theirs = cache.load(row, view), source.load(row, view)
        assert ours.uid == theirs.uid and torch.equal(ours.cameras, theirs.cameras)
        torch.testing.assert_close(encoder.moments(ours), encoder.moments(theirs), rtol=1e-3, atol=1e-3)
        assert float((ours.picture - theirs.picture).abs().max()) <= 1.01 / 255
    a, b = (make_batch([s.load(1, 0), s.load(2, 2)], draws, encoder) for s in (cache, source))
    torch.testing.assert_close(a.x0, b.x0, rtol=1e-3, atol=2e-3)
    assert a.embeds is not None and a.embeds.shape == (2, 1, 24) and b.embeds is None


def test_cache_files_are_split_resumed_and_refused(
    dataset: MultiViewDataset,
    vae: VideoAutoencoder,
    clip: CLIPVisionModelWithProjection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "cache"
    expected = cache_identity(dataset, vae, clip)
    with pytest.raises(InputError, match="not a latent cache"):
        LatentCache(folder, dataset, expected)
    build_cache(folder, dataset, vae, clip, part=(0, 2), objects_per_file=1)
    assert sorted(p.name for p in folder.glob("latents-*")) == [f"latents-0000{i}.safetensors" for i in (0, 2)]
    with pytest.raises(InputError, match="1 of 3 files are missing, the first is latents-00001"):
        LatentCache(folder, dataset, expected)
    first = (folder / "latents-00000.safetensors").stat().st_mtime_ns
    build_cache(folder, dataset, vae, clip, objects_per_file=1)
    assert (folder / "latents-00000.safetensors").stat().st_mtime_ns == first
    LatentCache(folder, dataset, expected)

    for key, value in (("vae", "0" * 16), ("image_encoder", "1"), ("rig", "x"), ("size", 64), ("shards", "y")):
        with pytest.raises(InputError, match=f"made with another '{key}'") as caught:
            LatentCache(folder, dataset, expected | {key: value})
        assert "\n" not in str(caught.value)
    LatentCache(folder, dataset, expected | {"image_encoder": ""})  # trained with the UNet: makes its own embeddings
    with pytest.raises(InputError, match=r"has the input views \[0, 2\], not 1"):
        LatentCache(folder, MultiViewDataset(dataset.reader.folder, [1]), expected)
    torch.nn.init.zeros_(vae.quant_conv.weight)
    with pytest.raises(InputError, match="made with another 'vae'"):
        build_cache(folder, dataset, vae, clip, objects_per_file=1)
    whole = (folder / "latents-00002.safetensors").read_bytes()
    (folder / "latents-00002.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"latents-00002.safetensors' is damaged at object 'o2'"):
        LatentCache(folder, dataset, expected).load(2, 0)


def test_latents_of_two_precisions_are_not_mixed(shards: Path, vae: VideoAutoencoder, tmp_path: Path) -> None:
    dataset = MultiViewDataset(shards, [0])
    identity = cache_identity(dataset, vae, None)
    folders = {
        name: build_cache(tmp_path / name, dataset, vae, None, precision=name, objects_per_file=1)
        for name in ("no", "bf16")
    }
    (folders["bf16"] / "latents-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"made with another 'precision' \(bf16, this run has no\)"):
        build_cache(folders["bf16"], dataset, vae, None, precision="no", objects_per_file=1)
    build_cache(folders["bf16"], dataset, vae, None, precision="bf16", objects_per_file=1)
    both = MultiViewDataset([shards, shards], [0])
    caches = [LatentCache(folder, dataset, identity) for folder in folders.values()]
    with pytest.raises(InputError, match=r"encoded in different precisions, .*no' in no and .*bf16' in bf16") as caught:
        JoinedCaches(caches, both)
    assert "\n" not in str(caught.value)

    manifest = json.loads((folders["no"] / "manifest.json").read_text())
    del manifest["precision"]  # as caches of earlier versions
    (folders["no"] / "manifest.json").write_text(json.dumps(manifest))
    JoinedCaches([LatentCache(folder, dataset, identity) for folder in folders.values()], both)
    build_cache(folders["no"], dataset, vae, None, precision="bf16", objects_per_file=1)


def test_training_from_the_cache_equals_training_from_shards_up_to_float16(
    make_config: Make, vae: VideoAutoencoder, shards: Path, tmp_path: Path
) -> None:
    cache = str(build_cache(tmp_path / "cache", MultiViewDataset(shards, [0, 2]), vae, None))
    losses: list[list[float]] = []
    for name, data in (
        ("shards", DataConfig(str(shards), input_views=[0, 2])),
        ("cache", DataConfig(str(shards), input_views=[0, 2], cache=cache)),
    ):
        config = make_config(name, data=data, steps=3)
        train(config, "cpu")
        rows = [json.loads(line) for line in (Path(config.out) / "stats.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_a_lost_object_is_replaced_by_the_same_one_everywhere(dataset: MultiViewDataset) -> None:
    class Lossy:
        def __init__(self) -> None:
            self.dataset = dataset

        def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
            if row == 1:
                raise InputError("shard 'x' is damaged")
            return ShardSource(dataset).load(row, input_view, change)

    readers = [ItemReader(Lossy(), "skip") for _ in range(2)]
    for position in range(6):
        row, view = dataset.address(position)
        expected = f"o{2 if row == 1 else row}"
        assert [(r[position].uid, r[position].input_view) for r in readers] == [(expected, view)] * 2
    assert readers[0].skipped == 4  # each of two epochs, asked twice
    with pytest.raises(InputError, match="'x' is damaged"):
        [ItemReader(Lossy(), "fail")[position] for position in range(3)]


def test_a_replacement_is_seen_from_a_view_that_the_cache_holds_of_it(
    make_shards: Callable[..., Path], vae: VideoAutoencoder, tmp_path: Path
) -> None:
    folder = make_shards(tmp_path / "shards", objects=6, per_shard=1)
    few = MultiViewDataset(folder, per_object=1)
    lost = next(row for row in range(5) if few.views_of(row) != few.views_of(row + 1))
    offset, _ = few.reader.samples[lost]["members"]["rgb.000.png"]
    with (folder / few.reader.samples[lost]["shard"]).open("r+b") as file:
        file.seek(offset + 20)
        file.write(b"?" * 20)
    cache = build_cache(tmp_path / "cache", few, vae, None, on_corrupt="skip")
    reader = ItemReader(LatentCache(cache, few, cache_identity(few, vae, None)), "skip")
    for position in range(12):
        row, _ = few.address(position)
        used = row + 1 if row == lost else row
        item = reader[position]
        assert (item.uid, [item.input_view]) == (few.reader.samples[used]["uid"], few.views_of(used))
    assert reader.skipped == 2  # once an epoch


def test_a_cache_holds_the_inflated_condition_of_a_few_views_per_object(
    shards: Path, vae: VideoAutoencoder, tmp_path: Path
) -> None:
    few = MultiViewDataset(shards, per_object=1)
    chosen = [few.views_of(row) for row in range(len(few))]
    assert all(len(views) == 1 for views in chosen)
    more = MultiViewDataset(shards, per_object=2, seed=5)
    assert [more.views_of(row)[:1] for row in range(len(more))] == chosen  # a second view keeps the first one
    assert {few.address(position)[1] for position in range(40)} == {view for (view,) in chosen}
    folder = build_cache(tmp_path / "cache", few, vae, None, condition="inflated")
    cache = LatentCache(folder, few, cache_identity(few, vae, None, "inflated"))
    views = few.views(1, chosen[1][0])
    frames = inflated_guide(views.straight_alpha(0), views.cameras)[:, :, :3]
    expected = torch.stack([encode_mode(vae, video) for video in frames])
    item = cache.load(1, chosen[1][0])
    assert item.condition is not None
    torch.testing.assert_close(item.condition.float(), expected, rtol=2e-3, atol=2e-3)
    for other, message in (
        (MultiViewDataset(shards, per_object=2), "has input_views_per_object=1, this run has 2"),
        (MultiViewDataset(shards), "has input_views_per_object=1, this run has None"),
    ):
        with pytest.raises(InputError, match=message):
            LatentCache(folder, other, cache_identity(other, vae, None, "inflated"))
    with pytest.raises(InputError, match="made with another 'condition'"):
        LatentCache(folder, few, cache_identity(few, vae, None))


def test_training_on_the_inflated_condition_without_an_image_encoder_resumes_exactly(
    make_config: Make, vae: VideoAutoencoder, shards: Path, tmp_path: Path
) -> None:
    data = DataConfig(str(shards), input_views_per_object=1)
    dataset = MultiViewDataset(shards, per_object=1)
    data.cache = str(build_cache(tmp_path / "cache", dataset, vae, None, condition="inflated"))
    pipeline = PipelineConfig(camera_preset="ortho4", steps=2, condition="inflated")
    optim = OptimConfig(name="muon", learning_rate=1e-3, warmup=2, ema_decay=0.9)
    settings = {"data": data, "pipeline": pipeline, "optim": optim, "image_encoder": "none"}
    whole = make_config("whole", **settings)
    whole.model.row_attention = True
    train(whole, "cpu")
    resumed = replace(whole, out=f"{whole.out}-again", resume=f"{whole.out}/checkpoints/step-00000002")
    train(resumed, "cpu")
    a, b = (NovaUNet.from_pretrained(Path(run.out) / "model/unet").state_dict() for run in (whole, resumed))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    adamw = replace(resumed, optim=replace(optim, name="adamw"))
    with pytest.raises(InputError, match=r"made with another 'optimizer' \(muon, this run has adamw\)"):
        train(adamw, "cpu")
    model = Nova3DPipeline.load(Path(whole.out) / "model")
    assert model.image_encoder is None and model.config.condition == "inflated"
    rgba = torch.rand(model.config.size, model.config.size, 4)
    rgba[..., 3] = 0
    rgba[8:24, 8:24, 3] = 1
    (views,) = model(rgba, framed=True).views
    assert len(views) == 4


def test_a_cache_of_changed_objects_is_joined_with_the_plain_one(
    make_config: Make, make_shards: Callable[..., Path], vae: VideoAutoencoder, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "a", 3)
    dataset = MultiViewDataset(shards, per_object=2, seed=3)
    changes = AugmentConfig(mirror=0.5, frame=1.0, brightness=0.3)
    caches = [
        build_cache(tmp_path / name, dataset, vae, None, condition="inflated", augment=change)
        for name, change in (("plain", None), ("changed", changes))
    ]
    with pytest.raises(InputError, match="made with another 'augment'"):
        build_cache(caches[1], dataset, vae, None, condition="inflated", augment=replace(changes, mirror=0.0))
    data = DataConfig(f"{shards},{shards}", cache=",".join(map(str, caches)), input_views_per_object=2)
    pipeline = PipelineConfig(camera_preset="ortho4", steps=2, condition="inflated")
    source = prepare(make_config(data=data, pipeline=pipeline, image_encoder="none"), "cpu").loader.reader.source
    for row in range(3):
        uid = dataset.reader.samples[row]["uid"]
        change = augment.draw(changes, dataset.seed, stable_hash(uid, 64))
        assert change.framed and change.colour != IDENTITY
        for view in dataset.views_of(row):
            plain, changed = source.load(row, view), source.load(3 + row, view)
            assert plain.uid == changed.uid == uid
            true = ShardSource(dataset).load(row, view, change)
            assert float((changed.picture - true.picture).abs().max()) <= 1.01 / 127.5
            assert float((plain.picture - true.picture).abs().max()) > 0.05
            assert true.frames is not None and changed.moments is not None and changed.condition is not None
            expected = torch.stack([encode_moments(vae, frames) for frames in true.frames])
            torch.testing.assert_close(changed.moments.float(), expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(InputError, match="cannot be changed any more"):
        source.load(3, dataset.views_of(0)[0], change)


def test_caches_of_several_shard_folders_are_joined_in_their_order(
    make_config: Make, make_shards: Callable[..., Path], vae: VideoAutoencoder, tmp_path: Path
) -> None:
    both = [make_shards(tmp_path / "a", 3, prefix="a"), make_shards(tmp_path / "b", 2, prefix="b")]
    caches = [build_cache(tmp_path / f"cache{i}", MultiViewDataset(f), vae, None) for i, f in enumerate(both)]
    data = DataConfig(",".join(map(str, both)))
    data.cache = ",".join(map(str, caches))
    run = prepare(make_config(data=data), "cpu")
    joined = run.loader.reader.source
    assert isinstance(joined, JoinedCaches)
    plain = ShardSource(run.dataset)
    for row, view in ((0, 1), (2, 0), (3, 3), (4, 2)):
        ours, theirs = joined.load(row, view), plain.load(row, view)
        assert ours.uid == theirs.uid and float((ours.picture - theirs.picture).abs().max()) <= 1.01 / 255
    data.cache = ",".join(map(str, caches[::-1]))
    with pytest.raises(InputError, match="made with another 'shards'"):
        prepare(make_config("swapped", data=data), "cpu")
    data.cache = ",".join(map(str, [*caches, caches[0]]))
    with pytest.raises(InputError, match=r"data.cache names 3 folders and data.shards 2"):
        prepare(make_config("three", data=data), "cpu")
