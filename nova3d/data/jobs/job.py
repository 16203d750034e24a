"""A render job as a folder: run, status and retry. `plan` and `pack` have modules of their own.

out/plan.json, plan.jsonl       what is to be rendered, and with which settings
out/journal/NAME.jsonl          one row per attempt; NAME is the scheduler's, one per share
out/status/NAME.json            what a scheduler is doing now
out/objects/ab/UID.tar          a finished object
out/logs/UID.txt                the end of a worker's log after a failure
out/train, out/val              the shards, after packing
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova3d.data.jobs import devices, journal, launchers
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.pack import Packed, pack
from nova3d.data.jobs.plan import PLAN, load_plan, read_plan, write_plan
from nova3d.data.jobs.scheduler import RunSummary, Stop
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason
from nova3d.utils.files import locked, writable_folder
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
_SLOWEST = 5


def run(
    config: RenderConfig, progress: Progress | None = None, stop: Stop | None = None
) -> tuple[RunSummary, Packed | None]:
    """Render what the plan holds and is not done yet, then pack. A job folder without a plan gets one.

    Args:
        config: the job's.
        progress: called after every object.
        stop: set its `reason` to end the run early; objects in flight are finished.

    Returns:
        What this run did and, where the whole job is done and `config.pack` is set, what was packed.

    Raises:
        InputError: where the engine's program is missing, the folder's plan was made with other settings, no worker can
            go on or the disk is full.
    """
    config.check()
    if not (Path(config.out) / PLAN).is_file() and config.pool.launcher != "ray":  # Ray's workers may be elsewhere
        devices.check_engine(config.engine)
    out = writable_folder(config.out)
    with locked(out, name="plan", wait=True):  # the shares of one job start together
        if not (out / PLAN).is_file():
            log.info("%s", write_plan(config, progress))
    assets = load_plan(config).assets()
    summary = launchers.launch(config, assets, progress, stop or Stop())
    if summary.ended or not config.pack:
        return summary, None
    found = journal.outcomes(out, assets, config.pool.strikes)
    waiting = sum(outcome.state == "waiting" for outcome in found.values())
    if waiting:
        log.info("%d objects belong to other shares or are not done: `pack` when all shares have ended", waiting)
        return summary, None
    return summary, pack(config, progress=progress)


def retry(config: RenderConfig, reasons: Collection[str]) -> list[str]:
    """Queue again what was refused or given up for one of `reasons`; the next `run` renders it.

    Args:
        config: the job's.
        reasons: values of `nova3d.rendering.reasons.Reason`.

    Returns:
        The uids of what was queued, in the order of the plan.

    Raises:
        InputError: for an unknown reason.
    """
    if unknown := {*reasons} - {*Reason}:
        raise InputError(f"reason '{min(unknown)}' is not one of {', '.join(sorted(Reason))}")
    out, assets = Path(config.out), read_plan(config.out).assets()
    found = journal.outcomes(out, assets, config.pool.strikes)
    chosen = [asset for asset in assets if found[asset.uid].reason in reasons]
    with contextlib.closing(journal.Journal(out, "retry")) as rows:
        for asset in chosen:
            rows.write(asset, "queued", message=f"retry of {found[asset.uid].reason}")
    return [asset.uid for asset in chosen]


@dataclass(frozen=True)
class Status:
    """Where a job stands; str() is the page that `status` prints.

    Attributes:
        outcomes: of every planned object, by uid.
        schedulers: the status of each; see `journal.read_status`.
    """

    outcomes: dict[str, journal.AssetOutcome]
    schedulers: list[dict[str, Any]]

    @property
    def counts(self) -> Counter[str]:
        """Objects by state."""
        return Counter(outcome.state for outcome in self.outcomes.values())

    @property
    def rate(self) -> float:
        """Objects per second of all schedulers at work."""
        return sum(entry["rate"] for entry in self.schedulers if entry["live"])

    def __str__(self) -> str:
        counts, rate = self.counts, self.rate
        reasons = Counter(outcome.reason for outcome in self.outcomes.values() if outcome.reason)
        slowest = sorted(self.outcomes.items(), key=lambda item: -item[1].seconds)[:_SLOWEST]
        times = [f"{uid} {outcome.seconds:.1f} s" for uid, outcome in slowest if outcome.seconds > 0]
        words = ", ".join(f"{count} {state}" for state, count in counts.most_common())
        lines = [f"{len(self.outcomes)} objects planned: {words}"]
        lines += [f"  {reason:20}{count:8}" for reason, count in reasons.most_common()]
        lines += [f"{rate:.3g} objects/s, {duration(counts['waiting'] / rate)} left"] if rate else []
        lines += [f"slowest: {', '.join(times)}"] if times else []
        lines += [_scheduler_line(status) for status in self.schedulers]
        return "\n".join(lines)


def status(config: RenderConfig) -> Status:
    """Return where a job stands; reads only, also while it runs."""
    out = Path(config.out)
    return Status(journal.outcomes(out, read_plan(out).assets(), config.pool.strikes), journal.read_status(out))


def duration(seconds: float) -> str:
    """Format seconds as "3 h 20 min", "4 min" or "12 s"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _scheduler_line(status: dict[str, Any]) -> str:
    age = duration(status["age"])
    where = f"{status['name']} (process {status['pid']} on {status['host']})"
    if status["live"]:
        in_flight = ", ".join(f"{o['uid']} {o['seconds']:.0f} s" for o in status["in_flight"][:4])
        stopped = "".join(f"; worker {name} stopped: {why}" for name, why in status["stopped_workers"].items())
        return f"{where}: at work" + (f" on {in_flight}" if in_flight else "") + stopped
    if status["state"] == "running":
        return f"{where}: dead since {age}; run again to resume"
    return f"{where}: {status['state']} {age} ago"
