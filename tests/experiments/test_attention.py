"""The attention suite on tiny networks: what arms share, budgets, resume, report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from nova3d import cameras
from nova3d import config as configs
from nova3d.cli.studies import ablate
from nova3d.data.shards import ShardWriter, encode_views
from nova3d.errors import InputError
from nova3d.experiments import attention as module
from nova3d.experiments.attention import (
    AttentionArm,
    AttentionConfig,
    arm_of,
    attention_suite,
    select_arms,
    write_start,
)
from nova3d.models.alignment import ALIGNMENTS
from nova3d.models.blocks import SpatialBlock, TemporalBlock
from nova3d.models.unet import NovaUNet
from nova3d.training.config import TrainConfig
from nova3d.training.networks import build_module
from nova3d.views import ViewSet
from tests.helpers.networks import ONE_LEVEL, TINY_CLIP, TINY_UNET, tiny_autoencoder

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32


def shards(folder: Path, names: list[str]) -> Path:
    """Four views of discs of different sizes."""
    rig = cameras.orbit(4, size=SIZE)
    writer = ShardWriter(folder, rig)
    centres = rig.pixel_centres() - SIZE / 2
    for index, name in enumerate(names):
        mask = (centres.norm(dim=-1) < 6 + index).float().expand(4, SIZE, SIZE)
        normals = F.normalize(rig.c2w[:, None, None, :3, 2].expand(4, SIZE, SIZE, 3), dim=-1) * mask[..., None]
        rgb = torch.where(mask[..., None] > 0, 0.1 * index, 1.0).expand(4, SIZE, SIZE, 3)
        writer.add(name, encode_views(name, ViewSet(rgb, normals, mask, rig), {}))
    writer.close({})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.yaml (four steps of one object), its shards, and held-out shards."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny_autoencoder(3, sample_size=SIZE, scaling_factor=1.0).save_pretrained(folder / "vae")
    train = {
        "vae": str(folder / "vae"),
        "data": {"shards": str(shards(folder / "shards", ["a", "b"]))},
        "model": {**TINY_UNET, **ONE_LEVEL, "norm_groups": 8},
        "encoder": TINY_CLIP,
        "pipeline": {"camera_preset": "ortho4", "steps": 1, "guidance_high": 1.0},
        "optim": {"learning_rate": 1e-3, "warmup": 1, "ema_decay": 0.5},
        "health": {"spike": 0},
        "steps": 3,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    shards(folder / "held", ["c", "d"])
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> AttentionConfig:
    arms = {
        "none": AttentionArm("none"),
        "cross_domain": AttentionArm("cross_domain", "wonder3d"),
        "gta": AttentionArm("gta"),
    }
    return AttentionConfig(
        out=str(tmp_path / "out"),
        train=str(base / "train.yaml"),
        held_out=str(base / "held"),
        arms=arms,
        seeds=[0],
        protocol=str(ROOT / "configs/eval/mini.yaml"),
        protocol_changes=["kinds=[views]", "hull_cells=0", "views.metrics=[psnr,mask_iou]"],
    )


def test_arms_start_alike_and_see_the_same_data_and_noise(config: AttentionConfig, monkeypatch) -> None:
    config.arms = {"none": config.arms["none"], "gta": config.arms["gta"]}
    report, path = attention_suite(config)
    out = Path(config.out)
    lines = {arm: (out / f"runs/{arm}/seed0/stats.jsonl").read_text().splitlines() for arm in config.arms}
    losses = {arm: [json.loads(line)["loss"] for line in found] for arm, found in lines.items()}
    # Step 0 of every copied arm computes the same function, so equal losses mean equal weights, objects and draws.
    assert losses["none"][0] == pytest.approx(losses["gta"][0], rel=1e-5)
    assert losses["none"][2] != losses["gta"][2]
    assert set(report.tables) == {"none", "gta"} and report.comparison.baseline == "gta"
    assert {cost.steps for cost in report.costs.values()} == {3}
    text = path.read_text()
    assert "equal steps" in text and "Against `gta`" in text and json.loads((out / "report.json").read_text())["costs"]
    assert not list((out / "start").rglob("*.safetensors"))  # only needed until a run is finished

    def never(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(module, "train", never)
    again, _ = attention_suite(config)
    assert again.tables["gta"].rows == report.tables["gta"].rows


def test_a_training_of_another_config_is_not_taken_for_this_one(config: AttentionConfig, base: Path) -> None:
    config.arms = {"none": config.arms["none"], "gta": config.arms["gta"]}
    config.trunk = ["steps=1"]
    attention_suite(config)
    out = Path(config.out)
    refused = [
        ({"train_changes": ["optim.learning_rate=0.5"]}, "optim.learning_rate", "trunk"),
        ({"train_changes": [f"data.shards={base}/held"], "held_out": str(base / "shards")}, "data.shards", "trunk"),
        ({"trunk": ["steps=2"]}, "steps", "trunk"),
        ({"trunk": []}, "unet", "runs/none/seed0"),  # the arms know the trunk by its weights
    ]
    for changes, key, folder in refused:
        with pytest.raises(InputError) as error:
            attention_suite(replace(config, **changes))
        said = f"'{out / folder}' is of a training with another {key}: choose another out, or delete '{out / folder}'"
        assert str(error.value) == said
    attention_suite(replace(config, train_changes=["log_every=7", f"data.validation={base}/held"]))
    for file in out.rglob("settings.json"):  # as an earlier version leaves it: the number of steps decides alone
        file.unlink()
    attention_suite(replace(config, train_changes=["optim.learning_rate=0.5"]))


def test_a_started_training_of_another_config_is_not_continued(config: AttentionConfig, tmp_path: Path) -> None:
    base = configs.load(TrainConfig, config.train)
    base = replace(base, out=str(tmp_path / "run"))
    write_start(base, tmp_path / "start")
    write_start(base, tmp_path / "start")
    with pytest.raises(InputError, match=r"start' is of a training with another seed: .* delete '.*start' and '.*run'"):
        write_start(replace(base, seed=5), tmp_path / "start")
    (tmp_path / "start" / "complete").write_text("")  # as an earlier version wrote it
    write_start(replace(base, seed=5), tmp_path / "start")


def test_arms_of_all_seeds_start_from_the_trunk_and_row_attention_can_be_one(config: AttentionConfig) -> None:
    config.arms = {"none": config.arms["none"], "row": AttentionArm("none", row_attention=True)}
    config.baseline, config.seeds, config.trunk = "none", [0, 1], ["steps=2"]
    report, _ = attention_suite(config)
    out = Path(config.out)
    trunk = NovaUNet.from_pretrained(out / "trunk/model/unet")
    assert json.loads((out / "trunk/model/record.json").read_text())["step"] == 2
    losses = {}
    for arm in config.arms:
        for seed in config.seeds:
            lines = (out / f"runs/{arm}/seed{seed}/stats.jsonl").read_text().splitlines()
            losses[arm, seed] = [json.loads(line)["loss"] for line in lines]
    for seed in config.seeds:  # row attention starts at zero: at step 0 both arms compute the trunk's function
        assert losses["none", seed][0] == pytest.approx(losses["row", seed][0], rel=1e-5)
        assert losses["none", seed][2] != losses["row", seed][2]
    assert losses["none", 0][0] != losses["none", 1][0]
    assert report.facts["trunk"].endswith("steps=2")

    base = configs.load(TrainConfig, config.train)
    started = write_start(
        replace(base, unet=str(out / "trunk/model/unet"), model=module._model(base, config.arms["row"])), out / "again"
    )
    unet = build_module(started, SIZE // 8)[0].unet
    assert unet.config.row_attention and not trunk.config.row_attention
    state = unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    assert [name for name in state if name not in trunk.state_dict()] == [n for n in state if ".row_attention." in n]


def test_row_attention_of_pretrained_weights_is_kept_in_every_arm(config: AttentionConfig, tmp_path: Path) -> None:
    base = configs.load(TrainConfig, config.train)
    made = build_module(replace(base, model=replace(base.model, row_attention=True)), SIZE // 8)[0].unet
    made.save_pretrained(tmp_path / "unet")
    started = write_start(
        replace(base, unet=str(tmp_path / "unet"), model=module._model(base, config.arms["gta"])), tmp_path / "start"
    )
    arm = NovaUNet.from_pretrained(started.unet)
    rows = {name: value for name, value in made.state_dict().items() if ".row_attention." in name}
    assert rows and all(torch.equal(value, arm.state_dict()[name]) for name, value in rows.items())


def test_every_shared_weight_is_the_same_in_all_arms(config: AttentionConfig, tmp_path: Path) -> None:
    base = configs.load(TrainConfig, config.train)
    built = {}
    for name, arm in config.arms.items():
        started = write_start(replace(base, seed=5, model=module._model(base, arm)), tmp_path / name)
        torch.manual_seed(5)
        built[name] = build_module(started, SIZE // 8)[0]
        assert built[name].unet.config.alignment == arm.alignment
    none = built["none"].state_dict()
    for name in ("cross_domain", "gta"):
        state = built[name].state_dict()
        assert none.keys() <= state.keys() and all(".alignment." in key for key in state.keys() - none.keys())
        assert all(torch.equal(none[key], state[key]) for key in none), name
        outputs = [value for key, value in state.items() if ".alignment.attn.to_out.0.weight" in key]
        assert outputs and all(not value.any() for value in outputs)
    other = write_start(replace(base, seed=6), tmp_path / "other")
    torch.manual_seed(6)
    assert not torch.equal(build_module(other, SIZE // 8)[0].unet.conv_in.weight, none["unet.conv_in.weight"])


def test_units_of_a_pretrained_unet_are_left_behind(config: AttentionConfig) -> None:
    base = configs.load(TrainConfig, config.train)
    torch.manual_seed(0)
    trained = build_module(replace(base, model=replace(base.model, alignment="gta")), SIZE // 8)[0].unet
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    fresh = arm_of(trained, "gta", "copied", seed=0)
    blocks = [block for block in fresh.modules() if isinstance(block, SpatialBlock | TemporalBlock)]
    units = [block for block in blocks if block.alignment is not None]
    assert units
    for block in units:
        assert not block.alignment.attn.to_out[0].weight.any()
        assert torch.equal(block.alignment.attn.to_q.weight, block.attn1.to_q.weight)
    assert torch.equal(fresh.conv_in.weight, trained.conv_in.weight)


def test_weights_that_the_arm_lacks_are_named(config: AttentionConfig) -> None:
    base = build_module(configs.load(TrainConfig, config.train), SIZE // 8)[0].unet
    base.register_parameter("foreign", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(InputError, match="do not fit the arm 'none': foreign"):
        arm_of(base, "none", "copied", seed=0)


def test_equal_compute_gives_cheaper_arms_more_steps(config: AttentionConfig) -> None:
    base = configs.load(TrainConfig, config.train, ["steps=1000", "accumulation=2"])
    config.budget = "flops"
    costs = module.budgets(config, base, views=4, size=SIZE)
    assert costs["gta"].steps == 1000 < costs["cross_domain"].steps < costs["none"].steps
    work = [cost.flops * cost.steps for cost in costs.values()]
    assert max(work) / min(work) < 1.002
    single = module.budgets(config, replace(base, accumulation=1), views=4, size=SIZE)
    assert costs["gta"].flops == 2 * single["gta"].flops


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "hours"}, "budget 'hours' is not one of"),
        ({"baseline": "best"}, "needs the baseline 'best'"),
        ({"seeds": [1, 1]}, "seeds must be given and differ"),
        ({"names": ["x"]}, "has no object x"),
        ({"arms": {"gta": AttentionArm("gta"), "odd": AttentionArm("odd")}}, "alignment 'odd' is not one of"),
        ({"arms": {"gta": AttentionArm("gta", "zeros"), "none": AttentionArm("none")}}, "init 'zeros' is not one of"),
    ],
)
def test_bad_suites_are_refused_before_any_training(config: AttentionConfig, change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        attention_suite(replace(config, **change))


def test_a_trained_object_is_not_held_out(config: AttentionConfig, tmp_path: Path) -> None:
    config.held_out = str(shards(tmp_path / "both", ["b", "e"]))
    with pytest.raises(InputError, match="held-out object b is in the training shards"):
        attention_suite(config)


def test_what_is_shipped_is_found_from_any_folder_and_a_guided_autoencoder_is_warned_of(
    config: AttentionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    base, names = module._check(replace(config, train=str(ROOT / "configs/train/mini.yaml")))
    assert (base.vae, base.data.shards) == (str(ROOT / "assets/nova3d-mini/vae"), str(ROOT / "assets/train-sample"))
    assert names == ("c", "d") and "give one without a guide" in caplog.text
    caplog.clear()
    module._check(config)
    assert not caplog.records


@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablation").glob("attention*.yaml")), ids=lambda p: p.stem)
def test_shipped_suites_are_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = configs.load(AttentionConfig, path, ["held_out=assets/objects"])
    assert settings.baseline in select_arms(settings).arms and Path(settings.train).is_file()
    configs.load(module.Protocol, settings.protocol, settings.protocol_changes)


def test_without_arms_the_suite_has_every_alignment_of_the_model(config: AttentionConfig) -> None:
    every = select_arms(replace(config, arms={}))
    assert tuple(every.arms) == tuple(ALIGNMENTS) and all(arm.alignment == name for name, arm in every.arms.items())
    assert every.arms["cross_domain"].init == "wonder3d" and every.arms["gta"].init == "copied"
    assert config.arms.keys() == {"none", "cross_domain", "gta"}  # the config that was given stays as it is


def test_only_the_arms_asked_for_are_trained(config: AttentionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite trains what `--arms none,gta` leaves, and refuses a name that is no arm."""
    trained = []

    class Stopped(Exception):
        pass

    def train_part(runs, *_):
        trained.extend(run.arm for run in runs)
        raise Stopped

    monkeypatch.setattr(module, "train_part", train_part)
    argv = ["--suite", "attention", "--config", "suite.yaml", "--objects", config.held_out, "--out", config.out]
    monkeypatch.chdir(config.out.removesuffix("/out"))
    Path("suite.yaml").write_text(yaml.safe_dump({**configs.to_dict(replace(config, arms={})), "held_out": "???"}))
    with pytest.raises(Stopped):
        ablate([*argv, "--arms", "none,gta", "--device", "cpu"])
    assert trained == ["none", "gta"]
    with pytest.raises(InputError, match="'odd' is not one of none, cross_domain, gta, gta_spatial, gta_temporal"):
        ablate([*argv, "--arms", "none,odd"])
