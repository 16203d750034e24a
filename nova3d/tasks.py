"""The two image domains that are denoised together."""

from enum import IntEnum


class Task(IntEnum):
    """Index on the task axis `t` and in the one-hot task label (paper II-B; RGB first, as in algorithm 1)."""

    RGB = 0
    NORMAL = 1


TASKS: tuple[Task, ...] = (Task.RGB, Task.NORMAL)
