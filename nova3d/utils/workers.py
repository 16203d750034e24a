"""Work that is shared out over processes: one, several CPU processes of one thread each, or one process per GPU."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import psutil

from nova3d.errors import InputError
from nova3d.utils.allocator import keep_freed_memory
from nova3d.utils.plugins import import_inherited

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1

# (part, parts, device, tick): does the shares part, part + parts, part + 2 parts ... and calls `tick` after each.
Work = Callable[[int, int, str, Callable[[], None]], None]


def in_parts(work: Work, workers: int, device: str, tick: Callable[[], None]) -> None:
    """Do all of `work`: here where there is one worker, else in new processes.

    Args:
        work: picklable.
        workers: processes, 1 or more.
        device: for the work. With "cuda" and several workers, worker i sees only GPU i modulo their number. Other
            devices are shared.
        tick: called in this process after each share, or about once a second while other processes work.

    Raises:
        InputError: for several workers on a GPU that is named by its index; with what a worker raised as one, and
            where a worker died. The others finish their shares first.
    """
    _check(workers, device)
    if workers == 1:
        work(0, 1, device, tick)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    visible = _visible_gpus() if device == "cuda" else []
    processes = []
    for part in range(workers):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(work, part, workers, device, os.getpid(), there))
        with _environment(_variables(part, visible)):
            process.start()
        there.close()
        processes.append((process, here))
    try:
        while wait([process.sentinel for process, _ in processes if process.is_alive()], _POLL_SECONDS) or any(
            process.is_alive() for process, _ in processes
        ):
            tick()
    finally:
        for process, _ in processes:
            process.terminate()
            process.join()
    tick()
    _raise_first([(process.exitcode, _receive(pipe)) for process, pipe in processes])


def in_pool(
    prepare: Callable[[str], Callable[[T], R]],
    tasks: Sequence[T],
    workers: int,
    device: str,
    finished: Callable[[int, R | None, str], None],
) -> None:
    """Share tasks out over new processes of one thread each. A process that dies costs its task only.

    Args:
        prepare: called once in each process with the device, and returns what does one task. Like the tasks and
            results it must be picklable.
        tasks: what to do.
        workers: processes at most, 1 or more.
        device: as in `in_parts`.
        finished: called in this process as (index of the task, its result or None, why there is none).

    Raises:
        InputError: as `in_parts` for the device; what `prepare` or a task raises as one. The other processes are ended
            then.
    """
    _check(workers, device)
    context = multiprocessing.get_context("spawn")
    visible = _visible_gpus() if device == "cuda" else []
    waiting = list(range(len(tasks)))[::-1]
    at_work: dict[Connection, tuple[BaseProcess, int, int]] = {}  # pipe -> process, its number, its task

    def start(number: int) -> None:
        here, there = context.Pipe()
        process = context.Process(target=_pool_worker, args=(prepare, device, os.getpid(), there))
        with _environment(_variables(number, visible)):
            process.start()
        there.close()
        hand_out(here, process, number)

    def hand_out(pipe: Connection, process: BaseProcess, number: int) -> None:
        if not waiting:
            pipe.close()  # the process ends
            process.join()
            return
        at_work[pipe] = process, number, (task := waiting.pop())
        with suppress(OSError):  # a process that died already is met below
            pipe.send(tasks[task])

    try:
        for number in range(min(workers, len(tasks))):
            start(number)
        while at_work:
            for pipe in cast(list[Connection], wait(list(at_work))):
                process, number, task = at_work.pop(pipe)
                try:
                    result, refusal = pipe.recv()
                except (EOFError, OSError):
                    pipe.close()
                    process.join()
                    why = f"its process ended with exit code {process.exitcode} (negative: killed by that signal)"
                    finished(task, None, why)
                    if waiting:
                        start(number)
                    continue
                if refusal:
                    raise InputError(refusal)
                finished(task, result, "")
                hand_out(pipe, process, number)
    finally:
        for process, _, _ in at_work.values():
            process.terminate()
            process.join()


def _check(workers: int, device: str) -> None:
    if workers < 1:
        raise InputError(f"the number of workers must be at least 1, got {workers}")
    if workers > 1 and device.startswith("cuda:"):
        raise InputError(
            f"device '{device}' names one GPU, but {workers} workers share the GPUs out: use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among the GPUs"
        )


def _pool_worker(prepare: Callable[[str], Callable[[Any], Any]], device: str, parent: int, pipe: Connection) -> None:
    exit_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    with suppress(EOFError):  # the parent has no more tasks
        task = pipe.recv()
        try:
            keep_freed_memory()
            import_inherited()
            do = prepare(device)
            while True:
                pipe.send((do(task), ""))
                task = pipe.recv()
        except InputError as error:
            pipe.send((None, str(error)))


def _worker(work: Work, part: int, parts: int, device: str, parent: int, pipe: Connection) -> None:
    exit_with_parent(parent)
    try:
        keep_freed_memory()
        import_inherited()
        work(part, parts, device, lambda: None)
        pipe.send("")
    except InputError as error:
        pipe.send(str(error))


def exit_with_parent(parent: int) -> None:
    """End this process when its parent has ended, also by SIGKILL: nothing would read what it still makes.

    On Linux the kernel kills it, whatever it is doing. Elsewhere a thread ends it.

    Args:
        parent: the process id of its parent, which may have ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _exit_after(process: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(process).wait()
    os._exit(1)


def _receive(pipe: Connection) -> str | None:
    """What a finished worker sent: "" for done, the message of an InputError, None where it died before."""
    try:
        return str(pipe.recv())
    except EOFError:
        return None


def _raise_first(results: list[tuple[int | None, str | None]]) -> None:
    for part, (exitcode, message) in enumerate(results):
        if message:
            raise InputError(message)
        if message is None:
            raise InputError(
                f"worker {part} of {len(results)} ended with exit code {exitcode} (negative: killed by that signal, "
                "often because memory ran out); the same command goes on from there, perhaps with fewer workers"
            )


def _visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _variables(part: int, gpus: list[str]) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1"}
    return threads | {"CUDA_VISIBLE_DEVICES": gpus[part % len(gpus)]} if gpus else threads


@contextmanager
def _environment(variables: dict[str, Any]) -> Iterator[None]:
    """A new process inherits the environment of the moment it is started."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
