"""Work shared out between processes: each has its part, and what goes wrong in one comes back in a line."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nova3d.errors import InputError
from nova3d.utils.workers import exit_with_parent, in_parts, in_pool

ROOT = Path(__file__).parents[2]
ENDLESS = """
import os, pathlib, sys, time
from functools import partial
from nova3d.cli.common import run
from nova3d.utils.workers import in_parts, in_pool

def work(folder, part, parts, device, tick):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    run(lambda: in_parts(partial(work, sys.argv[1]), 2, "cpu", lambda: None))
"""
WORK = """
import os, pathlib, sys
from nova3d.errors import InputError

def work(folder, mode, part, parts, device, tick):
    if mode == "refuse" and part == 1:
        raise InputError("bad reference cup")
    if mode == "die" and part == 1:
        os._exit(9)
    pathlib.Path(folder, f"{part}-{parts}-{device}-{os.environ.get('OMP_NUM_THREADS')}").touch()
"""


@pytest.mark.parametrize("share", [in_parts, in_pool])
def test_several_workers_on_one_named_gpu_are_refused(share: Callable[..., None]) -> None:
    arguments = (3, "cuda:0", print) if share is in_parts else ([1, 2, 3], 3, "cuda:0", print)
    with pytest.raises(InputError, match="device 'cuda:0' names one GPU, but 3 workers share the GPUs out"):
        share(print, *arguments)


def test_parts_run_in_processes_and_their_errors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    import work_of_a_test  # type: ignore[import-not-found]

    told = []
    (tmp_path / "done").mkdir()
    in_parts(partial(work_of_a_test.work, tmp_path / "done", ""), 2, "cpu", lambda: told.append(1))
    assert {p.name for p in (tmp_path / "done").iterdir()} == {"0-2-cpu-1", "1-2-cpu-1"} and told
    assert os.environ["OMP_NUM_THREADS"] == "3"
    with pytest.raises(InputError, match="bad reference cup"):
        in_parts(partial(work_of_a_test.work, tmp_path / "done", "refuse"), 2, "cpu", lambda: None)
    with pytest.raises(InputError, match="worker 1 of 2 ended with exit code 9"):
        in_parts(partial(work_of_a_test.work, tmp_path / "done", "die"), 2, "cpu", lambda: None)


def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    """SIGTERM and SIGKILL of the parent: no worker goes on writing."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        folder = tmp_path / str(int(number))
        folder.mkdir()
        command = [sys.executable, str(tmp_path / "endless.py"), str(folder)]
        parent = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
        wait_for(lambda folder=folder: len(list(folder.iterdir())) == 2)
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode == (143 if number == signal.SIGTERM else -9) and b"Traceback" not in errors
        workers = [int(path.name) for path in folder.iterdir()]
        wait_for(lambda workers=workers: not any(psutil.pid_exists(pid) for pid in workers))


def test_a_worker_whose_parent_is_gone_ends_itself() -> None:
    fork = multiprocessing.get_context("fork")
    for parent, code in ((os.getpid(), 0), (os.getppid(), 1)):
        process = fork.Process(target=exit_with_parent, args=(parent,))
        process.start()
        process.join()
        assert process.exitcode == code


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


POOL = """
import os, pathlib, time
from nova3d.errors import InputError

def prepare(device):
    if device == "none":
        raise InputError("the model cannot be loaded")
    def work(task):
        if task == "die":
            os.kill(os.getpid(), 9)
        if task == "refuse":
            raise InputError("bad task")
        if task == "long":
            pathlib.Path("pid").write_text(str(os.getpid()))
            time.sleep(600)
        return f"{task}-{device}-{os.environ['OMP_NUM_THREADS']}"
    return work
"""


@pytest.fixture
def pool_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[str], str]]:
    (tmp_path / "work_of_a_pool.py").write_text(POOL)
    monkeypatch.syspath_prepend(tmp_path)
    import work_of_a_pool  # type: ignore[import-not-found]

    return work_of_a_pool.prepare


def test_a_death_in_a_pool_costs_its_task_only(pool_work: Callable[[str], Callable[[str], str]]) -> None:
    results: dict[int, tuple[str | None, str]] = {}
    tasks = ["a", "die", "b", "c", "die"]
    in_pool(pool_work, tasks, 2, "cpu", lambda i, result, why: results.update({i: (result, why)}))
    assert {i: results[i][0] for i in results} == {0: "a-cpu-1", 1: None, 2: "b-cpu-1", 3: "c-cpu-1", 4: None}
    assert all("exit code -9" in results[i][1] for i in (1, 4)) and results[0][1] == ""


@pytest.mark.parametrize(
    ("tasks", "device", "words"), [(["a"], "none", "cannot be loaded"), (["refuse"], "cpu", "bad")]
)
def test_a_refusal_in_a_pool_comes_back(
    pool_work: Callable[[str], Callable[[str], str]], tasks: list[str], device: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        in_pool(pool_work, tasks, 1, device, lambda *_: None)


def test_a_pool_ends_with_its_caller(pool_work: Callable[[str], Callable[[str], str]], tmp_path: Path) -> None:
    program = (
        "import work_of_a_pool as w; from nova3d.cli.common import run; from nova3d.utils.workers import in_pool\n"
    )
    program += "if __name__ == '__main__': run(lambda: in_pool(w.prepare, ['long'], 1, 'cpu', print))"
    (tmp_path / "caller.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    caller = subprocess.Popen([sys.executable, "caller.py"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and caller.poll() is None
        time.sleep(0.1)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(60) == 143
    worker.wait(60)
