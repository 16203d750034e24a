"""The recipe of the paper in docs/how-to: three commands that read what the one before wrote, on tiny stand-ins."""

import re
import shlex
from pathlib import Path

import pytest

from nova3d.data.shards import ShardReader
from tests.helpers.commands import ROOT, call_script
from tests.helpers.networks import tiny_svd

# What makes each command small: bundled meshes for Objaverse, the rasterizer for Blender, a tiny SVD, one step.
SMALL = {
    "render": [
        "source.kind=folder",
        f"source.path={ROOT / 'assets/objects'}",
        "engine.name=raster",
        "engine.supersample=1",
        "engine.threads=1",
        "size=32",
        "limit=3",
        "pool.workers=1",
        "filters.reject=[]",
    ],
    "cache_latents": ["mixed_precision=no"],
    "train": [
        "mixed_precision=no",
        "steps=1",
        "effective_batch=1",
        "batch_size=1",
        "checkpoint_every=1",
        "validate_every=null",
        "gradient_checkpointing=false",
        "trackers=[]",
    ],
}


def recipe() -> list[tuple[str, list[str]]]:
    """Script and arguments of the how-to's three commands; what only plans, tries or prints is left out."""
    text = (ROOT / "docs/how-to/eight-gpus.md").read_text(encoding="utf-8")
    lines = [re.sub(r"^accelerate launch --config_file \S+ -m ", "", line) for line in text.splitlines()]
    wanted = ("nova3d render run ", "nova3d cache-latents ", "nova3d train ")
    words = [shlex.split(line) for line in lines if line.startswith(wanted) and "--dry-run" not in line]
    return [(line[1].replace("-", "_"), line[2:]) for line in words if "--print-config" not in line]


def test_the_recipe_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = recipe()
    assert [name for name, _ in commands] == ["render", "cache_latents", "train"]
    svd = tiny_svd(tmp_path / "svd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name, arguments in commands:
        own = [] if name == "render" else [f"svd={svd}", "--device", "cpu"]
        assert call_script(monkeypatch, name, *arguments, *SMALL[name], *own) == 0, name
    assert {split: len(ShardReader(Path("data/shards") / split)) for split in ("train", "val")} == {
        "train": 2,
        "val": 1,
    }
    assert (Path("data/latents") / "manifest.json").is_file()
    assert (Path("outputs/paper/model") / "model_index.json").is_file()
