"""The real worker: what it does with an engine's faults, and who outlives whom."""

import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from nova3d import config as configs
from nova3d.data import duplicates
from nova3d.data.jobs import job, journal
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.plan import load_plan
from nova3d.data.jobs.worker import ObjectRenderer
from nova3d.data.shards import ShardReader, read_object
from nova3d.data.sources import Asset
from nova3d.errors import InputError
from nova3d.rendering import file_access, gltf, mesh_files, meshes, raster
from nova3d.rendering.engine import make_engine

ROOT = Path(__file__).parents[3]
MakeJob = Callable[..., RenderConfig]
Same = Callable[[Path, Path], list[str]]


def start(config: RenderConfig, tmp_path: Path) -> ForkProcess:
    """`scripts/render.py run` in a process of its own; what it prints goes to out.txt and err.txt."""
    configs.save(config, tmp_path / "config.yaml")
    process = multiprocessing.get_context("fork").Process(target=run_script, args=(tmp_path,))
    process.start()
    return process


def run_script(folder: Path) -> None:
    sys.argv = ["render.py", "run", "--config", str(folder / "config.yaml"), "--allow-code"]
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    runpy.run_path(str(ROOT / "scripts/render.py"), run_name="__main__")


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def test_an_engine_s_faults_are_sorted_by_what_may_pass(
    make_job: MakeJob, tries: Callable[[str], list[int]], grandchildren: Callable[[], list[int]], tmp_path: Path
) -> None:
    meshes = {
        "bug": {"fault": "bug"},
        "blank": {"fault": "blank"},
        "crash": {"fault": "crash"},
        "empty": {"fault": "refuse"},
        "good": {},
        "twin": {},
    }
    config = make_job(meshes | {"good2": {"shade": 0.9}}, strikes=1)
    source = Path(config.source.path)
    (source / "twin.obj").write_bytes((source / "good.obj").read_bytes())
    (source / "page.obj").write_text("<html>gone</html>")
    tally, packed = job.run(config)
    assert packed is not None and sum(packed.counts.values()) == 2  # good or its twin, good2
    assert +tally.states == {"done": 3, "refused": 3, "failed": 2}
    found = {
        row["uid"]: row
        for path in Path(config.out).glob("*/manifest.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
    assert len(found) == 8 and all(str(tmp_path) not in json.dumps(row) for row in found.values())
    twin = next(uid for uid in ("good", "twin") if found[uid]["dup_of"])
    assert {uid: row["reason"] for uid, row in found.items() if row["state"] != "done"} == {
        "blank": "blank_render",
        "bug": "crash",
        "crash": "crash",
        "empty": "empty_scene",
        "page": "parse_error",
        twin: "duplicate",
    }
    assert found["bug"]["message"] == "ZeroDivisionError: a bug of the engine"
    assert found["page"]["message"] == "'page.obj' is an HTML or XML page, not a mesh"
    assert found["empty"]["message"] == "'empty.obj' has no triangles"
    assert [len(tries(uid)) for uid in meshes] == [1] * 6
    logs = Path(config.out) / "logs"
    assert "ZeroDivisionError: a bug of the engine" in (logs / "bug.txt").read_text()
    assert (logs / "crash.txt").read_text() == "the last words of a worker\n"
    assert not grandchildren()  # the process of the crash is killed too, and did not keep the worker's pipe open
    readers = [ShardReader(path.parent) for path in Path(config.out).glob("*/index.json")]
    facts = [json.loads(reader.read(row)["json"]) for reader in readers for row in range(len(reader))]
    entry = next(fact for fact in facts if fact["uid"] == "good2")
    assert entry["engine"]["name"] == "fake" and len(entry["views"]) == 4 and entry["measures"]["coverage"] > 0.3
    assert len(entry["sha256"]) == 64 and entry["size_bytes"] == (source / "good2.obj").stat().st_size
    assert not {"path", "seconds", "worker", "time"} & entry.keys()


def test_a_write_that_fails_ends_the_job_in_one_line_and_nothing_is_lost(make_job: MakeJob) -> None:
    config = make_job({"a": {"shade": 0.2}, "b": {"fault": "disk", "times": 1}, "c": {"shade": 0.9}})
    with pytest.raises(InputError, match=r"cannot write '.*/b\.tar': File too large; .*run again to resume") as caught:
        job.run(config)
    assert "\n" not in str(caught.value)
    assert not list(Path(config.out).glob("objects/*/*.part"))
    assert job.status(config).counts["waiting"] >= 1 and job.status(config).counts["failed"] == 0
    _, packed = job.run(config)
    assert packed is not None and sum(packed.counts.values()) == 3


def test_workers_die_with_a_killed_parent_and_the_next_run_gives_the_same_bytes(
    make_job: MakeJob,
    tries: Callable[[str], list[int]],
    grandchildren: Callable[[], list[int]],
    same_files: Same,
    tmp_path: Path,
) -> None:
    meshes = {f"o{i}": {"fault": "sleep", "seconds": 30, "times": 1} if i == 2 else {} for i in range(4)}
    config = make_job(meshes)
    parent = start(config, tmp_path)
    wait_for(lambda: tries("o2"))
    worker = tries("o2")[0]
    wait_for(grandchildren)
    parent.kill()
    parent.join()
    wait_for(lambda: not psutil.pid_exists(worker) and not grandchildren(), 10)
    status = job.status(config)
    assert not status.schedulers[0]["live"] and status.counts["waiting"] >= 1 and "dead since" in str(status)
    job.run(config)
    assert list(Path(config.pool.scratch).iterdir()) == []  # what the dead parent left is cleared
    clean = make_job(meshes, "clean")
    job.run(clean)
    assert same_files(Path(config.out), Path(clean.out)) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_drains_the_job(
    fake_worker: None, make_job: MakeJob, tries: Callable[[str], list[int]], tmp_path: Path, number: int, code: int
) -> None:
    meshes = {f"o{i}": {"fault": "sleep", "seconds": 1} for i in range(4)}
    config = make_job(meshes)
    parent = start(config, tmp_path)
    wait_for(lambda: any(tries(uid) for uid in meshes))
    assert parent.pid
    os.kill(parent.pid, number)
    parent.join(60)
    error = (tmp_path / "err.txt").read_text()
    assert parent.exitcode == code, error
    assert "Traceback" not in error
    assert f"ended by {signal.Signals(number).name}; the same command resumes" in (tmp_path / "out.txt").read_text()
    counts = job.status(config).counts
    assert counts["done"] >= 1 and counts["waiting"] >= 1 and counts["done"] + counts["waiting"] == 4
    assert sum(len(tries(uid)) for uid in meshes) == counts["done"]  # what had begun was finished


def test_real_meshes_give_the_same_shards_whatever_the_workers(
    tmp_path: Path, same_files: Same, lopsided_file: Path, sphere_file: Path
) -> None:
    source = tmp_path / "real"
    source.mkdir()
    for index, scale in enumerate((0.5, 1.0, 2.0)):
        lines = [f"v {scale * x} {y} {z}" for x, y, z in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0.2, 0.3, 0.8))]
        faces = ["f 1 3 2", "f 1 2 4", "f 2 3 4", "f 3 1 4"]
        (source / f"tetra.{index}.obj").write_text("\n".join([*lines, *faces]) + "\n")
    (source / "letter.ply").write_bytes(lopsided_file.read_bytes())
    (source / "broken.glb").write_bytes(b"not a mesh")
    for name, workers in (("one", 1), ("two", 2)):
        overrides = [f"source.path={source}", f"out={tmp_path / name}", "size=24", f"pool.workers={workers}"]
        overrides += ["engine.supersample=1", "samples_per_shard=2", "val_share=0.3", f"pool.scratch={tmp_path}"]
        config = configs.load(RenderConfig, ROOT / "configs/render/mini.yaml", overrides)
        tally, packed = job.run(config)
        assert +tally.states == {"done": 4, "refused": 1} and packed is not None
        reason = journal.outcomes(tmp_path / name, load_plan(config).assets(), 2)["broken"].message
        assert re.search(r"'broken\.glb'", reason) and str(source) not in reason
    assert same_files(tmp_path / "one", tmp_path / "two") == []


def test_a_mesh_is_read_once(tmp_path: Path, sphere_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        for user in (module, meshes, raster, duplicates, gltf):
            if getattr(user, name, None) is function:
                monkeypatch.setattr(user, name, counted)

    count(meshes, "load_mesh")
    count(mesh_files, "read_scene")
    count(file_access, "read_regular")
    config = RenderConfig(preset="ortho4", size=24)
    renderer = ObjectRenderer(config, make_engine(config.engine), config.cameras(), "test")
    end = renderer.render(Asset("ball", "folder"), sphere_file, tmp_path / "ball.tar", lambda message: None)
    assert end == {"reason": "", "message": ""} and calls == {"load_mesh": 1, "read_scene": 1, "read_regular": 1}
    facts = json.loads(read_object(tmp_path / "ball.tar")["ball.json"])
    assert facts["geometry"] == duplicates.geometry_key(meshes.load_mesh(sphere_file))
