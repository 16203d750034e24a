"""The app's queue: jobs wait in turn for worker processes, and a job that is stopped frees its worker.

A job runs in a process of its own, so that it can be ended in the middle of an operation, and so that a lack of memory
ends one job and not the app.
"""

import logging
import multiprocessing
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nova3d.errors import InputError, first_line
from nova3d.utils.allocator import keep_freed_memory
from nova3d.utils.plugins import import_inherited

if TYPE_CHECKING:
    from nova3d.app.tasks import AppTask, TaskResult
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0  # within which a stopped job may end by itself; then its process is ended
_POLL_SECONDS = 0.1
State = Literal["waiting", "running", "done", "failed", "stopped"]


class Job:
    """One task in the queue. Its attributes are written by the queue and may be read at any time."""

    def __init__(self, task: "AppTask"):
        self.task = task
        self.token = secrets.token_urlsafe(16)
        """Names the job's report in its address, and cannot be guessed."""
        self.state: State = "waiting"
        self.stage: tuple[int, int, str] | None = None
        """What the worker said last: done, total and stage, as a progress callback gets them."""
        self.sheet: Path | None = None
        """A picture of all views, as soon as it is there."""
        self.result: TaskResult | None = None
        self.error = ""
        """Why it failed, in one line."""
        self._started = self._stopped = 0.0
        self.ended = threading.Event()
        self.stop_asked = threading.Event()

    @property
    def seconds(self) -> float:
        """For how long a worker has had it, or had it."""
        return (self._stopped or time.monotonic()) - self._started if self._started else 0.0

    def start(self) -> None:
        """Say that a worker has it; called by the queue."""
        self.state, self._started = "running", time.monotonic()

    def end(self, state: State, error: str = "") -> None:
        """Set the last state; called by the queue."""
        self.state, self.error, self._stopped = state, error, time.monotonic()
        self.ended.set()


class JobQueue:
    """Jobs in the order of their arrival, and the worker processes that do them.

    Args:
        load: loads the model that every worker holds. It is pickled.
        device: where the workers compute.
        workers: the number of processes.
        waiting: the most jobs that may wait.
    """

    def __init__(self, load: Callable[[], "Nova3DPipeline"], device: str, workers: int = 1, waiting: int = 20):
        self._most_waiting, self._waiting = waiting, deque[Job]()
        self._changed = threading.Condition()
        self._closed = False
        self._running: set[Job] = set()
        self._threads = [
            threading.Thread(target=self._serve, args=(_Worker(load, device),), daemon=True) for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: "AppTask") -> Job:
        """Add a job to the end of the queue.

        Args:
            task: what to do. Its output folder exists and is the task's own.

        Returns:
            The job.

        Raises:
            InputError: where too many wait.
        """
        job = Job(task)
        with self._changed:
            if len(self._waiting) >= self._most_waiting + len(self._threads) - len(self._running):
                raise InputError(f"{len(self._waiting)} jobs are waiting already: try again in a few minutes")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before a waiting one, those at work included; 0 for any other."""
        with self._changed:
            return self._waiting.index(job) + len(self._running) if job in self._waiting else 0

    def stop(self, job: Job, wait: bool = False) -> None:
        """End a job; one that has ended stays as it is.

        Args:
            job: of this queue.
            wait: until its worker writes no more.
        """
        job.stop_asked.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.end("stopped")
        if wait:
            job.ended.wait()

    def close(self) -> None:
        """Stop all jobs and end the workers."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running]
            self._changed.notify_all()
        for job in jobs:
            self.stop(job)
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: "_Worker") -> None:
        """What a thread does: take one job after the other, and have its worker do it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                job = self._waiting.popleft()
                self._running.add(job)
            job.start()
            try:
                worker.do(job)
            except Exception as error:  # of the process, its pipe or the pickling: the queue goes on
                log.exception("a worker could not be reached")
                worker.restart()
                job.end("failed", f"the worker could not be reached: {first_line(error)}")
            finally:
                with self._changed:
                    self._running.discard(job)
        worker.terminate()


class _Worker:
    """A worker process with the model, as the thread that hands it jobs sees it."""

    def __init__(self, load: Callable[[], "Nova3DPipeline"], device: str):
        self._arguments = load, device
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._stop = context.Event()
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, self._stop, *self._arguments), daemon=True)
        self._process.start()
        there.close()

    def terminate(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def restart(self) -> None:
        """End the process at once, and start another one."""
        self.terminate()
        self._start()

    def do(self, job: Job) -> None:
        """Have the process do a job, and follow it to its end."""
        if job.stop_asked.is_set():
            job.end("stopped")
            return
        if not self._process.is_alive():  # the system may have ended it while it was idle
            self.restart()
        self._stop.clear()
        self._pipe.send(job.task)
        last_moment = None
        while not job.ended.is_set():
            if job.stop_asked.is_set() and last_moment is None:
                self._stop.set()
                last_moment = time.monotonic() + STOP_SECONDS
            if last_moment is not None and time.monotonic() > last_moment:
                self.restart()
                job.end("stopped")
            elif self._pipe.poll(_POLL_SECONDS):
                self._hear(job)

    def _hear(self, job: Job) -> None:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            log.error("a worker ended with exit code %s", self._process.exitcode)
            self.restart()
            job.end("failed", "the worker ended unexpectedly, often for want of memory: try a lower quality")
            return
        match kind:
            case "progress":
                job.stage = value
            case "sheet":
                job.sheet = value
            case "done":
                job.result = value
                job.end("done")
            case "failed":
                job.end("failed", value)
            case "stopped":
                job.end("stopped")


class _StoppedError(Exception):
    """Raised through a task by its progress callback."""


def _work(pipe: Connection, stop: Event, load: Callable[[], "Nova3DPipeline"], device: str) -> None:
    """A worker process: load the model, then do what comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the app, which ends its workers
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    keep_freed_memory()
    tell: Callable[..., None] = lambda kind, value=None: pipe.send((kind, value))  # noqa: E731

    def progress(done: int, total: int, stage: str) -> None:
        if stop.is_set():
            raise _StoppedError
        tell("progress", (done, total, stage))

    failed, pipeline = "", None
    try:
        import_inherited()
        pipeline = load()
    except InputError as error:
        failed = str(error)
        log.error("%s", failed)
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # the app has ended
            return
        try:
            if failed:
                raise InputError(failed)
            tell("done", task.run(device, pipeline, progress, lambda path: tell("sheet", path)))
        except _StoppedError:
            tell("stopped")
        except InputError as error:
            tell("failed", " ".join(str(error).split()))
        except Exception as error:  # a bug or a full disk ends one job
            log.exception("a job failed")
            tell("failed", f"{type(error).__name__}: {first_line(error)}")
