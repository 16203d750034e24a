"""The objects of a pool from plan to verdict: what is left, what is being fetched, what came of it."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nova3d.data.jobs.config import PoolConfig
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.journal import Journal, object_path
from nova3d.data.jobs.policy import Task
from nova3d.rendering.reasons import Reason

log = logging.getLogger(__name__)
_FETCH_FAILURES = 20  # in a row: not the objects, the network
_RATE_SECONDS = 600.0


@dataclass
class Tally:
    """What a pool did: objects by state and reason, and who ended it early ("" where nobody did)."""

    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ended: str = ""

    def count(self, state: str, reason: Reason | None, change: int = 1) -> None:
        self.states[state] += change
        if reason is not None:
            self.reasons[str(reason)] += change

    @property
    def total(self) -> int:
        return sum(self.states.values())

    def __str__(self) -> str:
        words = [f"{self.states[state]} {state}" for state in ("done", "refused", "failed")]
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common() if count)
        return ", ".join(words) + (f" ({reasons})" if reasons else "")


class Backlog:
    """Holds every task that is not on a worker. `gave_up` says why the job cannot go on, "" while it can."""

    def __init__(self, pool: PoolConfig, tasks: Iterable[Task], out: Path, journal: Journal, fetcher: Fetcher):
        self.tally = Tally()
        self.gave_up = ""
        self._pool, self._out, self._journal, self.fetcher = pool, out, journal, fetcher
        self._pending = deque(tasks)
        self.total = len(self._pending)
        self._retries: deque[Task] = deque()  # after everything else
        self._fetching: dict[str, Task] = {}
        self._ready: deque[tuple[Task, Path]] = deque()
        self._failed_fetches: list[Task] = []  # in a row
        self._ends: deque[float] = deque(maxlen=10_000)  # when objects ended

    def __bool__(self) -> bool:
        return bool(self._pending or self._retries or self._fetching or self._ready)

    def next(self) -> Task | None:
        """The task that `take` would give, None while nothing is fetched."""
        return self._ready[0][0] if self._ready else None

    def take(self) -> tuple[Task, Path]:
        """The next task and its mesh file."""
        return self._ready.popleft()

    def put_back(self, task: Task) -> None:
        """A task whose try does not count."""
        self._pending.appendleft(task)

    def fetch_ahead(self, workers: int) -> None:
        """Keep as many objects fetched, or being fetched, as the workers soon need."""
        room = self._pool.fetch_ahead * workers - len(self._fetching) - len(self._ready)
        while room > 0 and (self._pending or self._retries):
            task = (self._pending or self._retries).popleft()
            self._fetching[task.asset.uid] = task
            self.fetcher.request(task.asset)
            room -= 1

    def collect(self) -> None:
        """Take in what has been fetched."""
        for fetched in self.fetcher.ended(self._pool.fetch_seconds):
            task = self._fetching.pop(fetched.uid)
            if fetched.path is not None:
                self._failed_fetches.clear()
                self._ready.append((task, fetched.path))
                continue
            assert fetched.fault is not None
            reason, message = fetched.fault.reason, str(fetched.fault)
            if reason is Reason.WRITE_ERROR:
                self.gave_up = message
                self.put_back(task)
                continue
            self.settle(task, "failed" if reason.transient else "refused", reason, message)
            if reason is Reason.FETCH_FAILED:
                self._failed_fetches.append(task)
        if len(self._failed_fetches) >= _FETCH_FAILURES and not self.gave_up:
            self.gave_up = f"{len(self._failed_fetches)} fetches in a row failed, the last: {message}"
            for task in self._failed_fetches:
                self._journal.write(task.asset, "queued", message="its failed fetch does not count")

    def settle(
        self,
        task: Task,
        state: str,
        reason: Reason | None,
        message: str,
        seconds: float = 0.0,
        worker: str = "",
        device: str = "",
        died: bool = False,
    ) -> None:
        """Write the verdict down; where another try may help, queue the task again."""
        uid, strikes = task.asset.uid, self._pool.strikes
        self.fetcher.discard(uid)
        attempt = 0
        if state == "failed" and reason is not None:
            task.fail(reason, died)
            attempt = max(task.failures, strikes) if task.given_up(strikes) else task.failures
        self._journal.write(task.asset, state, reason or "", message, attempt, seconds, worker, device)
        if reason is not None:
            log.info("object %s %s (%s: %s)", uid, state, reason, message)
        if state == "failed" and not task.given_up(strikes):
            self._retries.append(task)
            return
        self.tally.count(state, reason)
        self._ends.append(time.monotonic())

    def queue_suspects(self, recent: Iterable[tuple[Task, Reason | None]], why: str) -> None:
        """Forget the verdicts of a worker that is not to be trusted; those objects are rendered again."""
        for task, reason in recent:
            if reason is not None and reason.transient and not task.given_up(self._pool.strikes):
                continue  # failed there, and is tried again anyway
            object_path(self._out, task.asset.uid).unlink(missing_ok=True)
            self._journal.write(task.asset, "queued", message=f"suspect: {why}")
            state = "done" if reason is None else "failed" if reason.transient else "refused"
            self.tally.count(state, task.reason or reason, -1)
            self._pending.append(Task(task.asset, suspect=True))

    def rate(self) -> float:
        """Objects per second over the last ten minutes."""
        now = time.monotonic()
        while self._ends and now - self._ends[0] > _RATE_SECONDS:
            self._ends.popleft()
        return len(self._ends) / max(1e-3, now - self._ends[0]) if self._ends else 0.0
