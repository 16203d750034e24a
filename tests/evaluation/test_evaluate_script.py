"""scripts/evaluate.py as a user runs it."""

import json
import shutil

import pytest

from nova3d import config
from nova3d.evaluation import Protocol, Table
from tests.evaluation.samples import ball
from tests.helpers.commands import ROOT, call_script

pytestmark = pytest.mark.usefixtures("coarse_shapes")
SMALL = ["hull_cells=0", "meshes.surface_samples=200", "meshes.ious=[iou16_flood]"]


def test_script_prints_the_table_and_writes_the_files(folders, tmp_path, monkeypatch, capsys):
    predictions, references = folders
    arguments = ["--predictions", predictions, "--references", references, "--out", tmp_path / "out"]
    arguments += ["--protocol", "mini", "--device", "cpu", *SMALL]
    assert call_script(monkeypatch, "evaluate", *arguments) == 0
    printed = capsys.readouterr().out
    protocol = config.load(Protocol, ROOT / "configs/eval/mini.yaml", SMALL)
    assert f"protocol: mini ({protocol.hash})" in printed
    assert "commit: " in printed and "hardware: " in printed
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"inflated", "cut-out", "objects", "scores.csv", "scores.json", "scores.md", "scores.tex"}
    record = json.loads((tmp_path / "out/scores.json").read_text())["record"]
    assert record["predictions"] == [predictions.name]  # no path of the machine that scored them
    assert call_script(monkeypatch, "evaluate", *arguments, "--weights", "lpips_vgg=nofile") == 2
    assert "weights file 'nofile' does not exist" in capsys.readouterr().err
    assert call_script(monkeypatch, "evaluate", *arguments, "seeed=1") == 2
    assert "did you mean 'seed'?" in capsys.readouterr().err


def test_script_compares_with_a_baseline_of_the_same_protocol_only(folders, tmp_path, monkeypatch, capsys):
    predictions, references = folders
    common = ["--references", references, "--protocol", "mini", "--device", "cpu"]
    true = ["--predictions", references, *common, "--out", tmp_path / "true"]
    assert call_script(monkeypatch, "evaluate", *true, *SMALL) == 0
    again = ["--predictions", predictions, *common, "--baseline", tmp_path / "true", "--out", tmp_path / "out"]
    assert call_script(monkeypatch, "evaluate", *again, "--published", *SMALL) == 0
    assert (tmp_path / "out/comparison").is_dir()
    assert "NOVA3D, Table I" in capsys.readouterr().out
    assert call_script(monkeypatch, "evaluate", *again, *SMALL, "seed=1") == 2
    assert "not comparable" in capsys.readouterr().err


def test_script_names_the_protocols_and_refuses_another_baseline_before_the_work(
    folders, tmp_path, monkeypatch, capsys
):
    predictions, references = folders
    arguments = ["--predictions", predictions, "--references", references, "--out", tmp_path / "out", *SMALL]
    assert call_script(monkeypatch, "evaluate", *arguments, "--protocol", "mini") == 0
    monkeypatch.setattr("nova3d.evaluation.score", None)  # calling it would fail otherwise
    for given, said in (
        (["--protocol", "mimi"], "'mimi' is neither a file nor one of eschernet-v1, mesh-aligned"),
        (["--protocol", "mini", "--baseline", tmp_path / "out", "seed=1"], "not comparable; score both under one"),
    ):
        capsys.readouterr()
        assert call_script(monkeypatch, "evaluate", *arguments, *given) == 2
        assert said in capsys.readouterr().err


def test_script_is_told_what_a_layout_does_not_say(tmp_path, monkeypatch, capsys):
    """Numbered pictures without cameras are refused until the rig is named, and scored on the one that is."""
    ball(num_views=16).save(tmp_path / "ref/cup")
    (tmp_path / "pred/cup").mkdir(parents=True)
    for picture in (tmp_path / "ref/cup/rgb").iterdir():
        shutil.copy(picture, tmp_path / "pred/cup")
    arguments = ["--predictions", tmp_path / "pred", "--references", tmp_path / "ref", "--out", tmp_path / "out"]
    arguments += ["--protocol", "mini", "--device", "cpu", "--layout", "frames", "kinds=[views]"]
    for assumed, said in ([], "does not give its cameras"), (["--assume", "cameras=syncdreamer16"], "camera"):
        assert call_script(monkeypatch, "evaluate", *arguments, *assumed) == 2
        assert said in capsys.readouterr().err
    assert call_script(monkeypatch, "evaluate", *arguments, "--assume", "cameras=ortho16") == 0
    assert Table.load(tmp_path / "out").rows["cup"]["psnr"] > 50
