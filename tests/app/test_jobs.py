"""The queue: order, ends of all kinds, and how fast a stopped job frees its worker."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nova3d.app.jobs import STOP_SECONDS, Job, JobQueue
from nova3d.errors import InputError
from tests.app import stand_ins

SLACK = 60.0  # seconds that a busy machine may take for what needs milliseconds


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    """A queue of one worker, in which two jobs may wait."""
    opened = JobQueue(stand_ins.no_model, "cpu", workers=1, waiting=2)
    yield opened
    opened.close()


def until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + SLACK
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


def ended(job: Job) -> str:
    assert job.ended.wait(SLACK)
    return job.state


def running(job: Job) -> bool:
    return job.state == "running" and job.stage is not None


def test_a_job_is_followed_to_its_result(queue: JobQueue, tmp_path: Path) -> None:
    job = queue.submit(stand_ins.Quick(tmp_path))
    assert ended(job) == "done" and job.result not in (None, os.getpid())
    assert job.stage == (1, 2, "half") and job.sheet == tmp_path / "sheet.png" and job.seconds > 0


def test_jobs_run_in_turn_and_too_many_are_refused(queue: JobQueue, tmp_path: Path) -> None:
    first = queue.submit(stand_ins.Talkative(tmp_path))
    until(lambda: running(first))
    second, third = (queue.submit(stand_ins.Quick(tmp_path)) for _ in range(2))
    assert [queue.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(InputError, match="2 jobs are waiting already: try again"):
        queue.submit(stand_ins.Quick(tmp_path))
    queue.stop(second)
    assert second.state == "stopped" and queue.ahead(third) == 1
    queue.stop(first)
    assert ended(first) == "stopped" and ended(third) == "done" and second.seconds == 0


def test_a_job_that_reports_is_stopped_and_its_worker_goes_on(queue: JobQueue, tmp_path: Path) -> None:
    before = queue.submit(stand_ins.Quick(tmp_path))
    ended(before)
    job = queue.submit(stand_ins.Talkative(tmp_path))
    until(lambda: running(job))
    assert (tmp_path / "runs").exists()
    queue.stop(job, wait=True)
    assert job.state == "stopped" and not (tmp_path / "runs").exists()
    after = queue.submit(stand_ins.Quick(tmp_path))
    assert ended(after) == "done" and after.result == before.result  # the same process, with its model


def test_a_job_that_does_not_report_is_ended_within_two_seconds(queue: JobQueue, tmp_path: Path) -> None:
    job = queue.submit(stand_ins.Mute(tmp_path))
    until(lambda: running(job))
    started = time.monotonic()
    queue.stop(job, wait=True)
    assert job.state == "stopped" and STOP_SECONDS <= time.monotonic() - started < 2 * STOP_SECONDS
    assert ended(queue.submit(stand_ins.Quick(tmp_path))) == "done"


def test_a_job_s_failure_is_its_own(queue: JobQueue, tmp_path: Path) -> None:
    refused, faulty = (queue.submit(task(tmp_path)) for task in (stand_ins.Refused, stand_ins.Faulty))
    assert (ended(refused), refused.error) == ("failed", "the views show no object")
    assert (ended(faulty), faulty.error) == ("failed", "ValueError: a bug")
    killed = queue.submit(stand_ins.Killed(tmp_path))
    assert ended(killed) == "failed" and "want of memory" in killed.error
    assert ended(queue.submit(stand_ins.Quick(tmp_path))) == "done"


def test_a_worker_that_died_while_idle_is_replaced(queue: JobQueue, tmp_path: Path) -> None:
    first = queue.submit(stand_ins.Quick(tmp_path))
    ended(first)
    os.kill(int(str(first.result)), 9)
    time.sleep(0.2)
    second = queue.submit(stand_ins.Quick(tmp_path))
    assert ended(second) == "done" and second.result != first.result


def test_a_model_that_cannot_be_loaded_fails_the_jobs(tmp_path: Path) -> None:
    queue = JobQueue(stand_ins.no_such_model, "cpu")
    job = queue.submit(stand_ins.Quick(tmp_path))
    assert (ended(job), job.error) == ("failed", "model 'x' does not exist")
    queue.close()


def test_closing_ends_jobs_and_processes(tmp_path: Path) -> None:
    queue = JobQueue(stand_ins.no_model, "cpu", workers=2)
    quick = queue.submit(stand_ins.Quick(tmp_path))
    ended(quick)
    jobs = [queue.submit(stand_ins.Mute(tmp_path)) for _ in range(3)]
    until(lambda: running(jobs[0]) and running(jobs[1]))
    queue.close()
    assert [job.state for job in jobs] == ["stopped"] * 3
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(quick.result)), 0)
