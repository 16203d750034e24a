"""The scheduler's side of a worker: it starts the process, hands it objects, reads its messages and kills it."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.devices import Slot
from nova3d.data.jobs.journal import object_path
from nova3d.data.jobs.policy import Attempt, CircuitBreaker, RenderTask, Timeouts
from nova3d.rendering.reasons import Reason

log = logging.getLogger(__name__)
WORKER = ("-m", "nova3d.data.jobs.worker")  # the program of a worker process
_START_FAILURES = 2
_LOG_BYTES = 8000
_EXIT_SECONDS = 3.0
_CUDA_CACHE_BYTES = 4 << 30  # compiled kernels of Cycles alone exceed the driver's default of 1 GiB


class WorkerClient:
    """One slot and the worker process that runs in it, pinned to the slot's device.

    The process leads a process group. A guard process in the group kills it when the scheduler's process dies: the
    worker may hang, and what it started (Blender) would stay.

    Args:
        slot: where the worker runs.
        name: of the worker, unique in the job; names its temporary files.
        config: the job's.
        timeouts: those of all workers.
        scratch: holds the worker's TMPDIR and its log.

    Attributes:
        slot: where the worker runs.
        breaker: its circuit breaker.
        pipe: messages of the running process, None where there is none.
        pid: of the latest process, also the id of its group.
        task: the object in flight.
        views: views done of the object in flight.
        served: objects that the running process was given.
        stopped: why no more processes are started here, "" while they are.
    """

    def __init__(self, slot: Slot, name: str, config: RenderConfig, timeouts: Timeouts, scratch: Path):
        self.slot, self.breaker = slot, CircuitBreaker(config.pool)
        self.pipe: Connection | None = None
        self.task: RenderTask | None = None
        self.pid, self.views, self.served, self.stopped = 0, 0, 0, ""
        self._name, self._config, self._timeouts = name, config, timeouts
        self._folder, self._log = scratch / name, scratch / name / "log.txt"
        self._ready = False  # whether the engine has started
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

    def start(self) -> None:
        """Start a process."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        ours, theirs = Pipe()
        command = [sys.executable, *WORKER, "--pipe", str(theirs.fileno()), "--parent", str(os.getpid())]
        folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._folder))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.slot.threads))
        # Exactly one GPU, by UUID, or none on the CPU.
        pinned = folders | threads | {"CUDA_VISIBLE_DEVICES": self.slot.gpu}
        with theirs, self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--writer", self._name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"CUDA_CACHE_MAXSIZE": str(_CUDA_CACHE_BYTES)} | os.environ | pinned,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self.pid = self._process.pid
        guard = ["/bin/sh", "-c", "read _; kill -9 0"]  # nothing is ever sent: `read` returns when our end is closed
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, process_group=self.pid)
        self.pipe, self.served, self._began = ours, 0, time.monotonic()
        engine = replace(self._config.engine, threads=self._config.engine.threads or self.slot.threads)
        self._send(replace(self._config, engine=engine))

    def submit(self, task: RenderTask, path: Path) -> None:
        """Have the mesh file `path` of a task rendered."""
        self.task, self.views, self.served = task, 0, self.served + 1
        self._began = self._last_beat = time.monotonic()
        os.truncate(self._log, 0)  # the log is about one object
        target = object_path(Path(self._config.out), task.asset.uid)
        self._send({"asset": task.asset.to_row(), "path": path, "target": target})

    def receive(self) -> Attempt | None:
        """Read the worker's messages; return the attempt that ended, where there is one."""
        ended = None
        try:
            while self.pipe and self.pipe.poll():
                ended = self._read(self.pipe.recv()) or ended
        except (EOFError, ConnectionError):  # the process has ended by itself
            was_ready, tail = self._ready, self._log_tail()
            why = f"the worker died: {self._end_process(_EXIT_SECONDS)}"
            why += f" | stderr: {tail.splitlines()[-1][:200]}" if tail else ""
            if self.task:
                return self._end_attempt(Reason.CRASH, why, tail, worker_died=True)
            if not was_ready:
                self._fail_start(why, final=False)
        return ended

    def enforce_limits(self, memory: int, limit_bytes: int) -> Attempt | None:
        """Kill the worker where it hangs, takes too long, or uses more than `limit_bytes` (memory 0: not known)."""
        if self.pipe and not self._ready and self.seconds > (limit := self._config.pool.start_seconds):
            self._fail_start(f"not started within {limit:g} s (pool.start_seconds)", final=False)
        if self.task is None:
            return None
        reason, last_attempt = Reason.TIMEOUT, self.task.last_attempt(self._config.pool.strikes)
        if time.monotonic() - self._last_beat > (limit := self._timeouts.heartbeat(last_attempt)):
            why = f"no progress for {limit:.3g} s after view {self.views}"
        elif self.seconds > (limit := self._timeouts.per_object(last_attempt)):
            why = f"not finished within {limit:g} s"
        elif memory > limit_bytes:
            used, most = (f"{size / 1e9:.1f} GB" for size in (memory, limit_bytes))
            reason, why = Reason.OUT_OF_MEMORY, f"the worker used {used}, the limit is {most} (pool.memory_gb)"
        else:
            return None
        log.warning("worker %s killed at object %s: %s", self.slot.name, self.task.asset.uid, why)
        tail = self._log_tail()
        self.terminate()
        return self._end_attempt(reason, why, tail, worker_died=True)

    def needs_recycling(self, reason: Reason | None) -> bool:
        """Return whether the next object needs a fresh process, after one that ended with `reason`."""
        pool, doubtful = self._config.pool, reason in (Reason.OUT_OF_MEMORY, Reason.DEVICE, Reason.CRASH)
        return doubtful or self.served >= pool.recycle_objects or group_memory()[self.pid] > pool.recycle_gb * 1e9

    def terminate(self) -> None:
        """End the process: an idle one by closing its pipe, a busy one by SIGKILL."""
        if self.pipe is not None:
            self._end_process(_EXIT_SECONDS if self.idle else 0)

    def _send(self, message: Any) -> None:
        assert self.pipe is not None
        with contextlib.suppress(ConnectionError):  # `receive` notices a process that is dead
            self.pipe.send(message)

    def _read(self, message: dict[str, Any]) -> Attempt | None:
        match message["event"]:
            case "ready":
                device, wanted = str(message["engine"].get("device")), self._config.engine.device
                if device.partition(":")[0] != wanted:  # engines may fall back to the CPU silently
                    self._fail_start(f"{Reason.DEVICE}: the engine runs on '{device}', not on '{wanted}'", final=True)
                else:
                    self._ready, self._start_failures = True, 0
            case "failed":
                self._fail_start(message["message"], final=message["reason"] == Reason.DEVICE)
            case "heartbeat":
                now, views = time.monotonic(), message["views"]
                if views > max(1, self.views):  # the first view includes loading
                    self._timeouts.observe((now - self._last_beat) / (views - self.views))
                self.views, self._last_beat = views, now
                self._timeouts.warm = self._timeouts.warm or views > 0
            case "finished":
                reason = Reason(message["reason"]) if message["reason"] else None
                tail = self._log_tail() if reason and reason.transient else ""
                return self._end_attempt(reason, message["message"], tail)
        return None

    def _fail_start(self, why: str, final: bool) -> None:
        self._start_failures += 1
        log.warning("worker %s cannot start: %s", self.slot.name, why)
        if final or self._start_failures >= _START_FAILURES:
            self.stopped = why
        self.terminate()

    def _end_attempt(self, reason: Reason | None, message: str, tail: str, worker_died: bool = False) -> Attempt:
        assert self.task is not None
        task, self.task, device = self.task, None, self.slot.gpu or "cpu"
        return Attempt(task, reason, message, self.seconds, self.slot.name, device, worker_died, tail)

    def _log_tail(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode(errors="replace").strip()

    def _end_process(self, patience: float) -> str:
        """Close the pipe, wait so many seconds, kill what is left of the group; return how the worker ended."""
        assert self.pipe is not None
        self.pipe.close()
        self.pipe, self._ready = None, False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        # Children may outlive the leader: the group is killed even when the leader is gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("worker %s cannot be killed (process %d)", self.slot.name, self.pid)
            code = 0
        self._guard.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def group_memory() -> Counter[int]:
    """Return the resident bytes of each process group of the machine. A worker leads one, which is all that it runs."""
    groups: Counter[int] = Counter()
    for process in psutil.process_iter(["memory_info"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is another user's
            if process.info["memory_info"] is not None:
                groups[os.getpgid(process.pid)] += process.info["memory_info"].rss
    return groups
