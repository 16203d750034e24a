"""What the app keeps of each visitor: a folder, a picture with its mask, and a job."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from nova3d.app.jobs import Job, JobQueue
from nova3d.errors import InputError
from nova3d.utils.files import remove, writable_folder

if TYPE_CHECKING:
    from nova3d.app.tasks import AppTask

MOST_SESSIONS = 200  # whoever opens more pages at once is refused


@dataclass
class Picture:
    """A visitor's picture and what is taken as its object."""

    path: Path
    """The file."""
    shown: Image.Image
    """The picture as the page shows it."""
    mask: Path
    """The mask as a file of the picture's size; white is object."""
    edited: bool = False
    """Whether the mask is the visitor's own."""


@dataclass
class Session:
    """One open page."""

    folder: Path
    picture: Picture | None = None
    job: Job | None = None
    used: float = 0.0
    """When it was last asked for."""

    def new_folder(self, name: str) -> Path:
        """A new folder in the session's own, whose name begins with `name`."""
        return writable_folder(self.folder / f"{name}-{secrets.token_hex(4)}")


class Sessions:
    """All open pages. What a session has written goes when its page is closed or left alone for too long.

    Args:
        root: where the sessions' folders are made.
        queue: of their jobs.
        keep_seconds: how long a session without a request is kept.
        clock: seconds that only grow.
    """

    def __init__(
        self, root: str | Path, queue: JobQueue, keep_seconds: float, clock: Callable[[], float] = time.monotonic
    ):
        self._root, self._queue, self._keep, self._clock = Path(root), queue, keep_seconds, clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """The session of a page, made where it is new.

        Args:
            key: what the browser calls itself; no path is made of it.

        Returns:
            The session.

        Raises:
            InputError: where too many pages are open.
        """
        self.sweep()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                if len(self._sessions) >= MOST_SESSIONS:
                    raise InputError("too many pages are open: try again later")
                session = Session(writable_folder(self._root / secrets.token_hex(16)))
                self._sessions[key] = session
            session.used = self._clock()
            return session

    def submit(self, session: Session, task: "AppTask") -> Job:
        """Queue a task as the session's job.

        Args:
            session: whose job it is.
            task: what to do.

        Returns:
            The job.

        Raises:
            InputError: where the session has a job at work already, or the queue is full.
        """
        with self._lock:
            if session.job is not None and not session.job.ended.is_set():
                raise InputError("this page has a job at work: stop it first")
            if session.job is not None:
                remove(session.job.task.out)  # only the last result can be downloaded
            session.job = self._queue.submit(task)
            return session.job

    def stop(self, session: Session) -> None:
        """Stop the session's job, if it has one."""
        if session.job is not None:
            self._queue.stop(session.job)

    def report(self, token: str) -> Path | None:
        """The report of the job with this token; None where there is none, or not yet."""
        with self._lock:
            for session in self._sessions.values():
                job = session.job
                if job is not None and job.result is not None and secrets.compare_digest(job.token, token):
                    return job.result.report
        return None

    def end(self, key: str) -> None:
        """Stop a session's job and remove its files; nothing where there is no such session."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is None:
            return
        if session.job is not None:
            self._queue.stop(session.job, wait=True)
        remove(session.folder)

    def sweep(self) -> None:
        """End the sessions that were left alone for too long, those of jobs at work excepted."""
        oldest = self._clock() - self._keep
        with self._lock:
            left = [
                key
                for key, session in self._sessions.items()
                if session.used < oldest and (session.job is None or session.job.ended.is_set())
            ]
        for key in left:
            self.end(key)
