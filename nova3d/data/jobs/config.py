"""The config of a render job: one schema for every verb of `nova3d render`."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from nova3d import config as configs
from nova3d.choices import Launcher
from nova3d.config import Range, Sentinel
from nova3d.data.config import FilterConfig
from nova3d.data.sources.base import SourceConfig
from nova3d.errors import InputError
from nova3d.rendering.engine import ENGINES, EngineConfig
from nova3d.utils import provenance

if TYPE_CHECKING:
    from nova3d.cameras import Cameras

GPU_DEVICES = ("cuda", "optix")


@dataclass
class PoolConfig:
    """How the workers run; nothing here changes a pixel."""

    launcher: Launcher = "local"
    """local: this machine. slurm: this process is one task of a job array and renders its share. ray: one actor per
    GPU, or per worker, of a Ray cluster whose nodes all see `out`."""
    workers: Annotated[int | None, Sentinel(0), Range(1)] = None
    """Per GPU, or in all where engine.device is cpu; null means 2 per GPU, or one per core."""
    gpus: list[str] = field(default_factory=list)
    """UUIDs or indices of `nvidia-smi -L`; empty means every GPU of the machine."""
    shard: str | None = None
    """i/n renders the i-th of n shares (from 0), chosen by hash of the uid; null renders all."""
    beat_seconds: float = 60.0
    """A worker is killed when it shows no progress for the larger of beat_seconds and beat_factor times the 95th
    percentile of the time per view; doubled for an object's last attempt."""
    beat_factor: float = 10.0
    """See beat_seconds."""
    object_seconds: float = 600.0
    """The most one object may take; doubled for its last attempt."""
    start_seconds: float = 1200.0
    """The most that a worker's start may take, and a GPU worker's first view (it may compile kernels)."""
    fetch_seconds: float = 900.0
    """The most that fetching one object may take."""
    memory_gb: Annotated[float | None, Sentinel(0)] = None
    """The most that a worker's processes may use together; null means an equal share of 0.9 of the machine."""
    recycle_objects: Annotated[int, Range(1)] = 200
    """A worker is replaced after so many objects."""
    recycle_gb: float = 4.0
    """A worker is replaced when it has grown past this."""
    strikes: Annotated[int, Range(1)] = 2
    """The most attempts at an object that fails for a transient reason (a timeout, a crash); the last is made on a
    fresh worker."""
    breaker_share: Annotated[float | None, Sentinel(0), Range(0, 1)] = 0.2
    """A worker stops when one reason takes more than this share of its last 100 objects; null never stops it."""
    breaker_blanks: Annotated[int | None, Sentinel(0), Range(1)] = 10
    """A worker stops after so many blank renders in a row; null never stops it."""
    fetch_ahead: Annotated[int, Range(1)] = 2
    """Objects fetched before they are needed, per worker."""
    drain_seconds: float = 60.0
    """How long an interrupt (SIGINT, SIGTERM) waits for the objects in flight."""
    scratch: str | None = None
    """Folder for temporary files; null means the system's."""
    ray_address: str | None = None
    """The cluster to join; null starts one on this machine."""


@dataclass
class RenderConfig:
    """A render job: what `nova3d render` reads."""

    source: SourceConfig = field(default_factory=SourceConfig)
    """Where the meshes come from."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What draws them."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """What is refused or tagged."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """How workers run."""
    preset: str = "ortho16"
    """The cameras; see `nova3d.cameras.preset`."""
    size: Annotated[int, Range(1)] = 256
    """Side of a picture in pixels."""
    out: str = "data/shards"
    """The job folder."""
    samples_per_shard: Annotated[int, Range(1)] = 256
    """Objects per tar."""
    pack: bool = True
    """Pack at the end of `run`."""
    licences: list[str] = field(default_factory=list)
    """The only licences accepted; empty accepts all."""
    exclude: list[str] = field(default_factory=list)
    """Uids never to render."""
    limit: Annotated[int | None, Sentinel(0), Range(1)] = None
    """The most objects to render; null renders all."""
    val_share: Annotated[float, Range(0, 1)] = 0.01
    """About this share of the objects goes to val/, chosen by hash of the uid; at least one of several, unless 0."""

    def cameras(self) -> "Cameras":
        """Return the rig that every object is rendered with."""
        from nova3d.cameras import preset

        return preset(self.preset, self.size)

    def check(self) -> None:
        """Raise InputError for the first value that makes no sense."""
        from nova3d.data import filters

        configs.validate(self)
        if self.val_share == 1:
            raise InputError("val_share must be less than 1: training needs objects too")
        if self.engine.name not in ENGINES and ":" not in self.engine.name:
            known = f"{', '.join(ENGINES)}, or package.module:factory"
            raise InputError(f"engine.name '{self.engine.name}' is not one of {known}")
        if self.pool.gpus and self.engine.device not in GPU_DEVICES:
            raise InputError(f"pool.gpus is given but engine.device is {self.engine.device}")
        parse_shard(self.pool.shard)
        filters.check_config(self.filters)
        self.cameras()


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parse "i/n" to (i, n) with 0 <= i < n; None is the whole, (0, 1)."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"pool.shard '{text}' must be i/n with 0 <= i < n, as in 0/8")
    return int(match[1]), int(match[2])


def rig_digest(cameras: "Cameras") -> str:
    """Return 16 hex digits that name a rig: poses, intrinsics, size and model."""
    from nova3d.transforms import cameras_to_transforms

    return provenance.hash_json(cameras_to_transforms(cameras))


# Settings that leave every object's content as it is; a job may go on with other values of these.
_FREE = ("pool", "out", "samples_per_shard", "pack", "engine.threads", "engine.python", "source.timeout_s")


def content_settings(config: RenderConfig) -> dict[str, Any]:
    """Return the settings that decide what a job's objects look like, as {"engine.samples": 32, ...}."""
    flat = configs.flatten(configs.to_dict(config))
    return {key: value for key, value in flat.items() if not any(key == f or key.startswith(f"{f}.") for f in _FREE)}
