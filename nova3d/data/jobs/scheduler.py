"""The scheduler of a render job: one process that hands objects to a pool of workers and keeps the journal.

One thread runs the loop: start workers, hand out objects, read their results, kill what hangs or grows. The workers
render and commit the objects.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import cast

from nova3d import config as configs
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.journal import Journal, object_path, write_status
from nova3d.data.jobs.policy import Result, Task, Timeouts, outcome_state
from nova3d.data.jobs.worker_client import WorkerClient, process_tree_memory
from nova3d.data.sources import Asset
from nova3d.errors import InputError, system_reason
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import write_text
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.25
_MEMORY_SECONDS = 1.0
_STATUS_SECONDS = 2.0
_RATE_SECONDS = 600.0
_FETCH_FAILURES = 20  # in a row: the network is at fault, not the objects


@dataclass
class Stop:
    """Makes a running pool finish what is in flight and return; `reason` is the name of the signal."""

    reason: str = ""


@dataclass
class RunSummary:
    """What one run did.

    Attributes:
        states: objects by state.
        reasons: objects by reason.
        ended: why the run ended early, "" where it did not.
    """

    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ended: str = ""

    def count(self, reason: Reason | None, change: int = 1) -> None:
        """Add an object that ended with `reason` (None: done), or take it back with change=-1."""
        self.states[outcome_state(reason)] += change
        if reason is not None:
            self.reasons[str(reason)] += change

    @property
    def total(self) -> int:
        """Objects that have a result."""
        return sum(self.states.values())

    def __str__(self) -> str:
        words = [f"{self.states[state]} {state}" for state in ("done", "refused", "failed")]
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common() if count)
        return ", ".join(words) + (f" ({reasons})" if reasons else "")


class TaskQueue:
    """Every task that is not on a worker: pending, being fetched, ready, or waiting for another try.

    Attributes:
        summary: the results so far.
        total: tasks in all.
        fatal: why the job cannot go on, "" while it can.
    """

    def __init__(self, config: RenderConfig, tasks: Iterable[Task], journal: Journal, fetcher: Fetcher):
        self.summary = RunSummary()
        self.fatal = ""
        self._pool, self._out, self._journal, self._fetcher = config.pool, Path(config.out), journal, fetcher
        self._pending = deque(tasks)
        self.total = len(self._pending)
        self._retries: deque[Task] = deque()  # after everything else
        self._fetching: list[tuple[Task, Future[Path], float]] = []  # with the time of its start
        self._ready: deque[tuple[Task, Path]] = deque()
        self._failed_fetches: list[Task] = []  # in a row
        self._finish_times: deque[float] = deque(maxlen=10_000)

    def __bool__(self) -> bool:
        return bool(self._pending or self._retries or self._fetching or self._ready)

    def peek(self) -> Task | None:
        """Return the task that `pop` would give, None while nothing is fetched."""
        return self._ready[0][0] if self._ready else None

    def pop(self) -> tuple[Task, Path]:
        """Return the next task and its mesh file."""
        return self._ready.popleft()

    def fetch_ahead(self, workers: int) -> None:
        """Keep as many objects fetched, or being fetched, as the workers soon need."""
        room = self._pool.fetch_ahead * workers - len(self._fetching) - len(self._ready)
        while room > 0 and (self._pending or self._retries):
            task = (self._pending or self._retries).popleft()
            self._fetching.append((task, self._fetcher.request(task.asset), time.monotonic()))
            room -= 1

    def collect_fetched(self) -> None:
        """Take in the fetches that ended since the last call; one that takes too long has failed."""
        limit, now = self._pool.fetch_seconds, time.monotonic()
        for entry in [entry for entry in self._fetching if entry[1].done() or now - entry[2] > limit]:
            self._fetching.remove(entry)
            task, future, _ = entry
            try:
                self._ready.append((task, future.result(timeout=0)))
                self._failed_fetches.clear()
                continue
            except RenderError as failure:
                error = failure
            except TimeoutError:
                error = RenderError(Reason.FETCH_FAILED, f"not fetched within {limit:g} s")
            self.finish(Result(task, error.reason, str(error)))
            if error.reason is Reason.FETCH_FAILED:
                self._failed_fetches.append(task)
        if len(self._failed_fetches) >= _FETCH_FAILURES and not self.fatal:
            self.fatal = f"{len(self._failed_fetches)} fetches in a row failed, the last: {error}"
            for task in self._failed_fetches:
                self._journal.write(task.asset, "queued", message="its failed fetch does not count")

    def finish(self, result: Result) -> None:
        """Write a result to the journal; where another try may help, queue the task again."""
        task, reason, state, strikes = result.task, result.reason, outcome_state(result.reason), self._pool.strikes
        if reason is Reason.WRITE_ERROR:  # not the object's fault: the try does not count
            self.fatal = result.message
            self._pending.appendleft(task)
            return
        self._fetcher.discard(task.asset.uid)
        attempt = 0
        if reason is not None and reason.transient:
            task.record_failure(reason, result.worker_died)
            attempt = max(task.failures, strikes) if task.given_up(strikes) else task.failures
        self._journal.write(
            task.asset, state, reason or "", result.message, attempt, result.seconds, result.worker, result.device
        )
        if reason is not None:
            log.info("object %s %s (%s: %s)", task.asset.uid, state, reason, result.message)
        if state == "failed" and not task.given_up(strikes):
            self._retries.append(task)
            return
        self.summary.count(reason)
        self._finish_times.append(time.monotonic())

    def requeue(self, recent: Iterable[tuple[Task, Reason | None]], why: str) -> None:
        """Discard the recent results of a faulty worker; its objects are rendered again."""
        for task, found in {task.asset.uid: (task, reason) for task, reason in recent}.values():  # the latest of each
            if found is not None and found.transient and not task.given_up(self._pool.strikes):
                continue  # is tried again anyway
            reason = task.reason if found is not None and found.transient else found  # the last try counts
            object_path(self._out, task.asset.uid).unlink(missing_ok=True)
            self._journal.write(task.asset, "queued", message=f"suspect: {why}")
            self.summary.count(reason, -1)
            self._pending.append(Task(task.asset, suspect=True))

    def rate(self) -> float:
        """Return the objects per second over the last ten minutes."""
        now = time.monotonic()
        while self._finish_times and now - self._finish_times[0] > _RATE_SECONDS:
            self._finish_times.popleft()
        return len(self._finish_times) / max(1e-3, now - self._finish_times[0]) if self._finish_times else 0.0


class RenderPool:
    """Renders objects with one worker per slot.

    Args:
        config: the job's.
        slots: where workers run.
        name: of this process's journal, status and temporary files in the job folder.
        progress: called after every object.
    """

    def __init__(self, config: RenderConfig, slots: list[Slot], name: str, progress: Progress | None):
        self.config, self.name, self.out, self._progress = config, name, Path(config.out), progress
        self._scratch = scratch_folder(config, name)  # made when the run starts
        self._timeouts = Timeouts(config.pool, warm=not any(slot.gpu for slot in slots))
        self._workers = [
            WorkerClient(slot, f"{name}-{i}", config, self._timeouts, self._scratch) for i, slot in enumerate(slots)
        ]
        self._status_due = self._memory_due = 0.0

    def run(self, tasks: Iterable[Task], fetch: Callable[[Asset, Path], Path], stop: Stop) -> RunSummary:
        """Render until nothing is left or `stop` has a reason.

        Args:
            tasks: what to render.
            fetch: downloads or finds an object's file; see `Source.fetch`.
            stop: checked all the time; objects in flight are finished.

        Returns:
            What was done; `ended` is the reason of `stop`.

        Raises:
            InputError: where no worker can go on or the disk cannot be written; what was rendered before stays.
        """
        try:
            with contextlib.closing(Journal(self.out, self.name)) as journal:
                self._clear_leftovers()
                self._queue = TaskQueue(self.config, tasks, journal, Fetcher(fetch, self._scratch / "fetch"))
                try:
                    while not (stop.reason or self._queue.fatal) and (self._queue or self._busy()):
                        self._start_workers()
                        self._queue.fetch_ahead(len(self._workers))
                        self._assign()
                        self._poll()
                    self._drain(stop)
                finally:
                    self._close()
        except OSError as error:
            raise InputError(f"cannot go on in '{self.out}': {system_reason(error)}; run again to resume") from error
        if self._queue.fatal:
            raise InputError(f"{self._queue.fatal}; {self._queue.summary} so far, run again to resume")
        return replace(self._queue.summary, ended=stop.reason)

    def _clear_leftovers(self) -> None:
        """Remove what a killed run left, and write the workers' config."""
        base, prefix = self._scratch.parent, self._scratch.name.rpartition("-")[0]
        base.mkdir(parents=True, exist_ok=True)
        for left in base.glob(f"{prefix}-*"):
            if left.is_dir() and not left.is_symlink() and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
        self._scratch.mkdir(mode=0o700)
        for stale in (self.out / "objects").glob(f"*/*.{self.name}-*.part"):
            stale.unlink()
        engine = self.config.engine
        threads = engine.threads or self._workers[0].slot.threads
        self._config_file = self._scratch / "config.yaml"
        configs.save(replace(self.config, engine=replace(engine, threads=threads)), self._config_file)

    def _close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # a full disk may be what ended the pool
            self._write_status("stopped" if self._queue or self._queue.fatal else "finished")

    def _busy(self) -> list[WorkerClient]:
        return [worker for worker in self._workers if worker.task]

    def _start_workers(self) -> None:
        if all(worker.stopped for worker in self._workers):
            why = "; ".join(f"{worker.slot.name}: {worker.stopped}" for worker in self._workers[:4])
            self._queue.fatal = f"every worker stopped ({why})"
            return
        for worker in self._workers:
            if worker.process or worker.stopped or not self._queue:
                continue
            if not self._timeouts.warm and any(other.process for other in self._workers):
                return  # the first worker compiles the kernels that the others will find in the cache
            worker.start(self._config_file)

    def _assign(self) -> None:
        """Give fetched objects to idle workers."""
        for worker in self._workers:
            task, others = self._queue.peek(), [busy.task for busy in self._busy() if busy.task]
            if task is None or (others and (task.exclusive or any(other.exclusive for other in others))):
                return
            if not worker.idle:
                continue
            if task.last_try(self.config.pool.strikes) and worker.served:
                worker.terminate()  # a last try is made on a fresh worker
                continue
            task, path = self._queue.pop()
            worker.submit(task, path, object_path(self.out, task.asset.uid))

    def _poll(self) -> None:
        """Wait for messages, for a bounded time, and enforce the workers' limits."""
        pipes = {worker.process.fileno(): worker for worker in self._workers if worker.process}
        for pipe in connection.wait(pipes, _POLL_SECONDS):
            worker = pipes[cast(int, pipe)]
            if result := worker.receive():
                self._handle(worker, result)
        self._queue.collect_fetched()
        now = time.monotonic()
        memory: dict[int, int] = {}
        if now >= self._memory_due:
            self._memory_due = now + _MEMORY_SECONDS
            memory = process_tree_memory(worker.process.pid for worker in self._busy() if worker.process)
        for worker in self._workers:
            used = memory.get(worker.process.pid) if worker.process else None
            if result := worker.enforce_limits(used, self._memory_limit(worker)):
                self._handle(worker, result)
        if now >= self._status_due:
            self._status_due = now + _STATUS_SECONDS
            self._write_status("running")

    def _memory_limit(self, worker: WorkerClient) -> int:
        """Return a worker's bytes: its share, or all shares for an object that runs alone."""
        alone = worker.task is not None and worker.task.exclusive and not self.config.pool.memory_gb
        return worker.slot.memory_bytes * (len(self._workers) if alone else 1)

    def _handle(self, worker: WorkerClient, result: Result) -> None:
        """Record a result, then decide whether its worker goes on."""
        uid, reason = result.task.asset.uid, result.reason
        if result.log:
            write_text(self.out / "logs" / f"{uid}.txt", result.log + "\n")
        self._queue.finish(result)
        if reason is Reason.WRITE_ERROR:
            return
        if why := worker.breaker.record(result.task, reason):
            recent = worker.breaker.recent
            log.error("worker %s stops: %s; its last %d objects again", worker.slot.name, why, len(recent))
            worker.stopped = why
            worker.terminate()
            self._queue.requeue(recent, why)
        elif worker.needs_recycling(reason):
            worker.terminate()
        if self._progress:
            summary = self._queue.summary
            self._progress(summary.total, self._queue.total, f"rendering, {summary}")

    def _drain(self, stop: Stop) -> None:
        """Let the objects in flight end, for a bounded time."""
        until = time.monotonic() + self.config.pool.drain_seconds
        if stop.reason:
            log.info("%s: finishing %d objects in flight", stop.reason, len(self._busy()))
        while self._busy() and time.monotonic() < until:
            self._poll()

    def _write_status(self, state: str) -> None:
        queue, rate = self._queue, self._queue.rate()
        in_flight = [
            {"uid": worker.task.asset.uid, "worker": worker.slot.name, "views": worker.views, "seconds": worker.seconds}
            for worker in self._workers
            if worker.task
        ]
        status = {
            "state": state,
            "planned": queue.total,
            "counts": dict(queue.summary.states),
            "reasons": dict(queue.summary.reasons),
            "rate": round(rate, 4),
            "eta_seconds": round((queue.total - queue.summary.total) / rate) if rate else None,
            "in_flight": in_flight,
            "stopped_workers": {worker.slot.name: worker.stopped for worker in self._workers if worker.stopped},
        }
        write_status(self.out, self.name, status)


def scratch_folder(config: RenderConfig, name: str) -> Path:
    """Return a folder for temporary files with an unpredictable name.

    The part before the last "-" names the job and its share, so that a new run finds and clears what a killed one left.
    """
    base = Path(config.pool.scratch or tempfile.gettempdir())
    key = hashlib.sha256(os.fsencode(Path(config.out).resolve())).hexdigest()[:12]
    return base / f"nova3d-render-{key}-{name}-{os.urandom(8).hex()}"
