"""The retry policy of a render job: time limits, attempts, and the circuit breaker of a worker."""

from collections import deque
from dataclasses import dataclass, field

from nova3d.data.jobs.config import PoolConfig
from nova3d.data.sources import Asset
from nova3d.rendering.reasons import Reason

_WINDOW = 100  # objects that a circuit breaker looks at
_VIEW_TIMES = 1000  # views whose times are remembered
_WORKER_DEATHS = 2  # an object is given up after so many dead workers
# These come from the source or from the file's bytes, and do not depend on the worker.
_NOT_THE_WORKER = {
    Reason.FETCH_FAILED,
    Reason.FETCH_HASH,
    Reason.LICENCE,
    Reason.DUPLICATE,
    Reason.PARSE_ERROR,
    Reason.DRACO,
    Reason.EMPTY_SCENE,
    Reason.MISSING_TEXTURE,
}


@dataclass
class Timeouts:
    """Time limits that follow the times per view of all workers.

    Attributes:
        config: the limits.
        warm: False until the first view on a GPU, whose kernels may have to be compiled first.
    """

    config: PoolConfig
    warm: bool
    _view_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_VIEW_TIMES))
    _observed: int = 0
    _p95: float = 0.0

    def observe(self, seconds: float) -> None:
        """Take in the time of one view."""
        self._view_seconds.append(seconds)
        self._observed += 1
        if self._observed < 50 or self._observed % 50 == 0:  # sorting for every view would cost too much
            self._p95 = sorted(self._view_seconds)[int(0.95 * (len(self._view_seconds) - 1))]

    def heartbeat(self, last_attempt: bool) -> float:
        """Return the seconds without progress after which a worker is killed."""
        return self._limit(max(self.config.beat_seconds, self.config.beat_factor * self._p95), last_attempt)

    def per_object(self, last_attempt: bool) -> float:
        """Return the seconds that one object may take in all."""
        return self._limit(self.config.object_seconds, last_attempt)

    def _limit(self, seconds: float, last_attempt: bool) -> float:
        seconds = 2 * seconds if last_attempt else seconds
        return seconds if self.warm else max(seconds, self.config.start_seconds)


@dataclass
class RenderTask:
    """An object that is to be rendered.

    Attributes:
        asset: the object.
        failures: attempts that failed.
        deaths: workers that died over it.
        reason: of the last failure.
        suspect: whether its earlier result came from a worker that was stopped.
    """

    asset: Asset
    failures: int = 0
    deaths: int = 0
    reason: Reason | None = None
    suspect: bool = False

    def record_failure(self, reason: Reason, worker_died: bool) -> None:
        """Count a failed attempt."""
        self.failures += 1
        self.deaths += worker_died
        self.reason = reason

    def given_up(self, strikes: int) -> bool:
        """Return whether no attempt is left; a second worker dead over it is enough."""
        return self.failures >= strikes or self.deaths >= _WORKER_DEATHS

    def last_attempt(self, strikes: int) -> bool:
        """Return whether the next attempt may be the last, which is made on a fresh worker."""
        return self.failures > 0 and (self.failures + 1 >= strikes or self.deaths > 0)

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run beside the next attempt: the object ran out of memory before."""
        return self.reason is Reason.OUT_OF_MEMORY


def outcome_state(reason: Reason | None) -> str:
    """Return the state of an object that ended with `reason` (None: done); only what failed may be tried again."""
    if reason is None:
        return "done"
    return "failed" if reason.transient else "refused"


@dataclass(frozen=True)
class Attempt:
    """The end of one attempt at an object.

    Attributes:
        task: the object.
        reason: why it is not done, None where it is.
        message: one line on the reason.
        seconds: how long the attempt took.
        worker: the slot's name, "" where the object did not reach a worker.
        device: the GPU's UUID, or "cpu".
        worker_died: whether the worker is dead.
        log: the end of the worker's log after a failure.
    """

    task: RenderTask
    reason: Reason | None
    message: str = ""
    seconds: float = 0.0
    worker: str = ""
    device: str = ""
    worker_died: bool = False
    log: str = ""


@dataclass
class CircuitBreaker:
    """Stops a worker whose recent attempts say that the worker, not the objects, is at fault."""

    config: PoolConfig
    recent: deque[Attempt] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _blanks: int = 0

    def record(self, attempt: Attempt) -> str:
        """Take in an attempt of the worker; return why the worker must stop, or ""."""
        reason, pool = attempt.reason, self.config
        if attempt.task.suspect or reason in _NOT_THE_WORKER:
            return ""  # a result that another worker confirms is the object's
        self.recent.append(attempt)
        self._blanks = self._blanks + 1 if reason is Reason.BLANK_RENDER else 0
        if pool.breaker_blanks and self._blanks >= pool.breaker_blanks:
            return f"{self._blanks} blank renders in a row (pool.breaker_blanks)"
        count = sum(earlier.reason is reason for earlier in self.recent)
        if reason is not None and pool.breaker_share and count > pool.breaker_share * _WINDOW:
            return f"'{reason}' for {count} of its last {len(self.recent)} objects (pool.breaker_share)"
        return ""
