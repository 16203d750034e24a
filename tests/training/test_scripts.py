"""The training scripts at the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("script", ["train.py", "train_autoencoder.py", "cache_latents.py"])
def test_help_ends_with_an_example(script: str) -> None:
    result = call(script, "--help")
    assert result.returncode == 0
    assert f"example:\n  python scripts/{script} --config configs/" in result.stdout


def test_a_misspelt_key_ends_in_one_line_that_names_the_nearest() -> None:
    result = call("train.py", "optim.learnin_rate=1e-3")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "did you mean 'optim.learning_rate'?" in line and "Traceback" not in result.stderr


def test_missing_shards_end_in_one_line(tmp_path: Path) -> None:
    result = call("train_autoencoder.py", f"shards={tmp_path}", f"out={tmp_path / 'out'}", "--device", "cpu")
    assert result.returncode == 2
    assert "is not a shard folder" in result.stderr.strip().splitlines()[-1] and "Traceback" not in result.stderr
    result = call("cache_latents.py", "--config", "configs/train/mini.yaml", "--device", "cpu")
    assert result.returncode == 2 and "data.cache= must name the folder" in result.stderr
