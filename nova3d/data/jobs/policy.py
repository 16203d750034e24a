"""The rules of the pool, without processes: how long to wait, when to give up, whom to stop."""

from collections import Counter, deque
from dataclasses import dataclass, field

from nova3d.data.assets import Asset
from nova3d.data.jobs.config import PoolConfig
from nova3d.rendering.reasons import Reason

_WINDOW = 100
_BEATS = 1000  # views whose times are remembered
# Not the worker's doing.
_OF_THE_SOURCE = {Reason.FETCH_FAILED, Reason.FETCH_HASH, Reason.LICENCE, Reason.DUPLICATE}


class Pace:
    """Times per view, of all workers, and the silence that means a hang.

    warm: false until the first view on a GPU, whose kernels may have to be compiled first.
    """

    def __init__(self, config: PoolConfig, warm: bool):
        self.warm = warm
        self._config = config
        self._seconds: deque[float] = deque(maxlen=_BEATS)
        self._p95 = 0.0
        self._new = 0

    def note(self, seconds: float) -> None:
        """One more view took so long."""
        self._seconds.append(seconds)
        self._new += 1
        if self._new >= 50 or len(self._seconds) < 50:  # sorting for every view would cost more than it tells
            self._p95 = sorted(self._seconds)[int(0.95 * (len(self._seconds) - 1))]
            self._new = 0

    def silence(self, last_try: bool) -> float:
        """Seconds without a sign of life after which a worker is killed."""
        limit = max(self._config.beat_seconds, self._config.beat_factor * self._p95)
        return self._stretched(limit, last_try)

    def total(self, last_try: bool) -> float:
        """Seconds after which a worker is killed whatever it says."""
        return self._stretched(self._config.object_seconds, last_try)

    def _stretched(self, limit: float, last_try: bool) -> float:
        limit = 2 * limit if last_try else limit
        return limit if self.warm else max(limit, self._config.start_seconds)


@dataclass
class Task:
    """An object on its way. failures: tries that failed; deaths: workers that died over it; reason: of the last
    failure; suspect: its earlier verdict came from a worker that was stopped."""

    asset: Asset
    failures: int = 0
    deaths: int = 0
    reason: Reason | None = None
    suspect: bool = False

    def fail(self, reason: Reason, death: bool) -> None:
        """Count a failed try."""
        self.failures += 1
        self.deaths += death
        self.reason = reason

    def given_up(self, strikes: int) -> bool:
        """Whether it has had its tries; a second worker dead over it is enough."""
        return self.failures >= strikes or self.deaths >= 2

    def last_try(self, strikes: int) -> bool:
        """Whether the next try may be its last, to be made on a fresh worker."""
        return self.failures > 0 and (self.failures + 1 >= strikes or self.deaths > 0)

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside its next try: it ran out of memory before."""
        return self.reason is Reason.OUT_OF_MEMORY


@dataclass
class Breaker:
    """Watches the outcomes of one worker and says when the worker, not the objects, must be at fault."""

    config: PoolConfig
    recent: deque[tuple[Task, Reason | None]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _blanks: int = 0

    def note(self, task: Task, reason: Reason | None) -> str:
        """Record an outcome (None: done); returns why the worker must stop, or ""."""
        if task.suspect or reason in _OF_THE_SOURCE:
            return ""  # a verdict that another worker confirms is the object's
        self.recent.append((task, reason))
        self._blanks = self._blanks + 1 if reason is Reason.BLANK_RENDER else 0
        if 0 < self.config.breaker_blanks <= self._blanks:
            return f"{self._blanks} blank renders in a row (pool.breaker_blanks)"
        counts = Counter(code for _, code in self.recent if code is not None)
        for code, count in counts.most_common(1):
            if 0 < self.config.breaker_share * _WINDOW < count:
                return f"'{code}' for {count} of its last {len(self.recent)} objects (pool.breaker_share)"
        return ""
