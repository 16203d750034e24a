"""What ships: every YAML loads, the launchers' files are accelerate's, the paper's run has the paper's numbers."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.models.alignment import ALIGNMENTS, AlignmentAttention
from nova3d.training.autoencoder import AutoencoderTrainConfig
from nova3d.training.config import TrainConfig, check, micro_steps, preset_overrides
from nova3d.training.loss import TrainingModule
from nova3d.training.networks import build_unet
from nova3d.training.optim import parameter_groups

ROOT = Path(__file__).parents[2]
Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_training_config_loads(path: Path) -> None:
    if path.stem == "mini-autoencoder":
        configs.load(AutoencoderTrainConfig, path)
    elif path.stem == "mini-further":  # goes on from weights that it does not name
        check(configs.load(TrainConfig, path, ["unet=u", "image_encoder=i"]))
    else:
        check(configs.load(TrainConfig, path))
    if path.stem in ("48gb", "24gb"):
        check(configs.load(TrainConfig, ROOT / "configs/train/paper.yaml", preset_overrides(path)))
    if path.stem == "mini-gpu":
        changed = configs.load(TrainConfig, ROOT / "configs/train/mini.yaml", preset_overrides(path))
        check(changed)
        assert changed.steps * changed.batch_size == 300_000 and changed.data.augment.active


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_launcher_config_is_accelerates(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    processes = {"1gpu": 1, "cpu2": 2, "2x8gpu": 16}.get(path.stem, 8)
    assert loaded.num_processes == processes
    paper = configs.load(TrainConfig, ROOT / "configs/train/paper.yaml")
    if path.stem != "cpu2":
        assert paper.batch_size * processes * micro_steps(paper, processes) == 176


def test_the_papers_run_has_the_papers_numbers() -> None:
    paper = configs.load(TrainConfig, ROOT / "configs/train/paper.yaml")
    assert (paper.steps, paper.effective_batch, paper.batch_size, micro_steps(paper, 8)) == (30_000, 176, 11, 2)
    assert (paper.optim.learning_rate, paper.optim.ema_decay) == (2e-5, 0.9999)
    assert paper.noise.stages == [[0, 1.0, 1.6], [8000, 1.8, 1.6], [16000, 2.2, 1.8], [24000, 2.5, 2.0]]
    assert paper.svd and paper.model.alignment == "gta" and paper.mixed_precision == "bf16"
    with pytest.raises(InputError, match="effective_batch=176 is not a multiple of batch_size 11 x 6 processes = 66"):
        micro_steps(paper, 6)
    for preset, processes, expected in (("48gb", 8, 11), ("24gb", 8, 22), ("24gb", 1, 176)):
        smaller = configs.load(
            TrainConfig, ROOT / "configs/train/paper.yaml", preset_overrides(ROOT / f"configs/train/{preset}.yaml")
        )
        assert micro_steps(smaller, processes) == expected and smaller.optim.learning_rate == 2e-5
    with pytest.raises(InputError, match=r"preset 'none.yaml' cannot be read"):
        preset_overrides("none.yaml")


def test_the_bundled_weights_are_of_their_shipped_config() -> None:
    """The bundled model's record is mini-cpu.yaml, and so is its sampling."""
    shipped = configs.load(TrainConfig, ROOT / "configs/train/mini-cpu.yaml")
    check(shipped)
    made = json.loads((ROOT / "assets/nova3d-mini/record.json").read_text())["config"]
    for key in ("model", "optim", "noise", "steps", "batch_size", "seed", "image_encoder", "mixed_precision"):
        assert made[key] == configs.to_dict(shipped)[key], key
    index = json.loads((ROOT / "assets/nova3d-mini/model_index.json").read_text())
    assert configs.to_dict(shipped.pipeline).items() <= index.items()


def test_the_papers_model_builds_without_storage_and_decays_what_it_should() -> None:
    paper = configs.load(TrainConfig, ROOT / "configs/train/paper.yaml")
    with torch.device("meta"):
        unet = build_unet(paper.model, 32)
    assert sum(p.numel() for p in unet.parameters()) == 1_624_822_122
    module = TrainingModule(unet, nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 1))  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in parameter_groups(module, paper.optim):
        for parameter in group.parameters:
            name = names[id(parameter)]
            plain = "norm" in name or name.endswith("bias") or "mix_factor" in name
            assert group.weight_decay == (0.0 if plain else 0.01), name


def test_files_of_earlier_versions_with_empty_texts_and_zeros_are_read_as_unset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "svd: ''\nvae: v\nimage_encoder: ''\nunet: ''\nsvd_variant: ''\naccumulation: 0\neffective_batch: 0\n"
        "validate_every: 0\ndata: {validation: '', cache: ''}\noptim: {ema_device: ''}\nhealth: {spike: 0}\n"
    )
    config = configs.load(TrainConfig, path)
    check(config)
    data, optim, health = config.data, config.optim, config.health
    texts = {config.svd, config.image_encoder, config.unet, config.svd_variant, data.validation, data.cache}
    numbers = {config.accumulation, config.effective_batch, config.validate_every, health.spike}
    assert texts == numbers == {None} and optim.ema_device is None and config.vae == "v"


@pytest.mark.parametrize("schema", [TrainConfig, AutoencoderTrainConfig])
def test_every_key_is_documented(schema: type) -> None:
    assert [key.name for key in configs.fields(schema) if not key.text] == []


def test_the_text_of_the_alignment_names_every_arm() -> None:
    text = {key.name: key.text for key in configs.fields(TrainConfig)}["model.alignment"]
    own = [name for name, arm in ALIGNMENTS.items() if {arm.spatial, arm.temporal} <= {None, AlignmentAttention}]
    assert len(own) >= 5  # an arm that was added need not be named
    assert [name for name in own if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.alignment=gtaa", "model.alignment must be one of none, cross_domain, gta"),
        ("model.alignment_init=zeros", "model.alignment_init: 'zeros' is not one of copied, random, wonder3d"),
        ("model.block_out_channels=[32,96]", "keys of model.* make no UNet: .*block_out_channels"),
        ("model.norm_groups=7", "norm_groups 7 does not divide"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config = configs.load(TrainConfig, ROOT / "configs/train/mini.yaml", [override])
        check(config)
        build_unet(config.model, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.num_attention_heads=[1,3,7]", "7 heads do not divide the 192 channels"),
        ("noise.stages=[[0,1.2]]", r"noise.stages: \[0.0, 1.2\] is not \[first step, mean, deviation\]"),
    ],
)
def test_what_the_networks_cannot_take_is_refused_before_they_are_built(change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(configs.load(TrainConfig, ROOT / "configs/train/mini.yaml", [change]))
