"""What a job will render, decided and written down before anything starts.

`plan.jsonl` has one row per object of the source: the Asset's columns, `state` ("planned", or "refused" with `reason`)
and nothing that differs from one planning to the next. `plan.json` has the settings, the rig's digest, counts and
estimates. Objects stand in the order of the SHA-256 of their uid, so that any first part of a job is a fair sample.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nova3d import config as configs
from nova3d.data.jobs.config import RenderConfig, content_settings, rig_digest
from nova3d.data.jobs.devices import core_count
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
# Estimates, good to a factor of two.
# PNG bytes of one RGBA and one normal view of textured scans: at 128 pixels 12.1 KB (mean of 30 objects of Google
# Scanned Objects), at 256 pixels 33 to 37 KB. Flat-coloured low-poly objects take a third.
_BYTES_PER_VIEW = 36_000
_BYTES_AT = 256
_BYTES_POWER = 1.55  # not 2: edges grow with the side, surfaces with its square
# Seconds of an object, a view, a pixel and a sample of a pixel, and where they come from.
# Raster: one core of a shared machine, 2x2 supersampled 128 and 256 pixels, 62 low-poly and 30 scanned objects;
# encoding and filters included.
# Cycles on a CPU with OIDN (fast): fit of four objects at 16, 32 and 64 samples, 256 pixels: 10.8, 18.3 and 33.8 s for
# 16 views; doubled, as real assets with many materials take twice as long.
# Cycles on a GPU: SyncDreamer reports 800,000 objects of 16 views in 2 weeks on 8 V100.
_MEASURED = "from measured CPU seconds"
_COSTS = {
    ("raster", "CPU"): (0.05, 0.0, 0.30e-6, 0.58e-6, _MEASURED),
    ("blender", "CPU"): (0.0, 2 * 0.10, 2 * 0.097 / 256**2, 2 * 0.0299 / 256**2, _MEASURED),
    ("blender", "GPU"): (0.0, 12.1 / 16, 0.0, 0.0, "from a published figure for a V100, not measured"),
}


@dataclass(frozen=True)
class RenderPlan:
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
        lines = {
            "objects": f"{n['objects']:,} ({n['train']:,} train, {n['val']:,} val); not rendered: {n['refused']:,} for "
            f"their licence, {n['excluded']:,} excluded, {n['over_limit']:,} over the limit",
            "licences": ", ".join(f"{name or 'unknown'} {count:,}" for name, count in self.licences.items()),
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


def write_plan(config: RenderConfig, progress: Progress | None = None) -> RenderPlan:
    """List the source, refuse what the licences forbid, choose splits, and write the plan into `config.out`.

    The same settings and source give the same files.

    Raises:
        InputError: where `config.out` has a plan made with other settings (the key is named) or cannot be written, or
            where no object is left to render.
    """
    folder = writable_folder(config.out)
    if (folder / PLAN).is_file():
        load_plan(config)
    cameras = config.cameras()
    assets = make_source(config.source).assets(progress)
    excluded = set(config.exclude)
    kept = [asset for asset in assets if asset.uid not in excluded]
    rows = choose_objects(kept, config)
    states = Counter(row["state"] for row in rows)
    splits = Counter(row["split"] for row in rows if row["state"] == "planned")
    if not states["planned"]:
        raise InputError(
            f"nothing to render: `licences` and `exclude` leave none of the source's {len(assets)} objects; "
            "licences=[] accepts every licence"
        )
    facts: dict[str, Any] = {
        "settings": content_settings(config),
        "rig": rig_digest(cameras),
        "counts": {
            "objects": states["planned"],
            "train": splits["train"],
            "val": splits["val"],
            "refused": states["refused"],
            "excluded": len(assets) - len(kept),
            "over_limit": len(kept) - len(rows),
        },
        "licences": dict(sorted(Counter(row["licence"] for row in rows).items())),
        "estimates": estimate(states["planned"], len(cameras), config.size, config.engine),
    }
    write_text(folder / ROWS, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    write_json(folder / PLAN, facts)
    on_cpu = config.engine.device == "cpu"
    workers = config.pool.workers or core_count() if on_cpu else max(1, len(config.pool.gpus))
    return RenderPlan(folder, **facts, workers=workers)


def read_plan(folder: str | Path) -> RenderPlan:
    """Read the plan in a job's folder. Raises InputError where there is none."""
    path = Path(folder) / PLAN
    if not path.is_file():
        raise InputError(f"'{folder}' has no {PLAN}; make one with `nova3d render plan`")
    try:
        plan = RenderPlan(Path(folder), **read_json(path, dict, "plan"))
        # A plan of an earlier version lacks keys that came later, and has other values for what is not set.
        settings = content_settings(configs.load(RenderConfig, values=plan.settings))
    except (InputError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is damaged, or of another version: {error}") from error
    return replace(plan, settings=settings)


def load_plan(config: RenderConfig) -> RenderPlan:
    """Read the plan of a job. Raises InputError where there is none, or it was made with other settings."""
    plan, ours = read_plan(config.out), content_settings(config)
    changed = [key for key in sorted(ours) if ours[key] != plan.settings[key]]
    if changed:
        words = ", ".join(f"{key} was {plan.settings[key]!r} and is now {ours[key]!r}" for key in changed[:3])
        raise InputError(f"the job in '{config.out}' was planned with other settings ({words}); use another `out`")
    return plan


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
    costs = _COSTS.get((engine.name, "CPU" if engine.device == "cpu" else "GPU"))
    if costs is None:
        return cost
    per_object, per_view, per_pixel, per_sample, basis = costs
    samples = engine.supersample**2 if engine.name == "raster" else engine.samples
    seconds = per_object + views * (per_view + size**2 * (per_pixel + per_sample * samples))
    return cost | {"hours": round(objects * seconds / 3600, 3), "basis": basis}


def split_of(uid: str, val_share: float) -> str:
    """Return "train" or "val", by a hash of the uid alone: other objects, runs and machines do not change it."""
    return "val" if _split_hash(uid) < val_share * 2**64 else "train"


def _split_hash(uid: str) -> int:
    # Salted, or the plan's order, also a hash of the uid, would put all of val/ first.
    return stable_hash(f"split {uid}", 64)


def choose_objects(assets: Iterable[Asset], config: RenderConfig) -> list[dict[str, Any]]:
    """Decide which objects are used, and on which side of the split.

    Args:
        assets: all of them, in any order.
        config: `licences`, `limit` and `val_share` count. `limit` counts only objects that are not refused.

    Returns:
        Rows of plan.jsonl in the order of the SHA-256 of their uids: the asset's columns with state ("planned", or
        "refused" with reason) and split. Objects beyond the limit have none. Of several planned objects one goes to
        val where none would by `split_of`, unless the share is 0.
    """
    allowed = {spdx(name).lower() for name in config.licences}
    rows: list[dict[str, Any]] = []
    planned: list[dict[str, Any]] = []
    for asset in sorted(assets, key=lambda asset: stable_hash(asset.uid)):
        row = asset.to_row() | {"split": split_of(asset.uid, config.val_share)}
        if allowed and asset.licence.lower() not in allowed:
            rows.append(row | {"state": "refused", "reason": Reason.LICENCE.value})
        elif not config.limit or len(planned) < config.limit:
            planned.append(row | {"state": "planned", "reason": ""})
            rows.append(planned[-1])
    if config.val_share and len(planned) > 1 and all(row["split"] == "train" for row in planned):
        min(planned, key=lambda row: _split_hash(row["uid"]))["split"] = "val"
    return rows
