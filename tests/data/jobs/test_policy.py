"""The pool's rules on their own."""

import pytest

from nova3d.data.assets import Asset
from nova3d.data.jobs.config import PoolConfig
from nova3d.data.jobs.policy import Breaker, Pace, Task
from nova3d.rendering.reasons import Reason


def task(**fields: bool) -> Task:
    return Task(Asset("x", "folder"), **fields)  # type: ignore[arg-type]


def test_silence_is_ten_times_the_95th_percentile_and_at_least_a_minute() -> None:
    pace = Pace(PoolConfig(), warm=True)
    assert pace.silence(last_try=False) == 60
    for seconds in [1.0] * 90 + [8.0] * 10:
        pace.note(seconds)
    assert pace.silence(last_try=False) == 80 and pace.silence(last_try=True) == 160
    assert pace.total(last_try=False) == 600 and pace.total(last_try=True) == 1200
    for _ in range(1000):
        pace.note(0.1)
    assert pace.silence(last_try=False) == 60  # old views are forgotten


def test_a_cold_gpu_is_given_time_to_compile() -> None:
    pace = Pace(PoolConfig(start_seconds=900), warm=False)
    assert pace.silence(last_try=False) == 900 and pace.total(last_try=False) == 900
    pace.warm = True
    assert pace.silence(last_try=False) == 60 and pace.total(last_try=False) == 600


def test_an_object_in_flight_at_two_deaths_is_given_up_whatever_the_strikes() -> None:
    doomed, unlucky = task(), task()
    assert not doomed.last_try(5)
    for death in (True, True):
        assert not doomed.given_up(5)
        doomed.fail(Reason.CRASH, death)
    assert doomed.given_up(5)
    unlucky.fail(Reason.TIMEOUT, death=True)
    assert unlucky.last_try(5)  # one more death would end it
    for _ in range(3):
        unlucky.fail(Reason.FETCH_FAILED, death=False)
        assert not unlucky.given_up(5)
    unlucky.fail(Reason.FETCH_FAILED, death=False)
    assert unlucky.given_up(5)


def test_two_strikes_and_the_second_is_the_last_try() -> None:
    once = task()
    once.fail(Reason.FETCH_FAILED, death=False)
    assert once.last_try(2) and not once.given_up(2)
    once.fail(Reason.FETCH_FAILED, death=False)
    assert once.given_up(2)


def test_a_worker_stops_at_more_than_a_fifth_of_its_last_hundred_with_one_code() -> None:
    breaker = Breaker(PoolConfig())
    for index in range(100):
        reason = Reason.CRASH if index % 5 == 0 else Reason.PARSE_ERROR if index % 7 == 0 else None
        assert breaker.note(task(), reason) == ""
    assert breaker.note(task(), None) == ""  # the oldest, a crash, leaves the window
    assert breaker.note(task(), Reason.CRASH) == ""
    assert "'crash' for 21 of its last 100 objects" in breaker.note(task(), Reason.CRASH)


@pytest.mark.parametrize("interruption", [None, Reason.CRASH])
def test_ten_blanks_in_a_row_stop_a_worker(interruption: Reason | None) -> None:
    breaker = Breaker(PoolConfig())
    assert not any(breaker.note(task(), Reason.BLANK_RENDER) for _ in range(9))
    assert breaker.note(task(), interruption) == ""
    assert not any(breaker.note(task(), Reason.BLANK_RENDER) for _ in range(9))
    assert breaker.note(task(), Reason.BLANK_RENDER).startswith("10 blank renders in a row")


def test_confirmed_verdicts_and_the_source_s_faults_do_not_count() -> None:
    breaker = Breaker(PoolConfig())
    assert not any(breaker.note(task(suspect=True), Reason.BLANK_RENDER) for _ in range(50))
    assert not any(breaker.note(task(), Reason.FETCH_FAILED) for _ in range(50))
    off = Breaker(PoolConfig(breaker_share=0, breaker_blanks=0))
    assert not any(off.note(task(), Reason.BLANK_RENDER) for _ in range(200))
