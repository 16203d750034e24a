"""The progress callback that long work takes."""

from typing import Protocol


class Progress(Protocol):
    """Called by library code as work advances; the command line draws a bar with it."""

    def __call__(self, done: int, total: int, stage: str, /) -> None:
        """Report progress.

        Args:
            done: finished units, 0 to `total`.
            total: units in all; it may grow while the work runs.
            stage: what is being done and, behind a comma, what the last unit said.
        """
        ...


def silent(done: int, total: int, stage: str) -> None:
    """A progress callback that does nothing."""
