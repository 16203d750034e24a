"""Tasks that stand for long work in worker processes. Nothing here imports torch, so that processes start fast."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova3d.errors import InputError


def no_model() -> None:
    """What the queue's workers load."""


def no_such_model() -> None:
    raise InputError("model 'x' does not exist")


@dataclass(frozen=True)
class StandIn:
    """Base of the tasks."""

    out: Path

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        raise NotImplementedError


class Quick(StandIn):
    """Gives the worker's process id."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        progress(1, 2, "half")
        on_sheet(self.out / "sheet.png")
        return os.getpid()


class Talkative(StandIn):
    """Works until it is stopped, and reports often. Its file says that it runs, and is removed when it is stopped."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        (self.out / "runs").touch()
        try:
            while True:
                progress(0, 1, "at work")
                time.sleep(0.01)
        finally:
            (self.out / "runs").unlink()


class Mute(StandIn):
    """Works for ten minutes without a report, as a long operation of a library does."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        progress(0, 1, "at work")
        time.sleep(600)


class Refused(StandIn):
    """Ends as on bad input."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        raise InputError("the views show\nno object")


class Faulty(StandIn):
    """Ends as on a bug."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        raise ValueError("a bug")


class Killed(StandIn):
    """Ends as a process that the system kills for want of memory."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        os._exit(137)


@dataclass(frozen=True)
class Report:
    """A result that has a report."""

    report: Path


class Written(StandIn):
    """Ends with a report."""

    def run(self, device: str, pipeline: Any, progress: Callable[..., None], on_sheet: Callable[..., None]) -> Any:
        (self.out / "report.html").write_text("<html><head></head>report</html>")
        return Report(self.out / "report.html")
