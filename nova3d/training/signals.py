"""Asking a run to stop: it finishes its step, saves and ends well."""

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

log = logging.getLogger(__name__)
STOP_FILE = "STOP"


class StopRequest:
    """A context in which SIGTERM and SIGUSR1 (SLURM before its time limit or a preemption) are requests.

    Calling it tells whether one has come. A file named STOP in `out` is one too, for whoever can only reach the disk;
    leaving the context removes it. Handlers can be set in a program's main thread only.
    """

    def __init__(self, out: Path):
        self.file = out / STOP_FILE
        self._signal: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __call__(self) -> bool:
        return self._signal is not None or self.file.exists()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.file.unlink(missing_ok=True)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        log.info("%s: this step is finished and saved, then the run ends", signal.Signals(number).name)
