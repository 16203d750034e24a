"""Render every mesh of a folder into shards, on several processes; failures are recorded, never fatal."""

import itertools
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nova3d import config as configs
from nova3d import provenance
from nova3d.cameras import preset
from nova3d.data.render import render_object
from nova3d.data.shards import ShardWriter, encode_views
from nova3d.errors import InputError

log = logging.getLogger(__name__)
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")


@dataclass
class RenderConfig:
    """What `scripts/render.py` reads. `source`: a folder of meshes; `licences`: a JSON with `objects`, each with
    name, licence and attribution, copied into manifest and samples ("" for none)."""

    source: str = "objects"
    out: str = "data/shards"
    licences: str = ""
    preset: str = "ortho16"
    size: int = 128
    supersample: int = 3
    light: str = "studio"
    engine: str = "raster"
    workers: int = 2
    limit: int = 0  # first so many objects only; 0 renders all
    samples_per_shard: int = 256
    exclude: list[str] = field(default_factory=list)  # uids never to render


def render_folder(config: RenderConfig, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Render `config.source` into shards at `config.out`; returns the index's path.

    manifest.jsonl gets one row per object: uid, source hash, licence, state, reason, seconds. Raises InputError
    where the source has no meshes or none of them could be drawn.
    """
    paths = _find(config)
    licences = _licences(config.licences)
    writer = ShardWriter(config.out, preset(config.preset, config.size), config.samples_per_shard)
    jobs = [(path, config, licences.get(path.stem, {})) for path in paths]
    with (Path(config.out) / "manifest.jsonl").open("w") as manifest, ProcessPoolExecutor(config.workers) as pool:
        for done, (row, members) in enumerate(pool.map(_render_one, jobs, chunksize=1), start=1):
            if members is not None:
                writer.add(row["uid"], members)
                row["shard"] = writer.samples[-1]["shard"]
            manifest.write(json.dumps(row, sort_keys=True) + "\n")
            manifest.flush()
            if progress:
                progress(done, len(jobs), row["uid"])
    failed = len(jobs) - len(writer.samples)
    if not writer.samples:
        raise InputError(f"none of the {len(jobs)} meshes in '{config.source}' could be drawn; see manifest.jsonl")
    log.info("%d objects rendered, %d refused (reasons in manifest.jsonl)", len(writer.samples), failed)
    return writer.close({"record": provenance.record("render", configs.to_dict(config))})


def _render_one(job: tuple[Path, RenderConfig, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, bytes] | None]:
    path, config, licence = job
    torch.set_num_threads(1)  # one process per core beats threads on small pictures
    started = time.perf_counter()
    uid = _uid(path)
    facts = {"uid": uid, "source_sha256": provenance.hash_file(path), **licence}
    row = {**facts, "state": "done", "reason": "", "engine": config.engine, "shard": ""}
    try:
        views = render_object(
            path,
            preset(config.preset, config.size),
            config.engine,
            supersample=config.supersample,
            light=config.light,  # type: ignore[arg-type]  # checked by _find
        )
        members = encode_views(uid, views, facts)
    except InputError as error:
        row |= {"state": "refused", "reason": str(error)}
        members = None
    except Exception as error:  # one broken mesh must not end a job of thousands
        log.exception("rendering %s", path)
        row |= {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
        members = None
    row["seconds"] = round(time.perf_counter() - started, 3)
    return row, members


def _find(config: RenderConfig) -> list[Path]:
    if config.light not in ("studio", "flat"):
        raise InputError(f"light '{config.light}' is not one of studio, flat")
    folder = Path(config.source)
    if not folder.is_dir():
        raise InputError(f"source folder '{folder}' does not exist")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in MESH_SUFFIXES and p.stem not in config.exclude)
    if not paths:
        raise InputError(f"no meshes ({', '.join(MESH_SUFFIXES)}) in '{folder}'")
    uids = sorted(_uid(p) for p in paths)
    duplicates = {a for a, b in itertools.pairwise(uids) if a == b}
    if duplicates:
        raise InputError(f"two meshes in '{folder}' share the name '{min(duplicates)}'; names are the objects' uids")
    return paths[: config.limit or None]


def _uid(path: Path) -> str:
    """A mesh's name as the key of its sample, which ends at the first dot in a WebDataset tar."""
    return path.stem.replace(".", "_")


def _licences(path: str) -> dict[str, dict[str, str]]:
    if not path:
        return {}
    try:
        rows = json.loads(Path(path).read_text())["objects"]
        return {r["name"]: {k: r[k] for k in ("licence", "attribution", "source_repo") if k in r} for r in rows}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"licence file '{path}' cannot be used: {error!r}") from error
