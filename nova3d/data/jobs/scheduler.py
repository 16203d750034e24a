"""The render pool: one parent, a worker per slot, and every way in which a worker or an object can go wrong.

One thread turns the loop: start workers, hand out objects, hear how they end, kill what hangs or grows. Objects are
rendered and committed by the workers; the parent keeps the journal.
"""

import contextlib
import hashlib
import logging
import selectors
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from nova3d import config as configs
from nova3d.data.assets import Asset
from nova3d.data.jobs.backlog import Backlog, Tally
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.journal import Journal, object_path, write_status
from nova3d.data.jobs.policy import Pace, Task
from nova3d.data.jobs.process import family_memory
from nova3d.data.jobs.worker_client import Ended, Lane
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]  # done, total, message

_TICK_SECONDS = 0.25
_MEMORY_SECONDS = 1.0
_STATUS_SECONDS = 2.0


@dataclass
class Stop:
    """Asks a running pool to finish what is in flight and return; `reason` says who asked."""

    reason: str = ""


class Pool:
    """Renders `tasks` on `slots`. name: of this parent's journal, status and temporary files in the job folder.
    fetch: brings an object's file, see Source."""

    def __init__(
        self,
        config: RenderConfig,
        tasks: Iterable[Task],
        slots: list[Slot],
        name: str,
        fetch: Callable[[Asset, Path], Path],
    ):
        self.config, self.name, self.out = config, name, Path(config.out)
        self._scratch = scratch_folder(config, name)
        self._tasks, self._fetch = list(tasks), fetch
        pace = Pace(config.pool, warm=not any(slot.gpu for slot in slots))
        self._pace = pace
        self._lanes = [Lane(slot, f"{name}-{i}", config, pace, self._scratch) for i, slot in enumerate(slots)]
        self._selector = selectors.DefaultSelector()
        self._status_due = self._memory_due = 0.0

    def run(self, progress: Progress | None = None, stop: Stop | None = None) -> Tally:
        """Render until nothing is left or `stop` asks to end; then `ended` of the result says who asked.

        Raises InputError where no worker can go on or the disk cannot be written; what was rendered before stays.
        """
        stop = stop or Stop()
        self._progress = progress
        try:
            with contextlib.closing(Journal(self.out, self.name)) as journal:
                self._open(journal)
                try:
                    self._work(stop)
                finally:
                    self._close()
        except OSError as error:
            raise InputError(f"cannot go on in '{self.out}': {error.strerror or error}; run again to resume") from error
        tally = self._backlog.tally
        if self._backlog.gave_up:
            raise InputError(f"{self._backlog.gave_up}; {tally} so far, run again to resume")
        return replace(tally, ended=stop.reason)

    def _open(self, journal: Journal) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        for stale in (self.out / "objects").glob(f"*/*.{self.name}-*.part"):
            stale.unlink()
        engine = self.config.engine
        threads = engine.threads or self._lanes[0].slot.threads
        self._config_file = self._scratch / "config.yaml"
        configs.save(replace(self.config, engine=replace(engine, threads=threads)), self._config_file)
        fetcher = Fetcher(self._fetch, self._scratch / "fetch", max(2, len(self._lanes)))
        self._selector.register(fetcher, selectors.EVENT_READ, None)
        self._backlog = Backlog(self.config.pool, self._tasks, self.out, journal, fetcher)

    def _work(self, stop: Stop) -> None:
        while not (stop.reason or self._backlog.gave_up) and (self._backlog or self._busy()):
            self._start_workers()
            self._backlog.fetch_ahead(len(self._lanes))
            self._assign()
            self._turn()
        self._drain(stop)

    def _close(self) -> None:
        for lane in self._lanes:
            lane.part()
        self._selector.close()
        self._backlog.fetcher.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # a full disk may be what ended the pool
            self._report("stopped" if self._backlog or self._backlog.gave_up else "finished")

    def _busy(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.task]

    def _start_workers(self) -> None:
        if all(lane.stopped for lane in self._lanes):
            why = "; ".join(f"{lane.slot.name}: {lane.stopped}" for lane in self._lanes[:4])
            self._backlog.gave_up = f"every worker stopped ({why})"
            return
        for lane in self._lanes:
            if lane.running or lane.stopped or not self._backlog:
                continue
            if not self._pace.warm and any(other.running for other in self._lanes):
                return  # the first worker compiles the kernels that the others will find in the cache
            lane.start(self._config_file, self._selector)

    def _assign(self) -> None:
        strikes = self.config.pool.strikes
        for lane in self._lanes:
            task, others = self._backlog.next(), [busy.task for busy in self._busy() if busy.task]
            if task is None or (others and (task.alone or any(other.alone for other in others))):
                return
            if not lane.free:
                continue
            if task.last_try(strikes) and lane.served:
                lane.part()  # a last try is made on a fresh worker
                continue
            task, path = self._backlog.take()
            lane.give(task, path, object_path(self.out, task.asset.uid))

    def _turn(self) -> None:
        """Hear whoever has something to say, for at most a tick; then look after the rest."""
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.data is not None and (ended := key.data.listen()):
                self._settle(key.data, ended)
        self._backlog.collect()
        now = time.monotonic()
        memory: dict[int, int] = {}
        if now >= self._memory_due:
            self._memory_due = now + _MEMORY_SECONDS
            memory = family_memory(lane.pid for lane in self._busy())
        for lane in self._lanes:
            if ended := lane.watch(memory.get(lane.pid), self._memory_limit(lane)):
                self._settle(lane, ended)
        if now >= self._status_due:
            self._status_due = now + _STATUS_SECONDS
            self._report("running")

    def _memory_limit(self, lane: Lane) -> int:
        whole = lane.task is not None and lane.task.alone and not self.config.pool.memory_gb
        return lane.slot.memory_bytes * (len(self._lanes) if whole else 1)

    def _settle(self, lane: Lane, ended: Ended) -> None:
        """A try has ended: the object's verdict, then the worker's."""
        task, reason = ended.task, ended.reason
        if ended.tail:
            path = self.out / "logs" / f"{task.asset.uid}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(ended.tail + "\n")
        if reason is Reason.WRITE_ERROR:
            self._backlog.gave_up = ended.message
            self._backlog.put_back(task)
            return
        self._backlog.settle(
            task, ended.state, reason, ended.message, ended.seconds, lane.slot.name, lane.device, ended.died
        )
        if why := lane.breaker.note(task, reason):
            log.error("worker %s stops: %s; its last %d objects again", lane.slot.name, why, len(lane.breaker.recent))
            lane.stopped = why
            lane.part()
            self._backlog.queue_suspects(lane.breaker.recent, why)
        elif lane.worn(reason):
            lane.part()
        if self._progress:
            tally = self._backlog.tally
            self._progress(tally.total, self._backlog.total, str(tally))

    def _drain(self, stop: Stop) -> None:
        """Let the objects in flight end, for a bounded time."""
        until = time.monotonic() + self.config.pool.drain_seconds
        if stop.reason:
            log.info("%s: finishing %d objects in flight", stop.reason, len(self._busy()))
        while self._busy() and time.monotonic() < until:
            self._turn()

    def _report(self, state: str) -> None:
        """Show what is going on to `status`."""
        backlog, rate = self._backlog, self._backlog.rate()
        left = backlog.total - backlog.tally.total
        status = {
            "state": state,
            "planned": backlog.total,
            "counts": dict(backlog.tally.states),
            "reasons": dict(backlog.tally.reasons),
            "rate": round(rate, 4),
            "eta_seconds": round(left / rate) if rate else None,
            "in_flight": [
                {"uid": lane.task.asset.uid, "worker": lane.slot.name, "views": lane.views, "seconds": lane.seconds()}
                for lane in self._lanes
                if lane.task
            ],
            "stopped_workers": {lane.slot.name: lane.stopped for lane in self._lanes if lane.stopped},
        }
        write_status(self.out, self.name, status)


def scratch_folder(config: RenderConfig, name: str) -> Path:
    """Temporary files of one parent: the same folder in every run, so that a new run clears what a killed one left."""
    base = Path(config.pool.scratch or tempfile.gettempdir())
    key = hashlib.sha256(str(Path(config.out).resolve()).encode()).hexdigest()[:12]
    return base / f"nova3d-render-{key}-{name}"
