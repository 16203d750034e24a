"""Weights that change over a run."""

from typing import Any

from nova3d.errors import InputError


def check(name: str, schedule: Any) -> None:
    """Raise InputError, naming the key, where `schedule` is neither a number nor [start, value, value, stop]."""
    numbers = schedule if isinstance(schedule, list | tuple) else [schedule]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise InputError(f"{name}: '{schedule}' must be a number or [start, value, value, stop]")
    if isinstance(schedule, list | tuple) and (len(schedule) != 4 or not 0 <= schedule[0] < schedule[3] <= 1):
        raise InputError(f"{name}: {list(schedule)} must be [start, value, value, stop] with 0 <= start < stop <= 1")


def value_at(schedule: Any, progress: float) -> float:
    """A number stays; [t0, a, b, t1] is a until the share t0 of the run, b from t1 on, and linear between."""
    if not isinstance(schedule, list | tuple):
        return float(schedule)
    start, first, last, stop = schedule
    share = min(1.0, max(0.0, (progress - start) / (stop - start)))
    return float(first + share * (last - first))
