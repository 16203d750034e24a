"""What the network is asked for: the two image domains that are denoised together, and the kinds of condition."""

from enum import IntEnum
from typing import Literal


class Task(IntEnum):
    """Index on the task axis `t` and in the one-hot task label (paper II-B; RGB first, as in algorithm 1)."""

    RGB = 0
    NORMAL = 1


TASKS: tuple[Task, ...] = (Task.RGB, Task.NORMAL)

ConditionKind = Literal["picture", "inflated"]  # of the UNet's condition latents, see nova3d.models.conditioning
CONDITIONS: tuple[ConditionKind, ...] = ("picture", "inflated")
