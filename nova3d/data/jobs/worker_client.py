"""A slot at work: starts a worker there, hands it objects, hears how they end, and kills it when it must."""

import logging
import selectors
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.policy import Breaker, Pace, Task
from nova3d.data.jobs.process import WorkerProcess, family_memory
from nova3d.rendering.reasons import Reason

log = logging.getLogger(__name__)
_START_FAILURES = 2


@dataclass(frozen=True)
class Ended:
    """The end of one try of one object. died: its worker is dead. tail: the end of the worker's log."""

    task: Task
    state: str
    reason: Reason | None
    message: str
    seconds: float
    died: bool = False
    tail: str = ""


class Lane:
    """One slot. `stopped` says why no more workers are started here, "" while it works."""

    def __init__(self, slot: Slot, name: str, config: RenderConfig, pace: Pace, scratch: Path):
        self.slot, self.name = slot, name
        self.breaker = Breaker(config.pool)
        self.task: Task | None = None
        self.stopped = ""
        self.served = 0  # objects that this process was given
        self.views = 0  # of the object in flight
        self._config, self._pace, self._scratch = config, pace, scratch
        self._process: WorkerProcess | None = None
        self._ready = False
        self._began = self._beat = 0.0  # the process's start or the object's; the last sign of life
        self._start_failures = 0

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running worker, 0 without one."""
        return self._process.pid if self._process else 0

    @property
    def free(self) -> bool:
        """Whether it can be given an object now."""
        return self._ready and self.task is None

    @property
    def device(self) -> str:
        return self.slot.gpu or "cpu"

    def start(self, config_file: Path, selector: selectors.BaseSelector) -> None:
        self._process = WorkerProcess(self.slot, config_file, self.name, self._scratch / self.name)
        self._ready, self.served, self._began = False, 0, time.monotonic()
        self._selector = selector
        selector.register(self._process, selectors.EVENT_READ, self)

    def give(self, task: Task, path: Path, target: Path) -> None:
        """Have `path` rendered into `target`. A worker that is dead already is noticed by `listen`."""
        assert self._process is not None and self.task is None
        self.task, self.views, self.served = task, 0, self.served + 1
        self._began = self._beat = time.monotonic()
        self._process.clear_log()
        self._process.send({"asset": task.asset.to_row(), "path": str(path), "target": str(target)})

    def listen(self) -> Ended | None:
        """Read what the worker says; returns the end of the object in flight, if it came to one."""
        assert self._process is not None
        ended = None
        messages, alive = self._process.receive()
        for message in messages:
            match message["event"]:
                case "ready":
                    self._greet(message["engine"])
                case "beat":
                    self._note_beat(message["views"])
                case "end":
                    ended = self._end(message)
                case "fault":
                    self._fail_start(message["message"], final=message["reason"] == Reason.DEVICE)
            if self._process is None:
                return None
        return ended if alive else self._bury() or ended

    def watch(self, memory: int | None, limit_bytes: int) -> Ended | None:
        """Kill the worker if it hangs, takes too long or (where its memory has been measured) too much of that."""
        now = time.monotonic()
        if self._process is None:
            return None
        if not self._ready:
            if now - self._began > (limit := self._config.pool.start_seconds):
                self._fail_start(f"no answer within {limit:g} s", final=False)
            return None
        if self.task is None:
            return None
        last = self.task.last_try(self._config.pool.strikes)
        if now - self._beat > (limit := self._pace.silence(last)):
            return self._kill(Reason.TIMEOUT, f"no progress for {limit:.3g} s after view {self.views}")
        if now - self._began > (limit := self._pace.total(last)):
            return self._kill(Reason.TIMEOUT, f"not finished within {limit:g} s")
        if memory is not None and memory > limit_bytes:
            return self._kill(Reason.OUT_OF_MEMORY, f"its worker grew to {memory / 1e9:.1f} GB")
        return None

    def worn(self, reason: Reason | None) -> bool:
        """Whether the next object deserves a fresh worker, after one that ended with `reason`."""
        if self._process is None:
            return False
        pool = self._config.pool
        if reason in (Reason.OUT_OF_MEMORY, Reason.DEVICE, Reason.CRASH) or self.served >= pool.recycle_objects:
            return True
        return family_memory([self._process.pid])[self._process.pid] > pool.recycle_gb * 1e9

    def part(self) -> None:
        """Be rid of the process: politely when it is idle, by force when it is not."""
        if self._process is None:
            return
        self._selector.unregister(self._process)
        process, self._process, idle, self._ready = self._process, None, self.free, False
        if idle:
            process.finish()
        else:
            process.kill()

    def seconds(self) -> float:
        """How long the object in flight, or the start, has taken."""
        return time.monotonic() - self._began

    def _greet(self, engine: dict[str, Any]) -> None:
        """A worker is ready: is it on the device that was asked for? An engine may fall back to the CPU in silence."""
        asked, found = self._config.engine.device, str(engine.get("device"))
        if found.partition(":")[0] != asked:
            self._fail_start(f"{Reason.DEVICE}: it runs on '{found}', asked was '{asked}'", final=True)
            return
        self._ready, self._start_failures = True, 0

    def _fail_start(self, why: str, final: bool) -> None:
        self._start_failures += 1
        log.warning("worker %s cannot start: %s", self.slot.name, why)
        if final or self._start_failures >= _START_FAILURES:
            self.stopped = why
        self.part()

    def _note_beat(self, views: int) -> None:
        now = time.monotonic()
        if views > max(1, self.views):  # the first view carries the loading
            self._pace.note((now - self._beat) / (views - self.views))
        self.views, self._beat, self._pace.warm = views, now, self._pace.warm or views > 0

    def _end(self, message: dict[str, Any]) -> Ended:
        assert self._process is not None and self.task is not None
        reason = Reason(message["reason"]) if message["reason"] else None
        tail = self._process.tail() if message["state"] == "failed" else ""
        ended = Ended(self.task, message["state"], reason, message["message"], self.seconds(), tail=tail)
        self.task = None
        return ended

    def _kill(self, reason: Reason, message: str) -> Ended:
        assert self._process is not None and self.task is not None
        log.warning("worker %s killed at object %s: %s", self.slot.name, self.task.asset.uid, message)
        ended = Ended(self.task, "failed", reason, message, self.seconds(), True, self._process.tail())
        self.part()
        self.task = None
        return ended

    def _bury(self) -> Ended | None:
        """The worker has died by itself."""
        assert self._process is not None
        process, was_ready, tail = self._process, self._ready, self._process.tail()
        self._selector.unregister(process)
        self._process, self._ready = None, False
        why = f"the worker died: {process.wait()}"
        last_line = tail.splitlines()[-1][:200] if tail else ""
        why += f" | stderr: {last_line}" if last_line else ""
        if self.task:
            ended = Ended(self.task, "failed", Reason.CRASH, why, self.seconds(), True, tail)
            self.task = None
            return ended
        if not was_ready:
            self._fail_start(why, final=False)
        return None
