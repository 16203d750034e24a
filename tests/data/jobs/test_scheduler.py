"""The pool against workers that hang, crash, grow, lie and fall ill. The workers are fakes; see test_worker.py."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nova3d.data.jobs import job, journal
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.policy import Attempt, RenderTask
from nova3d.data.jobs.scheduler import TaskQueue
from nova3d.data.sources import Asset
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason

pytestmark = pytest.mark.usefixtures("fake_worker")
MakeJob = Callable[..., RenderConfig]
Tries = Callable[[str], list[int]]
Same = Callable[[Path, Path], list[str]]
GOOD: dict[str, dict[str, Any]] = {f"good{i}": {} for i in range(5)}


def rows(config: RenderConfig, uid: str = "") -> list[dict[str, Any]]:
    return [row for row in journal.read_rows(Path(config.out)) if uid in ("", row["uid"])]


def manifest(config: RenderConfig) -> dict[str, dict[str, Any]]:
    lines = [line for path in Path(config.out).glob("*/manifest.jsonl") for line in path.read_text().splitlines()]
    return {row["uid"]: row for row in map(json.loads, lines)}


def test_every_planned_object_ends_in_a_row_and_the_good_ones_in_shards(
    make_job: MakeJob, tries: Tries, grandchildren: Callable[[], list[int]]
) -> None:
    config = make_job(
        GOOD
        | {
            "crash_always": {"fault": "crash"},
            "crash_once": {"fault": "crash", "times": 1},
            "hang_always": {"fault": "hang"},
            "grow_always": {"fault": "grow"},
            "oom_once": {"fault": "oom", "times": 1},
            "empty": {"fault": "refuse"},
        },
        workers=2,
        beat_seconds=0.4,
        memory_gb=0.3,
    )
    calls: list[tuple[int, int]] = []
    tally, packed = job.run(config, lambda done, total, message: calls.append((done, total)))
    assert packed is not None and sum(packed.counts.values()) == 7
    assert tally.states == {"done": 7, "refused": 1, "failed": 3}
    found = manifest(config)
    assert {uid: row["reason"] for uid, row in found.items() if row["state"] != "done"} == {
        "crash_always": "crash",
        "hang_always": "timeout",
        "grow_always": "out_of_memory",
        "empty": "empty_scene",
    }
    assert found["crash_always"]["message"] == "the worker died: killed by SIGSEGV"
    assert all(row["shard"] for row in found.values() if row["state"] == "done")
    # Two tries, the second on a worker that had served nobody; what will never work is tried once.
    pids = {uid: tries(uid) for uid in found}
    assert {uid: len(p) for uid, p in pids.items() if len(p) > 1} == dict.fromkeys(
        ("crash_always", "crash_once", "hang_always", "grow_always", "oom_once"), 2
    )
    for uid in ("crash_always", "crash_once", "hang_always", "grow_always", "oom_once"):
        assert [p for other in pids.values() for p in other].count(pids[uid][1]) == 1
    # What ran out of memory has the machine to itself the second time.
    end = rows(config, "grow_always")[1]
    others = [row for row in rows(config) if row["uid"] != "grow_always" and row["time"] > end["time"] - end["seconds"]]
    assert all(row["time"] - row["seconds"] > end["time"] - 0.05 for row in others)
    assert calls[-1] == (7, 7) and (11, 11) in calls  # packing comes last
    # The log's end is kept, and quoted in the journal.
    assert "Segmentation fault" in (Path(config.out) / "logs/crash_always.txt").read_text()
    assert "stderr: Segmentation fault" in rows(config, "crash_always")[0]["message"]
    assert [row["attempt"] for row in rows(config, "hang_always")] == [1, 2]
    # Nothing is left behind: no process (grandchildren neither), no temporary folder.
    assert not any(psutil.pid_exists(p) for other in pids.values() for p in other)
    assert not grandchildren()
    assert list(Path(config.pool.scratch).iterdir()) == []


def test_a_last_attempt_gets_twice_the_time(make_job: MakeJob) -> None:
    config = make_job({"slow": {"fault": "sleep", "seconds": 0.9}, "good": {}}, beat_seconds=0.6)
    assert job.run(config)[0].states["done"] == 2
    assert [row["reason"] for row in rows(config, "slow")] == ["timeout", ""]


def test_the_whole_object_has_a_limit_too(make_job: MakeJob) -> None:
    config = make_job({"slow": {"fault": "sleep", "seconds": 30}, "good": {}}, object_seconds=0.3, strikes=1)
    started = time.monotonic()
    assert job.run(config)[0].states == {"done": 1, "failed": 1}
    assert time.monotonic() - started < 15
    assert "not finished within 0.3 s" in rows(config, "slow")[0]["message"]


def test_killed_workers_and_their_number_change_no_byte(make_job: MakeJob, same_files: Same, tmp_path: Path) -> None:
    slow = {"fault": "sleep", "seconds": 0.2}  # or one of three workers takes all before another has started
    meshes = dict.fromkeys(GOOD, slow) | {"c": {"fault": "refuse"}}
    meshes |= {"a": {"fault": "crash", "times": 1}, "b": {"fault": "hang", "times": 1}}
    one, three = make_job(meshes, "one"), make_job(meshes, "three", workers=3)
    one.pool.beat_seconds = 1.0  # of a loaded machine, too, a living worker says something within it
    job.run(one)
    job.run(three)  # the tries go on counting: nothing fails here
    assert [row["reason"] for row in rows(one, "a") + rows(one, "b")] == ["crash", "", "timeout", ""]
    assert [row["reason"] for row in rows(three, "a") + rows(three, "b")] == ["", ""]
    assert len({row["worker"] for row in rows(three)}) > 1
    assert same_files(tmp_path / "one", tmp_path / "three") == []


def test_a_worker_that_draws_nothing_is_stopped_and_its_objects_drawn_elsewhere(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVA3D_FAKE_SICK", "-1")  # the second worker, from its first object on
    config = make_job({f"good{i:02d}": {"fault": "sleep", "seconds": 0.02} for i in range(40)}, workers=2)
    tally, packed = job.run(config)
    assert tally.states["done"] == 40 and tally.states["refused"] == 0 and packed is not None
    sick = [row for row in rows(config) if row["reason"] == "blank_render"]
    assert len(sick) == 10 and {row["worker"] for row in sick} == {"cpu.1"}
    assert sum(row["state"] == "queued" for row in rows(config)) == 10


def test_when_every_worker_stops_the_job_says_why_and_can_go_on(make_job: MakeJob) -> None:
    config = make_job({f"blank{i:02d}": {"fault": "blank"} for i in range(12)} | GOOD)
    with pytest.raises(InputError, match=r"every worker stopped \(cpu\.0: 10 blank renders in a row"):
        job.run(config)
    assert job.status(config).counts["waiting"] >= 10
    assert job.status(config).schedulers[0]["state"] == "stopped"
    config.pool.breaker_blanks = None
    tally, _ = job.run(config)
    assert job.status(config).counts == {"done": 5, "refused": 12} and tally.reasons["blank_render"] == 12


def test_a_verdict_that_a_second_worker_confirms_is_the_object_s(make_job: MakeJob) -> None:
    config = make_job({f"blank{i:02d}": {"fault": "blank"} for i in range(12)} | GOOD, workers=2, breaker_blanks=6)
    tally, _ = job.run(config)
    assert +tally.states == {"done": 5, "refused": 12}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NOVA3D_FAKE_DEVICE": "cuda"}, "device: the engine runs on 'cuda', not on 'cpu'"),
        ({"NOVA3D_FAKE_START": "die"}, "the worker died: exit code 3 | stderr: no such library"),
        ({"NOVA3D_FAKE_START": "hang"}, "not started within 0.2 s (pool.start_seconds)"),
    ],
)
def test_a_worker_that_cannot_start_as_asked_is_refused(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    config = make_job(GOOD, start_seconds=0.2 if "hang" in environment.values() else 20)
    with pytest.raises(InputError) as caught:
        job.run(config)
    assert f"every worker stopped (cpu.0: {expected}" in str(caught.value)
    assert rows(config) == []  # no object is blamed


def test_workers_are_replaced_after_so_many_objects(make_job: MakeJob, tries: Tries) -> None:
    config = make_job(GOOD, recycle_objects=2)
    job.run(config)
    pids = [tries(uid)[0] for uid in GOOD]
    assert len(set(pids)) == 3 and max(map(pids.count, pids)) == 2


def test_fetched_files_go_and_the_user_s_own_stay(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_job({f"good{i}": {} for i in range(12)} | {"missing": {}, "late": {}}, fetch_seconds=0.4)
    fetched: list[Path] = []
    kept: list[int] = []

    class Source:
        def fetch(self, asset: Any, folder: Path) -> Path:
            if asset.uid == "missing":
                raise ConnectionError("no route")
            if asset.uid == "late":
                time.sleep(2)
            if asset.uid == "good0":
                return Path(asset.path)
            path = folder / f"{asset.uid}.obj"
            path.write_text(Path(asset.path).read_text())
            kept.append(sum(earlier.exists() for earlier in fetched))
            fetched.append(path)
            return path

    monkeypatch.setattr("nova3d.data.jobs.launchers.make_source", lambda _: Source())
    tally, _ = job.run(config)
    assert tally.states == {"done": 12, "failed": 2} and tally.reasons["fetch_failed"] == 2
    assert len(fetched) >= 11 and max(kept) <= 3  # one in flight, two ahead: the others are deleted as it goes
    assert not any(path.exists() for path in fetched)
    assert (Path(config.source.path) / "good0.obj").is_file()
    assert {row["message"] for row in rows(config, "missing")} == {"ConnectionError: no route"}
    assert {row["message"] for row in rows(config, "late")} == {"not fetched within 0.4 s"}


def test_a_network_that_is_down_stops_the_job(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_job({f"o{i:02d}": {} for i in range(30)}, fetch_ahead=4)

    class Source:
        def fetch(self, asset: Any, folder: Path) -> Path:
            raise ConnectionError("no route")

    monkeypatch.setattr("nova3d.data.jobs.launchers.make_source", lambda _: Source())
    with pytest.raises(InputError, match=r"\d+ fetches in a row failed, the last: ConnectionError: no route"):
        job.run(config)
    with pytest.raises(InputError, match="fetches in a row failed"):
        job.run(config)
    assert job.status(config).counts == {"waiting": 30}  # no object is given up for it


def test_a_worker_that_has_grown_is_replaced(make_job: MakeJob, tries: Tries) -> None:
    config = make_job({f"o{i}": {"fault": "swell"} for i in range(3)}, recycle_gb=0.15)
    assert job.run(config)[0].states["done"] == 3
    assert len({tries(uid)[0] for uid in ("o0", "o1", "o2")}) == 3


def test_the_counts_are_right_after_the_objects_of_a_stopped_worker_are_queued_again(tmp_path: Path) -> None:
    config = RenderConfig(out=str(tmp_path))
    twice, once = RenderTask(Asset("twice", "folder")), RenderTask(Asset("once", "folder"))
    with contextlib.closing(journal.Journal(tmp_path, "local")) as book:
        queue = TaskQueue(config, [], book, Fetcher(lambda asset, folder: folder, tmp_path / "fetch"))
        ended = ((twice, Reason.CRASH), (twice, Reason.TIMEOUT), (once, Reason.CRASH), (once, None))
        attempts = [Attempt(task, reason) for task, reason in ended]
        for attempt in attempts:
            queue.finish(attempt)
        assert queue.summary.states == {"failed": 1, "done": 1} and queue.summary.reasons == {"timeout": 1}
        queue.requeue([attempts[0], attempts[1], attempts[3]], "it draws nothing")
    assert {*queue.summary.states.values(), *queue.summary.reasons.values()} == {0}
    assert [row["uid"] for row in journal.read_rows(tmp_path) if row["state"] == "queued"] == ["twice", "once"]


def test_another_attempt_comes_after_all_other_objects(tmp_path: Path) -> None:
    class InOrder(Fetcher):
        def request(self, asset: Asset) -> Any:
            future = super().request(asset)
            future.result()  # of two fetches that end at any time, the second may be the first to be taken in
            return future

    config = RenderConfig(out=str(tmp_path))
    tasks = [RenderTask(Asset(uid, "folder")) for uid in ("first", "second", "third")]
    order = []
    with contextlib.closing(journal.Journal(tmp_path, "local")) as book:
        queue = TaskQueue(config, tasks, book, InOrder(lambda asset, folder: folder, tmp_path / "fetch"))
        while queue:
            queue.fetch_ahead(workers=1)
            queue.collect_fetched()
            while queue.ready:
                task, _ = queue.ready.popleft()
                order.append(task.asset.uid)
                queue.finish(Attempt(task, Reason.CRASH if order == ["first"] else None, worker_died=True))
    assert order == ["first", "second", "third", "first"]
    assert queue.summary.states == {"done": 3}
