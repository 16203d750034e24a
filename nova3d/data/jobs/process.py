"""One worker as its parent sees it: a process group with pipes, a log, a temporary folder and a memory."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from nova3d.data.jobs.devices import Slot

log = logging.getLogger(__name__)
WORKER = ("-m", "nova3d.data.jobs.worker")  # the program that speaks the worker's protocol
_TAIL_BYTES = 8000
_EXIT_SECONDS = 3.0
_CUDA_CACHE_BYTES = 4 << 30  # compiled kernels of Cycles alone exceed the driver's default of 1 GiB


class WorkerProcess:
    """A running `nova3d.data.jobs.worker`, leader of its own process group, pinned to the slot's device.

    A guard in the group kills it when this process dies: the worker may hang, and what it started (Blender) would stay.

    `folder` is its TMPDIR and holds its log; it is emptied at the start and removed at the end.
    """

    def __init__(self, slot: Slot, config_file: Path, writer: str, folder: Path):
        self.slot = slot
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._log = folder / "stderr.txt"
        self._unread = b""
        command = [sys.executable, *WORKER, "--config", str(config_file)]
        command += ["--writer", writer, "--parent", str(os.getpid())]
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment(),
                process_group=0,
            )
        guard = ["/bin/sh", "-c", "read _; kill -9 0"]  # nothing is ever sent: `read` returns when our end is closed
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, process_group=self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)

    def _environment(self) -> dict[str, str]:
        threads = str(self.slot.threads)
        folders = {key: str(self.folder) for key in ("TMPDIR", "TEMP", "TMP")}
        counts = {key: threads for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        cache = {"CUDA_CACHE_MAXSIZE": str(_CUDA_CACHE_BYTES)}
        # Exactly one GPU, by UUID; on the CPU none, so that nothing takes one unasked.
        return cache | dict(os.environ) | folders | counts | {"CUDA_VISIBLE_DEVICES": self.slot.gpu}

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._answers.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Hand over a request; False where the worker is dead."""
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have arrived, and whether the worker is still there."""
        alive = True
        while True:
            try:
                data = os.read(self._answers.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not data:
                alive = False
                break
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [message for line in lines if (message := _parse(line))], alive

    def clear_log(self) -> None:
        """Forget what was logged about earlier objects."""
        os.truncate(self._log, 0)

    def tail(self) -> str:
        """The end of the log."""
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def finish(self) -> None:
        """End an idle worker: its requests end, and what is left of its group is killed."""
        try:
            self._requests.close()
            self._process.wait(_EXIT_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            log.debug("worker %s did not leave by itself", self.slot.name)
        self.kill()

    def kill(self) -> str:
        """Kill the whole process group and remove its folder; returns how the worker ended."""
        # Children may outlive the leader: the group is killed even when the leader is gone.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            log.debug("worker %s: its group is gone", self.slot.name)
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("worker %s cannot be killed (process %d)", self.slot.name, self._process.pid)
            code = 0
        for pipe in (self._requests, self._answers, self._guard.stdin):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]  # stdin was asked for
        self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def wait(self) -> str:
        """How a worker that closed its pipe ended by itself; it is given a moment, then killed."""
        until = time.monotonic() + _EXIT_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.kill()


def family_memory(leaders: Iterable[int]) -> dict[int, int]:
    """Resident bytes of each process in `leaders` and of everything it started, in one pass over the machine."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        if process.info["memory_info"] is not None:  # gone, or another user's
            parents[process.pid], resident[process.pid] = process.info["ppid"], process.info["memory_info"].rss
    totals = dict.fromkeys(leaders, 0)
    for pid, used in resident.items():
        ancestor = pid
        while ancestor in parents and ancestor not in totals:
            ancestor = parents[ancestor]
        if ancestor in totals:
            totals[ancestor] += used
    return totals


def _parse(line: bytes) -> dict[str, Any] | None:
    """A message, or None for what a library printed before the worker took its stdout away."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if isinstance(message, dict) and "event" in message:
        return message
    log.debug("a worker printed %r", line[:200])
    return None
