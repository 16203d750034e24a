"""Sessions: files of a page go with it, one job a page, and nothing of a request is a path."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova3d.app import sessions as module
from nova3d.app.jobs import JobQueue
from nova3d.app.sessions import Sessions
from nova3d.errors import InputError
from tests.app import stand_ins


@pytest.fixture(scope="module")
def queue() -> Iterator[JobQueue]:
    opened = JobQueue(stand_ins.no_model, "cpu")
    yield opened
    opened.close()


def test_a_session_s_folder_has_no_name_from_outside(queue: JobQueue, tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, queue, 60)
    session = sessions.get("../../etc")
    assert session.folder.parent == tmp_path and len(session.folder.name) == 32
    assert sessions.get("../../etc") is session and sessions.get("b").folder != session.folder


def test_the_end_of_a_session_stops_its_job_and_removes_its_files(queue: JobQueue, tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, queue, 60)
    session = sessions.get("a")
    job = sessions.submit(session, stand_ins.Talkative(session.new_folder("result")))
    last = time.monotonic() + 60
    while not (job.task.out / "runs").exists():
        assert time.monotonic() < last
        time.sleep(0.01)
    with pytest.raises(InputError, match="has a job at work: stop it first"):
        sessions.submit(session, stand_ins.Quick(session.new_folder("result")))
    sessions.end("a")
    assert job.state == "stopped" and list(tmp_path.iterdir()) == [] and len(sessions) == 0
    sessions.end("a")


def test_only_the_last_result_is_kept_and_its_report_has_a_secret_name(queue: JobQueue, tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, queue, 60)
    session = sessions.get("a")
    first = sessions.submit(session, stand_ins.Written(session.new_folder("result")))
    assert first.ended.wait(60) and first.state == "done"
    assert sessions.report(first.token) == first.task.out / "report.html"
    assert sessions.report("") is None and sessions.report(first.token[:-1]) is None
    second = sessions.submit(session, stand_ins.Written(session.new_folder("result")))
    assert second.ended.wait(60) and not first.task.out.exists() and sessions.report(first.token) is None
    assert sessions.report(second.token) == second.task.out / "report.html" and len(second.token) >= 20


def test_sessions_that_are_left_alone_go(queue: JobQueue, tmp_path: Path) -> None:
    now = [0.0]
    sessions = Sessions(tmp_path, queue, 60, clock=lambda: now[0])
    old = sessions.get("old")
    now[0] = 50.0
    kept = sessions.get("kept")
    now[0] = 70.0
    sessions.get("new")
    assert not old.folder.exists() and kept.folder.exists() and len(sessions) == 2


def test_too_many_pages_are_refused(queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SESSIONS", 2)
    sessions = Sessions(tmp_path, queue, 60)
    first = sessions.get("a")
    sessions.get("b")
    with pytest.raises(InputError, match="too many pages are open"):
        sessions.get("c")
    assert sessions.get("a") is first
