"""Work that is shared out over processes: one, several CPU processes of one thread each, or one process per GPU."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from nova3d.errors import InputError

_POLL_SECONDS = 1.0

# (part, parts, device, tell): does the shares part, part + parts, part + 2 parts ...; `tell` is called now and then.
Work = Callable[[int, int, str, Callable[[], None]], None]


def in_parts(work: Work, workers: int, device: str, tell: Callable[[], None]) -> None:
    """Do all of `work`: here where there is one worker, else in `workers` new processes, so it must be picklable.

    device "cuda" with several workers: worker i sees only GPU i modulo their number. Other devices are shared.
    tell: called in this process, now and then. Raises InputError with what a worker raised as one, and where a worker
    died; the others finish their shares first.
    """
    if workers < 1:
        raise InputError(f"the number of workers must be at least 1, got {workers}")
    if workers == 1:
        work(0, 1, device, tell)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    visible = _visible_gpus() if device == "cuda" else []
    processes = []
    for part in range(workers):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(work, part, workers, device, there))
        with _environment(_variables(part, visible)):
            process.start()
        there.close()
        processes.append((process, here))
    try:
        while wait([process.sentinel for process, _ in processes if process.is_alive()], _POLL_SECONDS) or any(
            process.is_alive() for process, _ in processes
        ):
            tell()
    finally:
        for process, _ in processes:
            process.terminate()
            process.join()
    tell()
    _raise_first([(process.exitcode, _receive(pipe)) for process, pipe in processes])


def _worker(work: Work, part: int, parts: int, device: str, pipe: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(part, parts, device, lambda: None)
        pipe.send("")
    except InputError as error:
        pipe.send(str(error))


def _end_with_parent() -> None:
    """End this process when its parent has ended, also by SIGKILL: nobody would read what it still makes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
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
                "often for want of memory); the same command goes on from there, perhaps with fewer workers"
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
