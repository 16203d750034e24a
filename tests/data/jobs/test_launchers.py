"""Where workers run: GPUs by UUID, shares of a SLURM array, the actors of a Ray cluster."""

import itertools
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nova3d.data.jobs import devices, job, journal, launchers
from nova3d.data.jobs.config import RenderConfig, parse_shard
from nova3d.data.jobs.devices import Gpu
from nova3d.data.jobs.plan import write_plan
from nova3d.data.jobs.scheduler import Stop
from nova3d.data.jobs.worker_client import WorkerClient
from nova3d.data.sources import Asset
from nova3d.errors import InputError
from nova3d.utils import plugins

MakeJob = Callable[..., RenderConfig]
Same = Callable[[Path, Path], list[str]]
UUIDS = ("GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222")
LISTING = "".join(f"GPU {i}: NVIDIA Test (UUID: {uuid})\n" for i, uuid in enumerate(UUIDS))


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that knows of two GPUs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answer = f"case $1 in -L) printf '{LISTING}' ;; *) printf 'Test, 9.0, 570.1\\nTest, 8.6, 570.1\\n' ;; esac"
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n".replace("\nGPU", "\\nGPU").replace(")\n'", ")\\n'"))
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_are_picked_by_uuid_or_index() -> None:
    gpus = devices.parse_gpus(LISTING + "  MIG 1g.10gb Device 0: (UUID: MIG-1)\nnoise\n")
    assert gpus == [Gpu(0, "NVIDIA Test", UUIDS[0]), Gpu(1, "NVIDIA Test", UUIDS[1])]
    assert devices.pick_gpus([], gpus) == gpus
    assert devices.pick_gpus(["1", UUIDS[1]], gpus) == [gpus[1]]
    with pytest.raises(InputError, match="no GPU '7'"):
        devices.pick_gpus(["7"], gpus)
    with pytest.raises(InputError, match="no NVIDIA GPU was found"):
        devices.pick_gpus([], [])


def test_every_worker_sees_exactly_its_gpu(
    two_gpus: None, fake_worker: None, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, warm = WorkerClient.start, []

    def note(self: WorkerClient) -> None:
        warm.append(self._timeouts.warm)
        start(self)

    monkeypatch.setattr(WorkerClient, "start", note)
    config = make_job({f"o{i}": {"fault": "sleep", "seconds": 0.1} for i in range(12)}, workers=2)
    config.engine.device = "cuda"
    assert [slot.gpu for slot in devices.slots(config)] == [*UUIDS, *UUIDS]
    assert sum(slot.threads for slot in devices.slots(config)) >= 4
    job.run(config)
    seen = {mark.name.split(".")[0]: mark.read_text() for mark in (tmp_path / "state").iterdir()}
    rows = journal.read_rows(Path(config.out))
    assert {row["uid"]: row["device"] for row in rows} == seen and set(seen.values()) == set(UUIDS)
    assert len({row["worker"] for row in rows}) == 4
    assert warm == [False, True, True, True]  # the first fills the kernel cache, alone until its first view


def test_a_worker_on_the_cpu_in_place_of_a_gpu_is_refused(
    two_gpus: None, fake_worker: None, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVA3D_FAKE_DEVICE", "cpu")
    config = make_job({"a": {}})
    config.engine.device = "cuda"
    with pytest.raises(InputError, match=r"gpu0\.0: device: the engine runs on 'cpu', not on 'cuda'"):
        job.run(config)


def test_shares_of_an_array_together_give_the_whole(fake_worker: None, make_job: MakeJob, same_files: Same) -> None:
    meshes = {f"o{i}": {} for i in range(7)}
    whole, parts = make_job(meshes, "whole"), make_job(meshes, "parts", launcher="slurm")
    job.run(whole)
    counts = []
    for index in range(3):
        parts.pool.shard = f"{index}/3"
        tally, packed = job.run(parts)
        counts.append(tally.total)
        assert (packed is not None) == (index == 2)  # the last one packs
    assert sum(counts) == 7 and all(counts)
    assert same_files(Path(whole.out), Path(parts.out)) == []
    assert sorted(p.stem for p in Path(parts.out, "journal").iterdir()) == [f"share-00{i}-of-003" for i in range(3)]


def test_shares_are_a_partition_and_do_not_depend_on_the_process() -> None:
    assets = [Asset(f"uid{i}", "folder") for i in range(200)]
    shares = [[asset.uid for asset in launchers.in_share(assets, (i, 4))] for i in range(4)]
    assert sorted(itertools.chain(*shares)) == sorted(asset.uid for asset in assets) and min(map(len, shares)) > 30
    assert shares[0][:3] == ["uid1", "uid7", "uid8"]  # written down: the same in every process and version


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, (3, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (2, 4),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 2)),
    ],
)
def test_the_place_in_an_array_is_the_share(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert launchers.slurm_share("", environment) == share
    assert launchers.slurm_share("1/9", environment) == (1, 9)


def test_bad_shares_are_one_line() -> None:
    with pytest.raises(InputError, match="outside a SLURM job"):
        launchers.slurm_share("", {})
    for bad in ("2/2", "-1/2", "1", "a/b"):
        with pytest.raises(InputError, match="must be i/n"):
            parse_shard(bad)


def test_the_doctor_knows_which_gpus_compile_kernels(two_gpus: None, make_job: MakeJob) -> None:
    config = make_job({})
    config.engine.device, config.engine.name, config.engine.python = "cuda", "blender", "/nowhere/python"
    found = list(devices.examine(config))
    hopper, ampere = (finding.value for finding in found if finding.name == "GPU")
    assert "sm_90" in hopper and "no Cycles kernels" in hopper and "no Cycles kernels" not in ampere
    assert any(f.name == "workers" and f.value.startswith("2 (") for f in found)
    assert any("make blender" in f.fault for f in found)


def test_the_doctor_misses_a_gpu_that_is_asked_for(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    config = make_job({})
    assert not any(finding.fault for finding in devices.examine(config) if finding.name in ("GPU", "workers"))
    config.engine.device = "cuda"
    faults = {finding.name: finding.fault for finding in devices.examine(config)}
    assert faults["GPU"] and "no NVIDIA GPU" in faults["workers"]


def test_a_missing_blender_is_told_before_anything_is_planned_or_started(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOVA3D_BLENDER_PYTHON", raising=False)
    monkeypatch.setattr(WorkerClient, "start", lambda _: pytest.fail("a worker was started"))
    config = make_job({"a": {}})
    config.engine.name, config.engine.python = "blender", "/nowhere/python"
    missing = r"^no Blender interpreter at '/nowhere/python': run `make blender`, or set engine\.python$"
    with pytest.raises(InputError, match=missing):
        job.run(config)
    assert not Path(config.out).exists()
    write_plan(config)  # planning needs none
    with pytest.raises(InputError, match=missing):
        job.run(config)
    config.out, config.pool.launcher = f"{config.out}-ray", "ray"  # its workers may have it where this machine has none
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install"):
        job.run(config)


def test_the_doctor_looks_at_the_interpreter_that_the_engine_takes(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_job({})
    config.engine.name, config.engine.python = "blender", "/nowhere/python"
    monkeypatch.setenv("NOVA3D_BLENDER_PYTHON", sys.executable)
    (found,) = (finding for finding in devices.examine(config) if finding.name == "Blender")
    assert found.value.startswith("bpy cannot be imported") or found.value.endswith(f"in '{sys.executable}'")
    for python in (sys.executable + "-absent", "/bin/false"):  # engine.python would change nothing
        monkeypatch.setenv("NOVA3D_BLENDER_PYTHON", python)
        (found,) = (finding for finding in devices.examine(config) if finding.name == "Blender")
        assert found.fault.endswith("correct or unset the environment variable NOVA3D_BLENDER_PYTHON")


def test_ray_is_asked_for_in_one_line(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=re.escape("pip install 'nova3d[ray]'")):
        job.run(make_job({"a": {}}, launcher="ray"))


@pytest.mark.extras
def test_ray_actors_render_their_shares_on_their_gpus(
    two_gpus: None, make_job: MakeJob, same_files: Same, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    meshes = {f"o{i}": {"fault": "refuse"} if i == 3 else {} for i in range(6)}
    ray.init(num_gpus=2, num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        config = make_job(meshes, launcher="ray")
        config.engine.device = "cuda"
        tally, packed = job.run(config)
    finally:
        ray.shutdown()
    assert +tally.states == {"done": 5, "refused": 1} and packed is not None
    rows = journal.read_rows(Path(config.out))
    marks = {mark.name.split(".")[0]: mark.read_text() for mark in (tmp_path / "state").iterdir()}
    assert {row["uid"]: row["device"] for row in rows} == marks and set(marks.values()) == set(UUIDS)
    local = make_job(meshes, "local")
    local.engine.device = "cuda"
    job.run(local)
    assert same_files(Path(config.out), Path(local.out)) == []


@pytest.mark.extras
def test_an_actor_that_ray_restarts_during_a_stop_stops_too(make_job: MakeJob) -> None:
    ray = pytest.importorskip("ray")
    stop, polls = Stop(), []
    config = make_job({f"o{i}": {"fault": "sleep", "seconds": 8} for i in range(5)}, launcher="ray")

    def stop_and_kill(done: int, total: int, message: str) -> None:
        if "1 shares at work" in message:
            stop.reason = "SIGTERM"
            polls.append(journal.read_status(Path(config.out))[0]["pid"])
            if len(polls) == 3:  # the stop reached it two seconds ago
                os.kill(polls[0], signal.SIGKILL)

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        tally, packed = job.run(config, stop_and_kill, stop)
    finally:
        ray.shutdown()
    assert packed is None and tally.ended == "SIGTERM"
    assert len(polls) >= 3 and job.status(config).counts["waiting"] >= 3


def test_an_actor_imports_the_modules_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor of another machine inherits neither the folder nor the environment."""
    monkeypatch.setenv("NOVA3D_IMPORTED", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "source_of_an_actor.py").write_text("")
    monkeypatch.chdir(Path.cwd())  # goes back afterwards
    launchers.ShareActor(str(tmp_path), ["source_of_an_actor"])
    assert "source_of_an_actor" in sys.modules
    assert plugins.imported() == ["source_of_an_actor"]  # so the actor's workers import it, too
