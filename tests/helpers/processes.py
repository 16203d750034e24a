"""Scripts in processes of their own, which need not import torch anew.

They are forked from a server that has imported the trainer and has computed nothing: a process whose autograd has
worked cannot be forked where there is a GPU.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["nova3d.training.trainer"])


class ScriptProcess:
    """`python SCRIPT ARGUMENTS` with one thread; what it prints goes to `logs`/NAME.out and `logs`/NAME.err."""

    def __init__(self, script: Path, *arguments: str | Path, logs: Path, name: str = "script", **environment: str):
        self._files = (logs / f"{name}.out", logs / f"{name}.err")
        words = [str(script), *map(str, arguments)]
        self._process = _CONTEXT.Process(target=_run, args=(words, self._files, environment))
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it is at work."""
        return self._process.is_alive()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text()

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self._files[1].read_text()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 300) -> int | None:
        """Wait for its end; returns the exit code, None where it is still at work."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.join()


def _run(words: list[str], files: tuple[Path, Path], environment: dict[str, str]) -> None:
    import torch

    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
