"""Progress in the terminal: one line a stage and one estimate; plain lines where the output is not a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from nova3d.utils.progress import Progress

_SHARE = 10  # per cent between two plain lines
_SECONDS = 30.0  # after which a plain line is written however little was done


@contextmanager
def progress_bar(description: str, stream: TextIO | None = None) -> Iterator[Progress]:
    """What draws the library's progress: a bar by rich in a terminal, plain lines elsewhere.

    A stage that is over leaves one line with its time. Nothing is drawn once all of it is done.

    Args:
        description: the whole task, shown until the first stage begins.
        stream: where it is drawn. None: stderr.

    Yields:
        The callback.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(description, stream) as update:
            yield update
    else:
        yield _lines(stream)


def _lines(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Plain lines: at the start of a stage and at its end, and at every tenth or every half minute of it."""
    stage, began, shown, written, last = "", clock(), 0, 0.0, -1

    def update(done: int, total: int, text: str, /) -> None:
        nonlocal stage, began, shown, written, last
        name, now, share = text.partition(",")[0], clock(), 100 * done // max(total, 1)
        again, last = done < last, done
        if done >= total and shown >= 100 and not again:
            return
        if (name != stage and done < total) or again:
            stage, began, shown, written = name, now, -_SHARE, now
        if done >= total or share >= shown + _SHARE or now - written >= _SECONDS:
            stream.write(f"{stage or name}: {share} % ({_clock(now - began)})\n")
            stream.flush()
            shown, written = share, now

    return update


@contextmanager
def _bar(description: str, stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Live

    console = Console(file=stream)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[detail]}"),
    )
    live = Live(*columns, console=console, transient=True)
    task = live.add_task(description, total=None, detail="")
    stage, began, last = "", time.monotonic(), -1

    def over() -> None:
        if stage:
            console.print(f"{stage} [dim]{_clock(time.monotonic() - began)}", highlight=False)

    def update(done: int, total: int, text: str, /) -> None:
        nonlocal stage, began, last, task
        name, _, detail = text.partition(",")
        if done < last:  # another piece of work, with an estimate of its own
            live.remove_task(task)
            task = live.add_task(name, total=total, detail="")
        if (name != stage and done < total) or done < last:
            over()
            stage, began = name, time.monotonic()
        finished = done >= total and last < done
        last = done
        live.update(task, completed=done, total=total, description=stage or name, detail=detail.strip())
        if finished:
            over()
            stage = ""
        live.update(task, visible=done < total)

    with live:
        yield update


def _clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
