"""What a job will render, decided and written down before anything starts.

`plan.jsonl` has one row per object of the source: the Asset's columns, `state` ("planned", or "refused" with `reason`)
and nothing that differs from one planning to the next. `plan.json` has the settings, the rig's digest, counts and
estimates. Objects stand in the order of the SHA-256 of their uid, so that any first part of a job is a fair sample.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nova3d.data.assets import Asset
from nova3d.data.jobs.config import RenderConfig, content_settings, rig_digest
from nova3d.data.jobs.estimates import estimate
from nova3d.data.sources import Progress, make_source
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason
from nova3d.utils.files import writable_folder

PLAN = "plan.json"
ROWS = "plan.jsonl"


@dataclass(frozen=True)
class Plan:
    """folder: the job's. settings: those that decide the objects' content, by dotted key. rig: the cameras' digest.
    counts: objects, train, val, refused, excluded, over_limit. licences: objects by licence, refused ones included.
    estimates: see `estimate`. workers: cores or GPUs that the hours are divided by, not written."""

    folder: Path
    settings: dict[str, Any]
    rig: str
    counts: dict[str, int]
    licences: dict[str, int]
    estimates: dict[str, Any]
    workers: int = 1

    def rows(self) -> list[dict[str, Any]]:
        """Every row of plan.jsonl, refused ones too."""
        return [json.loads(line) for line in (self.folder / ROWS).read_text().splitlines()]

    def assets(self) -> list[Asset]:
        """The objects to render, in the plan's order."""
        return [Asset.from_row(row) for row in self.rows() if row["state"] == "planned"]

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

    The same settings and source give the same files. Raises InputError where `config.out` has a plan made with
    other settings (the key is named) or cannot be written, or where no object is left to render.
    """
    folder = writable_folder(config.out)
    settings = json.loads(json.dumps(content_settings(config)))
    _refuse_other_settings(folder, settings)
    cameras = config.cameras()
    assets = make_source(config.source).assets(progress)
    excluded = set(config.exclude)
    kept = [asset for asset in assets if asset.uid not in excluded]
    rows = _decide(kept, config)
    chosen = [row for row in rows if row["state"] == "planned"]
    if not chosen:
        raise InputError(
            f"nothing to render: `licences` and `exclude` leave none of the source's {len(assets)} objects"
        )
    counts = {
        "objects": len(chosen),
        "train": sum(row["split"] == "train" for row in chosen),
        "val": sum(row["split"] == "val" for row in chosen),
        "refused": len(rows) - len(chosen),
        "excluded": len(assets) - len(kept),
        "over_limit": len(kept) - len(rows),
    }
    plan = Plan(
        folder,
        settings,
        rig_digest(cameras),
        counts,
        dict(sorted(Counter(row["licence"] for row in rows).items())),
        estimate(len(chosen), len(cameras), config.size, config.engine),
        processors(config),
    )
    facts = {k: getattr(plan, k) for k in ("settings", "rig", "counts", "licences", "estimates")}
    _write(folder / ROWS, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    _write(folder / PLAN, json.dumps(facts, indent=1, sort_keys=True))
    return plan


def read_plan(folder: str | Path, workers: int = 1) -> Plan:
    """The plan in a job's folder. Raises InputError where there is none."""
    path = Path(folder) / PLAN
    if not path.is_file():
        raise InputError(f"'{folder}' has no {PLAN}; make one with `scripts/render.py plan`")
    try:
        return Plan(Path(folder), workers=workers, **json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"'{path}' is damaged: {error}") from error


def split_of(uid: str, val_share: float) -> str:
    """ "train" or "val", by a hash of the uid alone: other objects, runs and machines do not change it."""
    # Salted, or the plan's order, also a hash of the uid, would put all of val/ first.
    digest = hashlib.sha256(f"split {uid}".encode()).digest()
    return "val" if int.from_bytes(digest[:8]) < val_share * 2**64 else "train"


def _decide(assets: Iterable[Asset], config: RenderConfig) -> list[dict[str, Any]]:
    """Rows with split and state; `limit` counts only objects that will be rendered."""
    allowed = {spdx(name).lower() for name in config.licences}
    rows: list[dict[str, Any]] = []
    planned = 0
    for asset in sorted(assets, key=lambda a: hashlib.sha256(a.uid.encode()).digest()):
        row = replace(asset, split=split_of(asset.uid, config.val_share)).to_row()
        if allowed and asset.licence.lower() not in allowed:
            rows.append(row | {"state": "refused", "reason": Reason.LICENCE.value})
        elif not config.limit or planned < config.limit:
            planned += 1
            rows.append(row | {"state": "planned", "reason": ""})
    return rows


def _refuse_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / PLAN).is_file():
        return
    earlier = read_plan(folder).settings
    for key in sorted(earlier.keys() | settings.keys()):
        if earlier.get(key) != settings.get(key):
            raise InputError(
                f"'{folder}' was planned with {key}={json.dumps(earlier.get(key))}, now it is "
                f"{json.dumps(settings.get(key))}: name another `out`, or set it back"
            )


def _write(path: Path, text: str) -> None:
    """Atomically, also when several nodes plan the same job at once."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    written = Path(file.name)
    written.chmod(0o644)  # temporary files are private
    written.replace(path)


def processors(config: RenderConfig) -> int:
    """Cores or GPUs of this machine that the job will keep busy, as far as the settings say."""
    if config.engine.device == "cpu":
        return config.pool.workers or os.cpu_count() or 1
    return max(1, len(config.pool.gpus))
