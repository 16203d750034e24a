"""What a job will render, decided and written down before anything starts.

`plan.jsonl` has one row per object of the source: the Asset's columns, `state` ("planned", or "refused" with `reason`)
and nothing that differs from one planning to the next. `plan.json` has the settings, the rig's digest, counts and
estimates. Objects stand in the order of the SHA-256 of their uid, so that any first part of a job is a fair sample.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nova3d.data.jobs.config import RenderConfig, content_settings, rig_digest
from nova3d.data.sources import Asset, make_source
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig
from nova3d.rendering.reasons import Reason
from nova3d.utils.files import read_json, read_json_lines, writable_folder, write_json, write_text
from nova3d.utils.progress import Progress
from nova3d.utils.provenance import stable_hash

PLAN = "plan.json"
ROWS = "plan.jsonl"
# Values that meant "not set" in the plans of earlier versions.
_NOT_SET = {"limit": 0, "source.licences": "", "source.list": "", "source.exclude_list": ""}

# Estimates, good to a factor of two.
# PNG bytes of one RGBA and one normal view of textured scans: at 128 pixels 12.1 KB (mean of 30 objects of Google
# Scanned Objects), at 256 pixels 33 to 37 KB. Flat-coloured low-poly objects take a third.
_BYTES_PER_VIEW = 36_000
_BYTES_AT = 256
_BYTES_POWER = 1.55  # not 2: edges grow with the side, surfaces with its square
# CPU seconds on one core of a shared machine. Raster: 2x2 supersampled 128 and 256 pixels, 62 low-poly and 30
# scanned objects; encoding and filters included.
_RASTER_OBJECT = 0.05
_RASTER_PIXEL = 0.30e-6
_RASTER_SAMPLE = 0.58e-6
# Cycles on a CPU with OIDN (fast): fit of four objects at 16, 32 and 64 samples, 256 pixels: 10.8, 18.3 and 33.8 s for
# 16 views. Real assets with many materials take twice as long.
_CYCLES_VIEW = 0.10
_CYCLES_PIXEL = 0.097 / 256**2
_CYCLES_SAMPLE = 0.0299 / 256**2
_REAL_ASSETS = 2.0
# Cycles on a GPU: SyncDreamer reports 800,000 objects of 16 views in 2 weeks on 8 V100.
_CYCLES_GPU_VIEW = 12.1 / 16


@dataclass(frozen=True)
class Plan:
    """What a job will render.

    Attributes:
        folder: the job's.
        settings: those that decide the objects' content, by dotted key.
        rig: the cameras' digest.
        counts: objects, train, val, refused, excluded, over_limit.
        licences: objects by licence, refused ones included.
        estimates: see `estimate`.
        workers: cores or GPUs that the hours are divided by; not written.
    """

    folder: Path
    settings: dict[str, Any]
    rig: str
    counts: dict[str, int]
    licences: dict[str, int]
    estimates: dict[str, Any]
    workers: int = field(default=1, compare=False)

    def rows(self) -> list[dict[str, Any]]:
        """Return every row of plan.jsonl, refused ones too; raises InputError for a line that is not a JSON object."""
        return read_json_lines(self.folder / ROWS, "plan")

    def assets(self) -> list[Asset]:
        """Return the objects to render, in the plan's order; raises InputError for a row that is not an object."""
        assets = []
        for number, row in enumerate(self.rows(), start=1):
            try:
                assets += [Asset.from_row(row)] if row.get("state") == "planned" else []
            except InputError as error:
                raise InputError(f"plan '{self.folder / ROWS}', row {number}: {error}") from error
        return assets

    def __str__(self) -> str:
        n, e = self.counts, self.estimates
        licences = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in self.licences.items())
        lines = {
            "objects": f"{n['objects']:,} ({n['train']:,} train, {n['val']:,} val); not rendered: {n['refused']:,} for "
            f"their licence, {n['excluded']:,} excluded, {n['over_limit']:,} over the limit",
            "licences": licences,
            "views": f"{e['views']:,} of {self.settings['size']} pixels, {self.settings['preset']}, rig {self.rig}",
            "disk": f"about {_size(e['bytes'])} of views, twice that once packed",
            "time": self._time(),
            "plan": str(self.folder / ROWS),
        }
        return "\n".join(f"{key:<9} {text}" for key, text in lines.items())

    def _time(self) -> str:
        if "hours" not in self.estimates:
            return "not known for this engine and device"
        hours, unit = self.estimates["hours"], "core" if self.settings["engine.device"] == "cpu" else "GPU"
        here = f"{hours / self.workers:.3g} h on {self.workers} of them"
        return f"about {hours:.3g} {unit}-hours, {here} (estimate {self.estimates['basis']})"


def _size(count: float) -> str:
    unit, scale = next((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 0.0)) if count >= s)
    return f"{count / (scale or 1e3):.3g} {unit}"


def write_plan(config: RenderConfig, progress: Progress | None = None) -> Plan:
    """List the source, refuse what the licences forbid, choose splits, and write the plan into `config.out`.

    The same settings and source give the same files.

    Raises:
        InputError: where `config.out` has a plan made with other settings (the key is named) or cannot be written, or
            where no object is left to render.
    """
    folder = writable_folder(config.out)
    if (folder / PLAN).is_file():
        check_settings(read_plan(folder), config)
    cameras = config.cameras()
    assets = make_source(config.source).assets(progress)
    excluded = set(config.exclude)
    kept = [asset for asset in assets if asset.uid not in excluded]
    rows = choose_objects(kept, config)
    chosen = [row for row in rows if row["state"] == "planned"]
    if not chosen:
        raise InputError(
            f"nothing to render: `licences` and `exclude` leave none of the source's {len(assets)} objects; "
            "licences=[] accepts every licence"
        )
    counts = {
        "objects": len(chosen),
        "train": sum(row["split"] == "train" for row in chosen),
        "val": sum(row["split"] == "val" for row in chosen),
        "refused": len(rows) - len(chosen),
        "excluded": len(assets) - len(kept),
        "over_limit": len(kept) - len(rows),
    }
    facts: dict[str, Any] = {
        "settings": content_settings(config),
        "rig": rig_digest(cameras),
        "counts": counts,
        "licences": dict(sorted(Counter(row["licence"] for row in rows).items())),
        "estimates": estimate(len(chosen), len(cameras), config.size, config.engine),
    }
    write_text(folder / ROWS, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    write_json(folder / PLAN, facts)
    return Plan(folder, **facts, workers=_processors(config))


def read_plan(folder: str | Path) -> Plan:
    """Read the plan in a job's folder. Raises InputError where there is none."""
    path = Path(folder) / PLAN
    if not path.is_file():
        raise InputError(f"'{folder}' has no {PLAN}; make one with `nova3d render plan`")
    try:
        plan = Plan(Path(folder), **read_json(path, dict, "plan"))
    except (InputError, TypeError) as error:
        raise InputError(f"'{path}' is damaged: {error}") from error
    settings = {k: None if k in _NOT_SET and v == _NOT_SET[k] else v for k, v in plan.settings.items()}
    # A plan of an earlier version lacks keys that came later; their defaults change nothing.
    return replace(plan, settings=content_settings(RenderConfig()) | settings)


def check_settings(plan: Plan, config: RenderConfig) -> None:
    """Raise InputError where a plan was made with other settings than `config` has."""
    ours = content_settings(config)
    changed = sorted(key for key in ours | plan.settings if ours.get(key) != plan.settings.get(key))
    if changed:
        words = ", ".join(f"{key} was {plan.settings.get(key)!r} and is now {ours.get(key)!r}" for key in changed[:3])
        raise InputError(f"the job in '{plan.folder}' was planned with other settings ({words}); use another `out`")


def estimate(objects: int, views: int, size: int, engine: EngineConfig) -> dict[str, float | str]:
    """Estimate what a job will cost.

    Args:
        objects: how many.
        views: of each.
        size: side of a picture in pixels.
        engine: what draws them.

    Returns:
        views: in all; bytes: of the encoded objects; hours: of one core, or of one GPU where the engine runs on one;
        basis: where the hours come from. Engines of other packages have no hours.
    """
    size_bytes = objects * views * _BYTES_PER_VIEW * (size / _BYTES_AT) ** _BYTES_POWER
    cost: dict[str, float | str] = {"views": objects * views, "bytes": round(size_bytes)}
    pixels, basis = size**2, "from measured CPU seconds"
    if engine.name == "raster" and engine.device == "cpu":
        per_view = pixels * (_RASTER_PIXEL + _RASTER_SAMPLE * engine.supersample**2)
        seconds = _RASTER_OBJECT + views * per_view
    elif engine.name == "blender" and engine.device == "cpu":
        per_view = _CYCLES_VIEW + pixels * (_CYCLES_PIXEL + _CYCLES_SAMPLE * engine.samples)
        seconds = _REAL_ASSETS * views * per_view
    elif engine.name == "blender":
        seconds, basis = views * _CYCLES_GPU_VIEW, "from a published figure for a V100, not measured"
    else:
        return cost
    return cost | {"hours": round(objects * seconds / 3600, 3), "basis": basis}


def split_of(uid: str, val_share: float) -> str:
    """Return "train" or "val", by a hash of the uid alone: other objects, runs and machines do not change it."""
    return "val" if _split_hash(uid) < val_share * 2**64 else "train"


def choose_splits(uids: Sequence[str], val_share: float, counted: Sequence[str]) -> dict[str, str]:
    """Choose train or val for every object by `split_of`. Few objects still make a validation split.

    Args:
        uids: all objects.
        val_share: about this share goes to val.
        counted: the objects that will be there. Of several, one goes to val where none would, unless the share is 0.

    Returns:
        uid -> "train" or "val".
    """
    splits = {uid: split_of(uid, val_share) for uid in uids}
    if val_share and len(counted) > 1 and all(splits[uid] == "train" for uid in counted):
        splits[min(counted, key=_split_hash)] = "val"
    return splits


def _split_hash(uid: str) -> int:
    # Salted, or the plan's order, also a hash of the uid, would put all of val/ first.
    return stable_hash(f"split {uid}", 64)


def choose_objects(assets: Iterable[Asset], config: RenderConfig) -> list[dict[str, Any]]:
    """Decide which objects are used, and on which side of the split.

    Args:
        assets: all of them, in any order.
        config: `licences`, `limit` and `val_share` count. `limit` counts only objects that are not refused.

    Returns:
        Rows in the order of the SHA-256 of their uids: the asset's columns with state ("planned", or "refused" with
        reason) and split. Objects beyond the limit have none.
    """
    allowed = {spdx(name).lower() for name in config.licences}
    rows: list[dict[str, Any]] = []
    planned = 0
    for asset in sorted(assets, key=lambda a: stable_hash(a.uid)):
        row = asset.to_row()
        if allowed and asset.licence.lower() not in allowed:
            rows.append(row | {"state": "refused", "reason": Reason.LICENCE.value})
        elif not config.limit or planned < config.limit:
            planned += 1
            rows.append(row | {"state": "planned", "reason": ""})
    planned_uids = [row["uid"] for row in rows if row["state"] == "planned"]
    splits = choose_splits([row["uid"] for row in rows], config.val_share, planned_uids)
    return [row | {"split": splits[row["uid"]]} for row in rows]


def _processors(config: RenderConfig) -> int:
    """Return the cores or GPUs of this machine that the job will keep busy, as far as the settings say."""
    if config.engine.device == "cpu":
        return config.pool.workers or os.cpu_count() or 1
    return max(1, len(config.pool.gpus))
