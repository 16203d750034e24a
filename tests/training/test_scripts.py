"""The training scripts at the command line."""

from pathlib import Path

import pytest

from tests.helpers.commands import run_script


@pytest.mark.parametrize("script", ["train", "train_autoencoder", "cache_latents"])
def test_help_ends_with_an_example(script: str) -> None:
    result = run_script(script, "--help")
    assert result.returncode == 0
    assert f"example:\n  python scripts/{script}.py --config configs/" in result.stdout


def test_a_misspelt_key_ends_in_one_line_that_names_the_nearest() -> None:
    result = run_script("train", "optim.learnin_rate=1e-3")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "did you mean 'optim.learning_rate'?" in line and "Traceback" not in result.stderr


def test_missing_shards_end_in_one_line(tmp_path: Path) -> None:
    result = run_script("train_autoencoder", f"shards={tmp_path}", f"out={tmp_path / 'out'}", "--device", "cpu")
    assert result.returncode == 2
    assert "is not a shard folder" in result.stderr.strip().splitlines()[-1] and "Traceback" not in result.stderr
    result = run_script("cache_latents", "--config", "configs/train/mini.yaml", "--device", "cpu")
    assert result.returncode == 2 and "data.cache= must name the folder" in result.stderr
