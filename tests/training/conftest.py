"""Four views of three small objects, a tiny autoencoder, and a run's config on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nova3d import cameras
from nova3d.data.shards import ShardWriter, encode_views
from nova3d.training.block_average import start_as_block_average
from nova3d.training.config import (
    DataConfig,
    HealthConfig,
    ImageEncoderConfig,
    OptimConfig,
    PipelineConfig,
    TrainConfig,
    UNetConfig,
)
from nova3d.views import ViewSet
from tests.helpers.networks import ONE_LEVEL, TINY_UNET, tiny_autoencoder

SIZE = 32
Make = Callable[..., TrainConfig]


def write_shards(folder: Path, objects: int = 3, per_shard: int = 256, prefix: str = "o") -> Path:
    """Discs of different sizes and colours, their normals towards the camera."""
    rig = cameras.orbit(4, size=SIZE)
    writer = ShardWriter(folder, rig, per_shard)
    centres = rig.pixel_centres() - SIZE / 2
    for index in range(objects):
        mask = (centres.norm(dim=-1) < 7 + 3 * (index % 3)).float().expand(4, SIZE, SIZE)
        rgb = torch.rand(4, 1, 1, 3, generator=torch.Generator().manual_seed(index)).expand(4, SIZE, SIZE, 3)
        normals = F.normalize(rig.c2w[:, None, None, :3, 2].expand(4, SIZE, SIZE, 3), dim=-1) * mask[..., None]
        views = ViewSet(torch.where(mask[..., None] > 0, rgb, 1.0), normals, mask, rig)
        writer.add(f"{prefix}{index}", encode_views(f"{prefix}{index}", views, {}))
    writer.close({})
    return folder


@pytest.fixture
def make_shards() -> Callable[..., Path]:
    """`write_shards`."""
    return write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    model = tiny_autoencoder(3, sample_size=SIZE, scaling_factor=1.0)
    start_as_block_average(model)  # latents that say something: a random autoencoder's are mostly noise
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(shards: Path, vae_folder: Path, tmp_path: Path) -> Make:
    """A run of 4 steps of one object on two-level networks; `changes` replace fields of TrainConfig."""

    def make(name: str = "run", **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "out": str(tmp_path / name),
            "vae": str(vae_folder),
            "data": DataConfig(str(shards)),
            "model": UNetConfig(**TINY_UNET, norm_groups=8),
            "encoder": ImageEncoderConfig(16, 32, 1, 2, 16, 8),
            "pipeline": PipelineConfig(camera_preset="ortho4", steps=2),
            "optim": OptimConfig(learning_rate=1e-3, warmup=2, decay_from=0.5, ema_decay=0.9),
            "health": HealthConfig(spike=0),
            "steps": 4,
            "log_every": 1,
            "checkpoint_every": 2,
        }
        return TrainConfig(**(settings | changes))

    return make


@pytest.fixture
def one_level() -> UNetConfig:
    """A UNet of one level, for tests whose cost goes by the number of its weights."""
    return UNetConfig(**(TINY_UNET | ONE_LEVEL), norm_groups=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
