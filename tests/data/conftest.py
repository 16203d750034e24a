"""Meshes and shards the data tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nova3d import cameras
from nova3d.data.shards import ShardWriter, encode_views
from nova3d.rendering import render_object


@pytest.fixture
def write_shards(lopsided_file: Path) -> Callable[..., Path]:
    """Writes `count` renders of the same object, 4 views of 24 pixels, into shards of two; returns the folder."""

    def write(folder: Path, count: int = 3) -> Path:
        rig = cameras.orbit(4, size=24)
        views = render_object(lopsided_file, rig, supersample=2)
        writer = ShardWriter(folder, rig, samples_per_shard=2)
        for index in range(count):
            writer.add(f"object{index}", encode_views(f"object{index}", views, {"uid": f"object{index}"}))
        writer.close({"record": {}})
        return folder

    return write


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
