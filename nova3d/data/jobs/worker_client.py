"""The scheduler's side of a worker: it starts the process, hands it objects, reads its messages and kills it."""

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

from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.policy import CircuitBreaker, Result, Task, Timeouts
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason
from nova3d.utils.files import parse_json

log = logging.getLogger(__name__)
WORKER = ("-m", "nova3d.data.jobs.worker")  # the program of a worker process
_START_FAILURES = 2
_LOG_BYTES = 8000
_EXIT_SECONDS = 3.0
_CUDA_CACHE_BYTES = 4 << 30  # compiled kernels of Cycles alone exceed the driver's default of 1 GiB


class WorkerClient:
    """One slot and the worker that runs in it.

    Attributes:
        slot: the slot.
        name: of the worker, unique in the job; names its temporary files.
        process: the running worker.
        task: the object in flight.
        views: views done of the object in flight.
        served: objects that the running process was given.
        stopped: why no more workers are started here, "" while they are.
    """

    def __init__(self, slot: Slot, name: str, config: RenderConfig, timeouts: Timeouts, scratch: Path):
        self.slot, self.name = slot, name
        self.breaker = CircuitBreaker(config.pool)
        self.process: WorkerProcess | None = None
        self.task: Task | None = None
        self.stopped = ""
        self.served = self.views = 0
        self._config, self._timeouts, self._folder = config, timeouts, scratch / name
        self._ready = False
        self._began = self._last_beat = 0.0  # start of the process or of the object; its last progress
        self._start_failures = 0

    @property
    def idle(self) -> bool:
        """Whether the worker can be given an object now."""
        return self._ready and self.task is None

    @property
    def seconds(self) -> float:
        """How long the object in flight, or the start, has taken."""
        return time.monotonic() - self._began

    def start(self, config_file: Path) -> None:
        """Start a process."""
        self.process = WorkerProcess(self.slot, config_file, self.name, self._folder)
        self._ready, self.served, self._began = False, 0, time.monotonic()

    def submit(self, task: Task, path: Path, target: Path) -> None:
        """Have the mesh `path` rendered into the tar `target`. `receive` notices a worker that is dead already."""
        assert self.process is not None and self.task is None
        self.task, self.views, self.served = task, 0, self.served + 1
        self._began = self._last_beat = time.monotonic()
        self.process.clear_log()
        self.process.send({"asset": task.asset.to_row(), "path": str(path), "target": str(target)})

    def receive(self) -> Result | None:
        """Read the worker's messages; return the result of the object in flight, where there is one."""
        assert self.process is not None
        result = None
        messages, alive = self.process.receive()
        for message in messages:
            match message["event"]:
                case "ready":
                    self._check_device(str(message["engine"].get("device")))
                case "beat":
                    self._record_beat(message["views"])
                case "end":
                    reason = Reason(message["reason"]) if message["reason"] else None
                    tail = self.process.log_tail() if reason and reason.transient else ""
                    result = self._result(reason, message["message"], tail)
                case "fault":
                    self._fail_start(message["message"], final=message["reason"] == Reason.DEVICE)
            if self.process is None:
                return None
        return result if alive else self._handle_exit() or result

    def enforce_limits(self, memory: int | None, limit_bytes: int) -> Result | None:
        """Kill the worker where it hangs, takes too long, or uses more than `limit_bytes` (memory None: not known)."""
        if self.process and not self._ready and self.seconds > (limit := self._config.pool.start_seconds):
            self._fail_start(f"no answer within {limit:g} s", final=False)
        if self.process is None or self.task is None:
            return None
        last_try = self.task.last_try(self._config.pool.strikes)
        if time.monotonic() - self._last_beat > (limit := self._timeouts.heartbeat(last_try)):
            return self._kill(Reason.TIMEOUT, f"no progress for {limit:.3g} s after view {self.views}")
        if self.seconds > (limit := self._timeouts.per_object(last_try)):
            return self._kill(Reason.TIMEOUT, f"not finished within {limit:g} s")
        if memory is not None and memory > limit_bytes:
            return self._kill(Reason.OUT_OF_MEMORY, f"its worker grew to {memory / 1e9:.1f} GB")
        return None

    def needs_recycling(self, reason: Reason | None) -> bool:
        """Return whether the next object needs a fresh process, after one that ended with `reason`."""
        if self.process is None:
            return False
        pool = self._config.pool
        if reason in (Reason.OUT_OF_MEMORY, Reason.DEVICE, Reason.CRASH) or self.served >= pool.recycle_objects:
            return True
        return process_tree_memory([self.process.pid])[self.process.pid] > pool.recycle_gb * 1e9

    def terminate(self) -> None:
        """End the process: an idle one by closing its input, a busy one by SIGKILL."""
        if self.process is not None:
            self.process.end(_EXIT_SECONDS if self.idle else 0)
            self.process, self._ready = None, False

    def _check_device(self, device: str) -> None:
        """Accept a worker that is ready on the device that was asked for; engines may fall back to the CPU silently."""
        wanted = self._config.engine.device
        if device.partition(":")[0] != wanted:
            self._fail_start(f"{Reason.DEVICE}: it runs on '{device}', asked was '{wanted}'", final=True)
            return
        self._ready, self._start_failures = True, 0

    def _fail_start(self, why: str, final: bool) -> None:
        self._start_failures += 1
        log.warning("worker %s cannot start: %s", self.slot.name, why)
        if final or self._start_failures >= _START_FAILURES:
            self.stopped = why
        self.terminate()

    def _record_beat(self, views: int) -> None:
        now = time.monotonic()
        if views > max(1, self.views):  # the first view includes loading
            self._timeouts.observe((now - self._last_beat) / (views - self.views))
        self.views, self._last_beat = views, now
        self._timeouts.warm = self._timeouts.warm or views > 0

    def _kill(self, reason: Reason, message: str) -> Result:
        assert self.process is not None and self.task is not None
        log.warning("worker %s killed at object %s: %s", self.slot.name, self.task.asset.uid, message)
        tail = self.process.log_tail()
        self.terminate()
        return self._result(reason, message, tail, worker_died=True)

    def _handle_exit(self) -> Result | None:
        """Clean up after a process that ended by itself."""
        assert self.process is not None
        was_ready, tail = self._ready, self.process.log_tail()
        why = f"the worker died: {self.process.end(_EXIT_SECONDS)}"
        why += f" | stderr: {tail.splitlines()[-1][:200]}" if tail else ""
        self.process, self._ready = None, False
        if self.task:
            return self._result(Reason.CRASH, why, tail, worker_died=True)
        if not was_ready:
            self._fail_start(why, final=False)
        return None

    def _result(self, reason: Reason | None, message: str, tail: str, worker_died: bool = False) -> Result:
        assert self.task is not None
        task, self.task, device = self.task, None, self.slot.gpu or "cpu"
        return Result(task, reason, message, self.seconds, self.slot.name, device, worker_died, tail)


class WorkerProcess:
    """A process of the worker program, pinned to a slot's device and leader of its own process group.

    A guard process in the group kills the group when this process dies: the worker may hang, and what it started
    (Blender) would stay.

    Args:
        slot: where it runs.
        config_file: a RenderConfig as YAML.
        writer: names the worker's temporary files.
        folder: its TMPDIR, which also holds its log; emptied at the start and removed at the end.
    """

    def __init__(self, slot: Slot, config_file: Path, writer: str, folder: Path):
        self._slot, self._folder = slot, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._log = folder / "stderr.txt"
        self._unread = b""
        command = [sys.executable, *WORKER, "--config", str(config_file)]
        command += ["--writer", writer, "--parent", str(os.getpid())]
        pipe, environment = subprocess.PIPE, self._environment()
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, process_group=0
            )
        guard = ["/bin/sh", "-c", "read _; kill -9 0"]  # nothing is ever sent: `read` returns when our end is closed
        self._guard = subprocess.Popen(guard, stdin=pipe, process_group=self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)

    def _environment(self) -> dict[str, str]:
        folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._folder))
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._slot.threads))
        cache = {"CUDA_CACHE_MAXSIZE": str(_CUDA_CACHE_BYTES)}
        # Exactly one GPU, by UUID; on the CPU none, so that nothing takes one unasked.
        return cache | dict(os.environ) | folders | counts | {"CUDA_VISIBLE_DEVICES": self._slot.gpu}

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return a descriptor that is readable when messages have arrived or the process has ended."""
        return self._answers.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a request; a dead process is noticed by `receive`."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that have arrived, and whether the process is still there."""
        alive = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._answers.fileno(), 1 << 16):
                self._unread += data
            alive = False
        *lines, self._unread = self._unread.split(b"\n")
        return [message for line in lines if (message := _parse_message(line))], alive

    def clear_log(self) -> None:
        """Empty the log, which then is about the next object alone."""
        os.truncate(self._log, 0)

    def log_tail(self) -> str:
        """Return the end of the log."""
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode(errors="replace").strip()

    def end(self, patience: float) -> str:
        """Close its requests, wait for its exit, then kill what is left of its group and remove its folder.

        Args:
            patience: seconds to wait before it is killed.

        Returns:
            How the worker ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        # Children may outlive the leader: the group is killed even when the leader is gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("worker %s cannot be killed (process %d)", self._slot.name, self._process.pid)
            code = 0
        self._answers.close()
        self._guard.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def process_tree_memory(roots: Iterable[int]) -> dict[int, int]:
    """Return the resident bytes of each process in `roots` with all its descendants, in one pass over the machine."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        if process.info["memory_info"] is not None:  # gone, or another user's
            parents[process.pid], resident[process.pid] = process.info["ppid"], process.info["memory_info"].rss
    totals = dict.fromkeys(roots, 0)
    for pid, used in resident.items():
        ancestor = pid
        while ancestor in parents and ancestor not in totals:
            ancestor = parents[ancestor]
        if ancestor in totals:
            totals[ancestor] += used
    return totals


def _parse_message(line: bytes) -> dict[str, Any] | None:
    """Return a message, or None for what a library printed before the worker redirected its stdout."""
    with contextlib.suppress(InputError):
        if "event" in (message := parse_json(line, dict, "message")):
            return message
    log.debug("a worker printed %r", line[:200])
    return None
