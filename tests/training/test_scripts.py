"""The training scripts at the command line."""

from pathlib import Path

import pytest

from tests.helpers.commands import call_script, run_script


@pytest.mark.parametrize("script", ["train", "train_autoencoder", "cache_latents"])
def test_help_ends_with_an_example(script: str) -> None:
    result = run_script(script, "--help")
    assert result.returncode == 0
    assert f"example:\n  nova3d {script.replace('_', '-')} --config configs/" in result.stdout


def test_a_misspelt_key_ends_in_one_line_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_script(monkeypatch, "train", "optim.learnin_rate=1e-3") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "did you mean 'optim.learning_rate'?" in line


def test_missing_shards_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"shards={tmp_path}", f"out={tmp_path / 'out'}", "--device", "cpu"]
    assert call_script(monkeypatch, "train_autoencoder", *arguments) == 2
    assert "is not a shard folder" in capsys.readouterr().err.strip().splitlines()[-1]
    assert call_script(monkeypatch, "cache_latents", "--config", "configs/train/mini.yaml", "--device", "cpu") == 2
    assert "data.cache= must name the folder to write; so does --out" in capsys.readouterr().err
