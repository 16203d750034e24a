"""The distribution of training noise levels: log-normal, with mean and deviation that change with the step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# (first step, P_mean, P_std); paper appendix VI
PAPER_STAGES = ((0, 1.0, 1.6), (8_000, 1.8, 1.6), (16_000, 2.2, 1.8), (24_000, 2.5, 2.0))


@dataclass(frozen=True)
class NoiseSchedule:
    """Stages (first step, P_mean, P_std) of log sigma ~ N(P_mean, P_std^2); the first stage starts at step 0.

    Raises ValueError where the stages are empty, do not start at 0 or are out of order.
    """

    stages: Sequence[tuple[int, float, float]] = PAPER_STAGES

    def __post_init__(self) -> None:
        starts = [stage[0] for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"noise stages must start at step 0 and ascend, got {starts}")

    def at(self, step: int) -> tuple[float, float]:
        """(P_mean, P_std) at a global step."""
        _, mean, std = [stage for stage in self.stages if stage[0] <= step][-1]
        return mean, std

    def draw(self, step: int, count: int, generator: torch.Generator) -> Tensor:
        """[count] noise levels for a step, one per object (shared by its views and both tasks, eq. 3)."""
        mean, std = self.at(step)
        return (mean + std * torch.randn(count, generator=generator)).exp()
