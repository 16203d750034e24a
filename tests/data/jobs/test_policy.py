"""The retry policy on its own."""

import pytest

from nova3d.data.jobs.config import PoolConfig
from nova3d.data.jobs.policy import Attempt, CircuitBreaker, RenderTask, Timeouts
from nova3d.data.sources import Asset
from nova3d.rendering.reasons import Reason


def task(**fields: bool) -> RenderTask:
    return RenderTask(Asset("x", "folder"), **fields)  # type: ignore[arg-type]


def ended(reason: Reason | None, suspect: bool = False) -> Attempt:
    return Attempt(task(suspect=suspect), reason)


def test_silence_is_ten_times_the_95th_percentile_and_at_least_a_minute() -> None:
    timeouts = Timeouts(PoolConfig(), warm=True)
    assert timeouts.heartbeat(last_attempt=False) == 60
    for seconds in [1.0] * 90 + [8.0] * 10:
        timeouts.observe(seconds)
    assert timeouts.heartbeat(last_attempt=False) == 80 and timeouts.heartbeat(last_attempt=True) == 160
    assert timeouts.per_object(last_attempt=False) == 600 and timeouts.per_object(last_attempt=True) == 1200
    for _ in range(1000):
        timeouts.observe(0.1)
    assert timeouts.heartbeat(last_attempt=False) == 60  # old views are forgotten


def test_a_cold_gpu_is_given_time_to_compile() -> None:
    timeouts = Timeouts(PoolConfig(start_seconds=900), warm=False)
    assert timeouts.heartbeat(last_attempt=False) == 900 and timeouts.per_object(last_attempt=False) == 900
    timeouts.warm = True
    assert timeouts.heartbeat(last_attempt=False) == 60 and timeouts.per_object(last_attempt=False) == 600


def test_an_object_in_flight_at_two_deaths_is_given_up_whatever_the_strikes() -> None:
    doomed, unlucky = task(), task()
    assert not doomed.last_attempt(5)
    for death in (True, True):
        assert not doomed.given_up(5)
        doomed.record_failure(Reason.CRASH, death)
    assert doomed.given_up(5)
    unlucky.record_failure(Reason.TIMEOUT, worker_died=True)
    assert unlucky.last_attempt(5)  # one more death would end it
    for _ in range(3):
        unlucky.record_failure(Reason.FETCH_FAILED, worker_died=False)
        assert not unlucky.given_up(5)
    unlucky.record_failure(Reason.FETCH_FAILED, worker_died=False)
    assert unlucky.given_up(5)


def test_two_strikes_and_the_second_is_the_last_attempt() -> None:
    once = task()
    once.record_failure(Reason.FETCH_FAILED, worker_died=False)
    assert once.last_attempt(2) and not once.given_up(2)
    once.record_failure(Reason.FETCH_FAILED, worker_died=False)
    assert once.given_up(2)


def test_a_worker_stops_at_more_than_a_fifth_of_its_last_hundred_with_one_code() -> None:
    breaker = CircuitBreaker(PoolConfig())
    for index in range(100):
        reason = Reason.CRASH if index % 5 == 0 else Reason.THIN if index % 7 == 0 else None
        assert breaker.record(ended(reason)) == ""
    assert breaker.record(ended(None)) == ""  # the oldest, a crash, leaves the window
    assert breaker.record(ended(Reason.CRASH)) == ""
    assert "'crash' for 21 of its last 100 objects" in breaker.record(ended(Reason.CRASH))


@pytest.mark.parametrize("interruption", [None, Reason.CRASH])
def test_ten_blanks_in_a_row_stop_a_worker(interruption: Reason | None) -> None:
    breaker = CircuitBreaker(PoolConfig())
    assert not any(breaker.record(ended(Reason.BLANK_RENDER)) for _ in range(9))
    assert breaker.record(ended(interruption)) == ""
    assert not any(breaker.record(ended(Reason.BLANK_RENDER)) for _ in range(9))
    assert breaker.record(ended(Reason.BLANK_RENDER)).startswith("10 blank renders in a row")


def test_confirmed_verdicts_and_the_source_s_faults_do_not_count() -> None:
    breaker = CircuitBreaker(PoolConfig())
    assert not any(breaker.record(ended(Reason.BLANK_RENDER, suspect=True)) for _ in range(50))
    for reason in (Reason.FETCH_FAILED, Reason.PARSE_ERROR, Reason.EMPTY_SCENE, Reason.MISSING_TEXTURE, Reason.DRACO):
        assert not any(breaker.record(ended(reason)) for _ in range(50)), reason
    assert not breaker.recent


@pytest.mark.parametrize("unset", [None, 0])
def test_a_breaker_that_is_not_set_stops_no_worker(unset: int | None) -> None:
    off = CircuitBreaker(PoolConfig(breaker_share=unset, breaker_blanks=unset))
    assert not any(off.record(ended(Reason.BLANK_RENDER)) for _ in range(200))
