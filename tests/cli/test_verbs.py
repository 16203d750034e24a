"""The verbs as `scripts/VERB.py` and `python -m nova3d VERB` run them."""

import importlib
import inspect
import re
import runpy
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from nova3d import config
from nova3d.cli import FORMER, VERBS, common, function_of, main, studies
from nova3d.errors import InputError
from nova3d.experiments.fusion import Case
from nova3d.utils.resources import Shipped
from tests.helpers.commands import run_verb
from tests.helpers.meshes import write_downloaded_scan

pytestmark = pytest.mark.usefixtures("keep_logging")

ROOT = Path(__file__).resolve().parents[2]
NO_SCRIPT = ("pack", "app", "completion")  # verbs that never were a script
SCHEMAS = {
    "generate": "nova3d.settings:GenerateConfig",
    "sample": "nova3d.settings:SampleConfig",
    "reconstruct": "nova3d.fusion:FusionConfig",
    "train": "nova3d.training.config:TrainConfig",
    "train-autoencoder": "nova3d.training.config:AutoencoderTrainConfig",
    "cache-latents": "nova3d.training.config:TrainConfig",
    "render": "nova3d.data.jobs.config:RenderConfig",
    "render run": "nova3d.data.jobs.config:RenderConfig",
    "render sheet": "nova3d.data.jobs.config:RenderConfig",
    "pack": "nova3d.data.jobs.config:RenderConfig",
    "evaluate": "nova3d.evaluation:Protocol",
    "reproduce": "nova3d.experiments.config:ReproduceConfig",
    "ablate": "nova3d.experiments.config:AttentionConfig",
}


def test_every_verb_has_a_script_of_its_own_that_only_runs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    former = {verb: name for name, verb in FORMER.items()}
    scripts = {verb: ROOT / "scripts" / f"{former.get(verb, verb)}.py" for verb in VERBS if verb not in NO_SCRIPT}
    assert set((ROOT / "scripts").glob("*.py")) == set(scripts.values())
    for verb, script in scripts.items():
        assert len(script.read_text().splitlines()) <= 7
        assert not inspect.signature(function_of(verb)).parameters.keys() - {"argv"}
        outputs = []
        for arguments in ([str(script), "--help"], ["nova3d", verb, "--help"]):
            monkeypatch.setattr(sys, "argv", arguments)
            with pytest.raises(SystemExit) as ended:
                if arguments[0] == "nova3d":
                    main()
                else:
                    runpy.run_path(str(script), run_name="__main__")
            assert not ended.value.code
            outputs.append(capsys.readouterr().out.partition("\n\n"))
        assert outputs[0][0].startswith(f"usage: {script.name}") and outputs[1][0].startswith(f"usage: nova3d {verb}")
        assert outputs[0][2] == outputs[1][2]
        assert f"\nexample:\n  nova3d {verb}" in outputs[0][2]


@pytest.mark.parametrize("verb", SCHEMAS)
def test_help_lists_every_key_of_the_config(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, name = SCHEMAS[verb].split(":")
    keys = list(config.fields(getattr(importlib.import_module(module), name)))
    assert len(keys) > 10
    assert run_verb(monkeypatch, *verb.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for key in keys:
        assert f"  {key.name}={key.default} ({key.type})" in lines


def test_help_of_ablate_lists_the_keys_of_both_suites(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(monkeypatch, "ablate", "--help") == 0
    _, attention, fusion = re.split("config keys of --suite (?:attention|fusion):", capsys.readouterr().out)
    assert "  train_changes=[]" in attention and "  optim.steps=" not in attention
    assert "  optim.steps=" in fusion and "  train_changes=" not in fusion


def test_a_shipped_config_is_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["reconstruct", "--views", "views", "--out", "mesh.glb", "--device", "cpu"]
    for name in ("draft", "fusion/draft", "configs/fusion/draft.yaml"):
        assert run_verb(monkeypatch, *arguments, "--config", name) == 2
        assert "'views' does not exist" in capsys.readouterr().err  # the config was read
    assert run_verb(monkeypatch, *arguments, "--config", "draught") == 2
    assert "config 'draught' is neither a file nor one of cpu, draft, gpu, paper" in capsys.readouterr().err


def test_flags_beat_overrides_and_overrides_stand_anywhere() -> None:
    parser = common.parser("x", "x")
    common.add_config(parser, "cpu")
    parser.add_argument("--seed")
    options = parser.parse_intermixed_args(["optim.seed=1", "--seed", "3", "optim.steps=7"])

    from nova3d.fusion import FusionConfig

    settings = common.load_config(FusionConfig, "fusion", options, {"optim.seed": options.seed, "optim.lr": None})
    assert (settings.optim.seed, settings.optim.steps) == (3, 7)
    assert common.names("a #1,010") == ["a #1", "010"] and common.names(None) is None


@dataclass
class Paths:
    model: Annotated[str, Shipped("model")] = "nova3d-mini"
    picture: Annotated[str, Shipped("asset")] = "assets/images/owl.png"
    protocol: Annotated[str | None, Shipped("protocol")] = None
    objects: str = "assets/objects"


def test_marked_keys_take_the_paths_of_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own: a#b.yaml").touch()
    (tmp_path / "empty.yaml").touch()
    options = Namespace(config="empty.yaml", overrides=["protocol='own: a#b.yaml'"])
    expected = Paths(str(ROOT / "assets/nova3d-mini"), str(ROOT / "assets/images/owl.png"), "own: a#b.yaml")
    assert common.load_config(Paths, "sample", options) == expected
    options.overrides = ["model=someone/at-the-hub", "protocol=mini"]
    found = common.load_config(Paths, "sample", options)
    assert (found.model, found.protocol) == ("someone/at-the-hub", str(ROOT / "configs/eval/mini.yaml"))
    monkeypatch.chdir(ROOT)
    options = Namespace(config=str(tmp_path / "empty.yaml"), overrides=["model=assets/nova3d-mini"])
    assert common.load_config(Paths, "sample", options) == Paths("assets/nova3d-mini")  # records keep short paths


@pytest.mark.parametrize(("arms", "expected"), [("gta,none", ["none", "gta"]), ("", ["none", "cross_domain", "gta"])])
def test_the_attention_suite_takes_only_the_arms_that_are_asked_for(
    arms: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("arms: {none: {alignment: none}, cross_domain: {alignment: cross_domain}, gta: {alignment: gta}}\n")
    taken: list[list[str]] = []

    def suite(settings: Namespace, *_: object) -> None:
        taken.append(list(settings.arms))
        raise InputError("far enough")

    monkeypatch.setattr("nova3d.experiments.attention.attention_suite", suite)
    command = [
        "--suite",
        "attention",
        "--objects",
        str(tmp_path),
        "--config",
        str(path),
        "--arms",
        arms,
        "--device",
        "cpu",
    ]
    with pytest.raises(InputError, match="far enough"):
        studies.ablate(command)
    assert taken == [expected]
    with pytest.raises(InputError, match="--arms: 'gtb' is not one of none, cross_domain, gta"):
        studies.ablate([*command, "--arms", "gtb"])


def test_the_fusion_suite_takes_scans_as_they_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Tall.Box", "Wide.Box"):
        write_downloaded_scan(tmp_path / "scans" / name)
    taken: list[tuple[object, ...]] = []

    def run(*given: object) -> None:
        taken.append(given)
        raise InputError("far enough")

    monkeypatch.setattr("nova3d.experiments.fusion.run", run)
    command = ["ablate", "--suite", "fusion", "--objects", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    command += ["--device", "cpu"]
    assert run_verb(monkeypatch, *command, "--names", "Wide_Box", "--faults", "none", "--arms", "no_conflict") == 2
    assert "far enough" in capsys.readouterr().err
    assert taken[0][:3] == (tmp_path / "scans", ("Wide_Box",), (Case("none", "no_conflict"),))
    assert run_verb(monkeypatch, *command, "--arms", "no conflict") == 2
    error = "--arms: 'no conflict' is not one of full, no_conflict, no_pose, trimmed, closed_form, paper_alone"
    assert error in capsys.readouterr().err
    assert run_verb(monkeypatch, *command, "--faults", "none,poses", "--arms", "trimmed") == 2
    error = "no case is left of --faults and --arms: fault 'none' has full, no_conflict; fault 'poses' has"
    assert error in capsys.readouterr().err
