"""Jobs that end early, by will or by accident, and go on. The workers are fakes; see test_worker.py."""

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nova3d.data.jobs import job, journal
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.scheduler import Stop, scratch_folder
from nova3d.data.sources import Asset
from nova3d.errors import InputError

pytestmark = pytest.mark.usefixtures("fake_worker")
MakeJob = Callable[..., RenderConfig]
Tries = Callable[[str], list[int]]
Same = Callable[[Path, Path], list[str]]
GOOD: dict[str, dict[str, Any]] = {f"good{i}": {} for i in range(5)}


def stop_at_the_first_end(stop: Stop, reason: str) -> Callable[[int, int, str], None]:
    """A progress callback that asks the pool to stop when the first object has ended."""

    def progress(done: int, total: int, message: str) -> None:
        if " done, " in message:
            stop.reason = reason

    return progress


def rows(config: RenderConfig, uid: str = "") -> list[dict[str, Any]]:
    return [row for row in journal.read_rows(Path(config.out)) if uid in ("", row["uid"])]


def test_what_failed_counts_in_the_next_run_and_retry_forgives_it(make_job: MakeJob, tries: Tries) -> None:
    config = make_job({"bad": {"fault": "crash", "times": 3}, "empty": {"fault": "refuse"}, "good": {}}, strikes=1)
    config.pack = False
    assert job.run(config)[0].states == {"done": 1, "refused": 1, "failed": 1}
    assert job.run(config)[0].total == 0  # nothing is left
    config.pool.strikes = 2  # one more try for what has had one
    assert job.run(config)[0].states == {"failed": 1} and len(tries("bad")) == 2
    assert job.retry(config, ["timeout"]) == []
    assert job.retry(config, ["crash"]) == ["bad"]
    assert job.status(config).counts == {"done": 1, "refused": 1, "waiting": 1}
    assert job.run(config)[0].states == {"done": 1} and len(tries("bad")) == 4
    with pytest.raises(InputError, match=r"reason 'bad luck' is not one of .*timeout"):
        job.retry(config, ["bad luck"])


def test_a_stop_lets_the_objects_in_flight_end_and_the_next_run_resumes(make_job: MakeJob, tries: Tries) -> None:
    meshes = {f"o{i}": {"fault": "sleep", "seconds": 0.5} for i in range(4)}
    config, stop = make_job(meshes, workers=2), Stop()
    tally, packed = job.run(config, stop_at_the_first_end(stop, "SIGTERM"), stop)
    assert tally.ended == "SIGTERM" and packed is None and 1 <= tally.total < 4
    assert job.status(config).counts["waiting"] == 4 - tally.total
    tally, packed = job.run(config)
    assert packed is not None and sum(packed.counts.values()) == 4
    assert [len(tries(uid)) for uid in meshes] == [1] * 4  # what was in flight was not thrown away


def test_a_stop_does_not_wait_for_ever(make_job: MakeJob) -> None:
    config, stop = make_job({"a": {}, "z": {"fault": "hang"}}, workers=2, drain_seconds=0.2), Stop()
    started = time.monotonic()
    tally, _ = job.run(config, stop_at_the_first_end(stop, "SIGINT"), stop)
    assert tally.states == {"done": 1} and time.monotonic() - started < 15
    assert rows(config, "z") == []  # an interrupted try is no failure


def test_one_parent_per_share_and_no_other_settings(make_job: MakeJob) -> None:
    config = make_job(GOOD)
    holder = journal.Journal(Path(config.out), "local")
    with pytest.raises(InputError, match=r"another process \(local\) is at work in"):
        job.run(config)
    holder.close()
    job.run(config)
    config.size = 32
    with pytest.raises(InputError, match=r"other settings \(size was 24 and is now 32\)"):
        job.run(config)
    config.size, config.pool.workers, config.samples_per_shard = 24, 2, 2
    assert job.run(config)[0].total == 0  # these change no object


def test_a_full_disk_ends_the_job_in_one_line_and_loses_nothing(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_job(GOOD)
    write, calls = journal.Journal.write, []

    def full(self: journal.Journal, *arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, os.strerror(28))
        write(self, *arguments, **more)

    monkeypatch.setattr(journal.Journal, "write", full)
    with pytest.raises(InputError, match="No space left on device; run again to resume"):
        job.run(config)
    monkeypatch.undo()
    assert sum(job.status(config).counts.values()) == 5 and job.status(config).counts["done"] >= 3


def test_a_journal_on_a_full_disk_fails_at_once_and_stays_readable(tmp_path: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        written = journal.Journal(tmp_path, "full")
        try:
            for index in range(100):
                written.write(Asset(f"uid{index}", "folder"), "done")
        except OSError:
            written.close()
            os._exit(index)

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    process.join()
    found = [row["uid"] for row in journal.read_rows(tmp_path)]
    assert process.exitcode == len(found) > 4  # every row that was taken is there
    assert found == [f"uid{index}" for index in range(len(found))]
    after = journal.Journal(tmp_path, "full")
    after.write(Asset("later", "folder"), "done")
    after.close()
    assert [row["uid"] for row in journal.read_rows(tmp_path)] == [*found, "later"]


@pytest.mark.parametrize("drift", [-7200.0, 7200.0])
def test_a_clock_that_runs_differently_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drift: float
) -> None:
    """Failed here, queued again on a machine whose clock is off, failed once more on a third."""
    asset, now = Asset("cup", "folder"), time.time()

    def write(name: str, state: str, clock: float, **more: Any) -> None:
        monkeypatch.setattr(journal.time, "time", lambda: clock)
        with contextlib.closing(journal.Journal(tmp_path, name)) as book:
            book.write(asset, state, **more)

    def outcome() -> journal.AssetOutcome:
        return journal.outcomes(tmp_path, [asset], strikes=3)["cup"]

    write("one", "failed", now, reason="timeout", attempt=3)
    assert outcome().state == "failed"
    write("retry", "queued", now + drift)
    assert (outcome().state, outcome().attempts) == ("waiting", 0)
    write("two", "failed", now - drift, reason="timeout", attempt=1)
    assert (outcome().state, outcome().attempts) == ("waiting", 1)
    assert [row["sequence"] for row in journal.read_rows(tmp_path)] == [1, 2, 3]


def test_rows_of_earlier_versions_come_first_by_their_time(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    old = [{"uid": "cup", "state": state, "time": when} for state, when in (("queued", 20.0), ("failed", 10.0))]
    (tmp_path / "journal/old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    with contextlib.closing(journal.Journal(tmp_path, "new")) as book:
        book.write(Asset("cup", "folder"), "done")
    assert [row["state"] for row in journal.read_rows(tmp_path)] == ["failed", "queued", "done"]


def test_a_stale_part_and_a_torn_journal_line_do_no_harm(make_job: MakeJob, same_files: Same, tmp_path: Path) -> None:
    clean, torn = make_job(GOOD, "clean"), make_job(GOOD, "torn")
    job.run(clean)
    stop = Stop()
    job.run(torn, stop_at_the_first_end(stop, "SIGTERM"), stop)
    out = Path(torn.out)
    part = journal.object_path(out, "good4").with_suffix(".local-7.part")  # of a worker that this run does not have
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"half an object")
    with (out / "journal/local.jsonl").open("ab") as file:
        file.write(b'{"uid": "good4", "sta')
    job.run(torn)
    assert not part.exists() and same_files(tmp_path / "clean", out) == []
    assert {row["uid"] for row in rows(torn)} == set(GOOD)


def test_a_parent_that_was_killed_shows_as_dead(make_job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = make_job(GOOD)
    job.run(config)
    path = Path(config.out) / "status/local.json"
    status = json.loads(path.read_text())
    assert status["state"] == "finished" and "finished" in str(job.status(config))
    path.write_text(json.dumps(status | {"state": "running", "pid": os.getpid(), "rate": 2.0}))
    assert job.status(config).schedulers[0]["live"] and job.status(config).rate == 2.0
    for change in ({"pid": 2**22 + 1}, {"updated": status["updated"] - 3600}):
        path.write_text(json.dumps(status | {"state": "running", "pid": os.getpid(), "rate": 2.0} | change))
        assert not job.status(config).schedulers[0]["live"] and job.status(config).rate == 0
        assert "dead since" in str(job.status(config))


def test_the_clock_of_another_host_does_not_decide(make_job: MakeJob) -> None:
    config = make_job({"good": {}})
    job.run(config)
    path = Path(config.out) / "status/local.json"
    status = json.loads(path.read_text()) | {"state": "running", "host": "elsewhere", "pid": 2**22 + 1, "rate": 2.0}
    for hours in (-2, 0, 2):
        path.write_text(json.dumps(status | {"updated": time.time() + 3600 * hours}))
        assert job.status(config).schedulers[0]["live"] and "at work" in str(job.status(config))
        os.utime(path, (time.time() - 600, time.time() - 600))
        assert not job.status(config).schedulers[0]["live"] and "dead since 10 min" in str(job.status(config))
    for broken in ({"state": "running"}, status | {"host": socket.gethostname(), "updated": "soon"}):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"local\.json' is broken"):
            job.status(config)


def test_the_scratch_folder_is_private_and_its_name_cannot_be_foreseen(make_job: MakeJob, tmp_path: Path) -> None:
    """What a killed run left is cleared; what others put there under such a name is left alone."""
    config = make_job({"good": {}})
    folders = []
    for _ in range(2):
        with scratch_folder(config, "local") as folder:
            folders.append(folder)
            assert folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
    first, second = folders
    assert first != second and first.parent == second.parent == tmp_path / "scratch"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/keep.txt").write_text("x")
    first.mkdir()
    second.symlink_to(tmp_path / "elsewhere")
    assert job.run(config)[0].states == {"done": 1}
    assert not first.exists() and second.is_symlink() and (tmp_path / "elsewhere/keep.txt").exists()
