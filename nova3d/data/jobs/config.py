"""What a render job is told: one schema for every verb of `scripts/render.py`."""

import re
from dataclasses import dataclass, field
from typing import Any

from nova3d import config as configs
from nova3d.cameras import Cameras, preset
from nova3d.data import filters
from nova3d.data.filters import FilterConfig
from nova3d.data.sources import SourceConfig
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig
from nova3d.transforms import cameras_to_transforms
from nova3d.utils import provenance

LAUNCHERS = ("local", "slurm", "ray")
GPU_DEVICES = ("cuda", "optix")


@dataclass
class PoolConfig:
    """How the workers run; nothing here changes a pixel.

    launcher: "local"; "slurm" (this process is one task of an array and renders its share); "ray" (one actor per GPU
        or worker of a Ray cluster; `out` must be on a file system that all nodes see).
    workers: per GPU, or in all where engine.device is cpu; 0 means 2 per GPU, or one per core.
    gpus: UUIDs or indices of `nvidia-smi -L`; empty means every GPU of the machine.
    shard: "i/n" renders the i-th of n shares (from 0), chosen by hash of the uid.
    beat_seconds, beat_factor: a worker is killed when it shows no progress for the larger of beat_seconds and
        beat_factor times the 95th percentile of the time per view. object_seconds: the most one object may take. Both
        are doubled for an object's last try.
    start_seconds: the most that a worker's start may take, and a GPU worker's first view (it may compile kernels).
    fetch_seconds: the most that fetching one object may take.
    memory_gb: a worker's processes together may use so much; 0 means an equal share of nine tenths of the machine.
    recycle_objects, recycle_gb: a worker is replaced after so many objects, or when it has grown past this.
    strikes: tries of an object that fails for a reason that may pass (a timeout, a crash); the last on a fresh worker.
    breaker_share, breaker_blanks: a worker stops when one reason takes more than this share of its last 100 objects,
        or after so many blank renders in a row; 0 turns either off.
    fetch_ahead: objects fetched before they are needed, per worker.
    drain_seconds: how long an interrupt (SIGINT, SIGTERM) waits for the objects in flight.
    scratch: folder for temporary files; empty means the system's.
    ray_address: the cluster to join; empty starts one on this machine.
    """

    launcher: str = "local"
    workers: int = 0
    gpus: list[str] = field(default_factory=list)
    shard: str = ""
    beat_seconds: float = 60.0
    beat_factor: float = 10.0
    object_seconds: float = 600.0
    start_seconds: float = 1200.0
    fetch_seconds: float = 900.0
    memory_gb: float = 0.0
    recycle_objects: int = 200
    recycle_gb: float = 4.0
    strikes: int = 2
    breaker_share: float = 0.2
    breaker_blanks: int = 10
    fetch_ahead: int = 2
    drain_seconds: float = 60.0
    scratch: str = ""
    ray_address: str = ""


@dataclass
class RenderConfig:
    """What `scripts/render.py` reads.

    source: where the meshes come from. engine: what draws them; engine.name may also be "package.module:function", a
        function that makes an Engine of an EngineConfig. filters: what is refused or tagged. pool: how workers run.
    preset, size: the cameras (nova3d.cameras.preset) and the pictures' side in pixels.
    out: the job folder. samples_per_shard: objects per tar. pack: pack at the end of `run`.
    licences: the only licences accepted; empty accepts all. exclude: uids never to render. limit: so many objects
        only, 0 for all. val_share: about this share of the objects goes to val/, chosen by hash of the uid.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    preset: str = "ortho16"
    size: int = 256
    out: str = "data/shards"
    samples_per_shard: int = 256
    pack: bool = True
    licences: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    limit: int = 0
    val_share: float = 0.01

    def cameras(self) -> Cameras:
        """The rig that every object is rendered with."""
        return preset(self.preset, self.size)

    def check(self) -> None:
        """Raise InputError for the first value that makes no sense."""
        pool = self.pool
        rules = [
            (self.size >= 1, f"size must be at least 1, got {self.size}"),
            (self.samples_per_shard >= 1, f"samples_per_shard must be at least 1, got {self.samples_per_shard}"),
            (0 <= self.val_share < 1, f"val_share must lie in [0,1), got {self.val_share}"),
            (self.limit >= 0, f"limit must be 0 (all) or more, got {self.limit}"),
            (self.engine.light in ("studio", "flat"), f"light '{self.engine.light}' is not one of studio, flat"),
            (pool.launcher in LAUNCHERS, f"pool.launcher '{pool.launcher}' is not one of {', '.join(LAUNCHERS)}"),
            (pool.workers >= 0, f"pool.workers must be 0 (automatic) or more, got {pool.workers}"),
            (pool.strikes >= 1, f"pool.strikes must be at least 1, got {pool.strikes}"),
            (pool.fetch_ahead >= 1, f"pool.fetch_ahead must be at least 1, got {pool.fetch_ahead}"),
            (not pool.gpus or self.engine.device in GPU_DEVICES, "pool.gpus is given but engine.device is cpu"),
        ]
        for holds, complaint in rules:
            if not holds:
                raise InputError(complaint)
        parse_shard(pool.shard)
        filters.check(self.filters)
        self.cameras()


def parse_shard(text: str) -> tuple[int, int]:
    """ "i/n" as (i, n), 0 <= i < n; "" is the whole, (0, 1)."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"pool.shard '{text}' must be i/n with 0 <= i < n, as in 0/8")
    return int(match[1]), int(match[2])


def rig_digest(cameras: Cameras) -> str:
    """16 hex digits that name a rig: poses, intrinsics, size and model."""
    return provenance.hash_json(cameras_to_transforms(cameras))


# Settings that leave every object's content as it is; a job may go on with other values of these.
_FREE = ("pool", "out", "samples_per_shard", "pack", "engine.threads", "engine.python", "source.timeout_s")


def content_settings(config: RenderConfig | dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what a job's objects look like, as {"engine.samples": 32, ...}."""
    flat = _flatten(configs.to_dict(config) if isinstance(config, RenderConfig) else config)
    return {key: value for key, value in flat.items() if not any(key == f or key.startswith(f"{f}.") for f in _FREE)}


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
