"""The scheduler of a render job: one process that hands objects to a pool of workers and keeps the journal.

One thread runs the loop: start workers, hand out objects, read their results, kill workers that hang or use too much
memory. The workers render the objects and write their tars.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path

from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.journal import Journal, object_path, write_status
from nova3d.data.jobs.policy import Attempt, RenderTask, Timeouts, outcome_state
from nova3d.data.jobs.worker_client import WorkerClient, group_memory
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import write_text
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.25
_MEMORY_SECONDS = 1.0
_STATUS_SECONDS = 2.0
_RATE_SECONDS = 600.0
_FETCH_FAILURES = 20  # in a row; more mean that the network is down


@dataclass
class Stop:
    """Asks a scheduler to finish the objects in flight and return; `reason` is the name of the signal."""

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
    """Every task that is not on a worker: pending, being fetched, or ready.

    Attributes:
        ready: the next tasks with their fetched mesh files.
        summary: the results so far.
        total: tasks in all.
        fatal: why the job cannot go on, "" while it can.
    """

    def __init__(self, config: RenderConfig, tasks: Iterable[RenderTask], journal: Journal, fetcher: Fetcher):
        self.ready: deque[tuple[RenderTask, Path]] = deque()
        self.summary, self.fatal = RunSummary(), ""
        self._pool, self._out, self._journal, self._fetcher = config.pool, Path(config.out), journal, fetcher
        self._pending = deque(tasks)
        self.total = len(self._pending)
        self._fetching: dict[Future[Path | RenderError], tuple[RenderTask, float]] = {}  # with the time of its start
        self._failed_fetches: list[Attempt] = []  # in a row
        self._finish_times: deque[float] = deque(maxlen=10_000)

    def __bool__(self) -> bool:
        return bool(self._pending or self._fetching or self.ready)

    def fetch_ahead(self, workers: int) -> None:
        """Keep as many objects fetched, or being fetched, as the workers soon need."""
        while self._pending and len(self._fetching) + len(self.ready) < self._pool.fetch_ahead * workers:
            task = self._pending.popleft()
            self._fetching[self._fetcher.request(task.asset)] = task, time.monotonic()

    def collect_fetched(self) -> None:
        """Take in the fetches that ended since the last call; one that takes too long has failed."""
        limit, now = self._pool.fetch_seconds, time.monotonic()
        late = RenderError(Reason.FETCH_FAILED, f"not fetched within {limit:g} s")
        for future, (task, began) in list(self._fetching.items()):
            if not future.done() and now - began <= limit:
                continue
            del self._fetching[future]
            fetched = future.result() if future.done() else late
            if isinstance(fetched, Path):
                self.ready.append((task, fetched))
                self._failed_fetches.clear()
                continue
            attempt = Attempt(task, fetched.reason, str(fetched))
            self.finish(attempt)
            if attempt.reason is Reason.FETCH_FAILED:
                self._failed_fetches.append(attempt)
        if len(self._failed_fetches) >= _FETCH_FAILURES and not self.fatal:
            last = self._failed_fetches[-1].message
            self.fatal = f"{len(self._failed_fetches)} fetches in a row failed, the last: {last}"
            for attempt in self._failed_fetches:
                self._journal.write(attempt.task.asset, "queued", message="its failed fetch does not count")

    def finish(self, attempt: Attempt) -> None:
        """Write an attempt to the journal; where another one may help, queue the task again, behind all others."""
        task, reason, strikes = attempt.task, attempt.reason, self._pool.strikes
        if reason is Reason.WRITE_ERROR:  # not the object's fault: the attempt does not count
            self.fatal = attempt.message
            self._pending.appendleft(task)
            return
        self._fetcher.discard(task.asset.uid)
        state, number, again = outcome_state(reason), 0, False
        if reason is not None and reason.transient:
            task.record_failure(reason, attempt.worker_died)
            again = not task.given_up(strikes)
            number = task.failures if again else max(task.failures, strikes)
        self._journal.write(
            task.asset, state, reason or "", attempt.message, number, attempt.seconds, attempt.worker, attempt.device
        )
        if reason is not None:
            log.info("object %s %s (%s: %s)", task.asset.uid, state, reason, attempt.message)
        if again:
            self._pending.append(task)
            return
        self.summary.count(reason)
        self._finish_times.append(time.monotonic())

    def requeue(self, attempts: Iterable[Attempt], why: str) -> None:
        """Discard the recent results of a faulty worker; its objects are rendered again."""
        for attempt in {attempt.task.asset.uid: attempt for attempt in attempts}.values():  # the latest of each object
            task, reason = attempt.task, attempt.reason
            if reason is not None and reason.transient:
                if not task.given_up(self._pool.strikes):
                    continue  # is queued already
                reason = task.reason  # the last attempt counts
            object_path(self._out, task.asset.uid).unlink(missing_ok=True)
            self._journal.write(task.asset, "queued", message=f"suspect: {why}")
            self.summary.count(reason, -1)
            self._pending.append(RenderTask(task.asset, suspect=True))

    def rate(self) -> float:
        """Return the objects per second over the last ten minutes."""
        now = time.monotonic()
        recent = [finished for finished in self._finish_times if now - finished <= _RATE_SECONDS]
        return len(recent) / max(1e-3, now - recent[0]) if recent else 0.0


class Scheduler:
    """Hands the tasks of a queue to one worker per slot, and enforces the limits of the workers.

    Args:
        config: the job's.
        slots: where workers run.
        name: the share's; the workers and the status are named after it.
        queue: what is rendered.
        scratch: holds the workers' temporary files and logs.
        progress: called as (objects with a result, objects, line) after every attempt.
    """

    def __init__(
        self,
        config: RenderConfig,
        slots: list[Slot],
        name: str,
        queue: TaskQueue,
        scratch: Path,
        progress: Progress | None,
    ):
        self._pool, self._out, self._name = config.pool, Path(config.out), name
        self._queue, self._progress = queue, progress
        self._timeouts = Timeouts(config.pool, warm=not any(slot.gpu for slot in slots))
        self._workers = [
            WorkerClient(slot, f"{name}-{i}", config, self._timeouts, scratch) for i, slot in enumerate(slots)
        ]
        self._status_due = self._memory_due = 0.0

    def run(self, stop: Stop) -> None:
        """Render until nothing is left, the job cannot go on or `stop` has a reason; then drain for a bounded time.

        The workers end in any case.

        Args:
            stop: checked all the time; objects in flight are finished, for at most `pool.drain_seconds`.

        Raises:
            OSError: where the disk cannot be written.
        """
        try:
            while not (stop.reason or self._queue.fatal) and (self._queue or self._in_flight()):
                self._start_workers()
                self._queue.fetch_ahead(len(self._workers))
                self._assign()
                self._poll()
            if stop.reason:
                log.info("%s: finishing %d objects in flight", stop.reason, len(self._in_flight()))
            until = time.monotonic() + self._pool.drain_seconds
            while self._in_flight() and time.monotonic() < until:
                self._poll()
        finally:
            for worker in self._workers:
                worker.terminate()
            with contextlib.suppress(OSError):  # a full disk may be what ended the run
                self._write_status("stopped" if self._queue or self._queue.fatal else "finished")

    def _in_flight(self) -> list[RenderTask]:
        return [worker.task for worker in self._workers if worker.task]

    def _start_workers(self) -> None:
        if all(worker.stopped for worker in self._workers):
            why = "; ".join(f"{worker.slot.name}: {worker.stopped}" for worker in self._workers[:4])
            self._queue.fatal = f"every worker stopped ({why})"
            return
        for worker in self._workers:
            if worker.pipe or worker.stopped or not self._queue:
                continue
            if not self._timeouts.warm and any(other.pipe for other in self._workers):
                return  # the first worker compiles the kernels that the others will find in the cache
            worker.start()

    def _assign(self) -> None:
        """Give fetched objects to idle workers."""
        for worker in self._workers:
            if not self._queue.ready:
                return
            (task, path), others = self._queue.ready[0], self._in_flight()
            if others and any(each.exclusive for each in (task, *others)):
                return
            if worker.idle and worker.served and task.last_attempt(self._pool.strikes):
                worker.terminate()  # the last attempt is made on a fresh worker
            elif worker.idle:
                self._queue.ready.popleft()
                worker.submit(task, path)

    def _poll(self) -> None:
        """Wait for messages, for a bounded time, and enforce the workers' limits."""
        ready = connection.wait([worker.pipe for worker in self._workers if worker.pipe], _POLL_SECONDS)
        self._queue.collect_fetched()
        now = time.monotonic()
        memory: Counter[int] = Counter()
        if now >= self._memory_due:
            memory, self._memory_due = group_memory(), now + _MEMORY_SECONDS
        for worker in self._workers:
            # A task that ran out of memory before has the shares of all workers.
            alone = worker.task is not None and worker.task.exclusive and not self._pool.memory_gb
            limit = worker.slot.memory_bytes * (len(self._workers) if alone else 1)
            ended = worker.receive() if worker.pipe in ready else None
            if attempt := ended or worker.enforce_limits(memory[worker.pid], limit):
                self._handle(worker, attempt)
        if now >= self._status_due:
            self._status_due = now + _STATUS_SECONDS
            self._write_status("running")

    def _handle(self, worker: WorkerClient, attempt: Attempt) -> None:
        """Record an attempt, then decide whether its worker goes on."""
        if attempt.log:
            write_text(self._out / "logs" / f"{attempt.task.asset.uid}.txt", attempt.log + "\n")
        self._queue.finish(attempt)
        if attempt.reason is Reason.WRITE_ERROR:
            return
        if why := worker.breaker.record(attempt):
            recent = worker.breaker.recent
            log.error("worker %s stopped: %s; its last %d objects are queued again", worker.slot.name, why, len(recent))
            worker.stopped = why
            worker.terminate()
            self._queue.requeue(recent, why)
        elif worker.needs_recycling(attempt.reason):
            worker.terminate()
        if self._progress:
            summary = self._queue.summary
            self._progress(summary.total, self._queue.total, f"rendering, {summary}")

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
        write_status(self._out, self._name, status)


@contextlib.contextmanager
def scratch_folder(config: RenderConfig, name: str) -> Iterator[Path]:
    """Make a private folder for temporary files, and remove it when the block ends.

    Its name begins with the job and the share and ends unpredictably. What a killed run of the same share left is
    removed first: hold the share's journal.
    """
    base = Path(config.pool.scratch or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(os.fsencode(Path(config.out).resolve())).hexdigest()[:12]
    prefix = f"nova3d-render-{key}-{name}-"
    for left in base.glob(f"{prefix}*"):
        if left.is_dir() and not left.is_symlink() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
