"""Is this step sound? What is skipped, what is written down about it, and when a run gives up."""

import json
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from nova3d.errors import InputError
from nova3d.training.config import HealthConfig
from nova3d.training.ema import whole

log = logging.getLogger(__name__)
BAD_STEPS = "bad-steps.jsonl"
MIN_HISTORY = 20  # good steps before a median says anything


class Health:
    """Judges every step by its loss and gradient norm; both must be the same on all processes, so that all agree."""

    def __init__(self, config: HealthConfig):
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self.bad_in_a_row = 0

    def fault(self, loss: float, norm: float) -> str:
        """Why this step must not be taken, "" where it is sound; sound steps are remembered."""
        for name, value, past in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            if not math.isfinite(value):
                return self._bad(f"the {name} is not finite")
            if self.config.spike and len(past) >= MIN_HISTORY and value > self.config.spike * median(past):
                return self._bad(f"the {name} {value:.4g} is over {self.config.spike:g} times its median")
        self._losses.append(loss)
        self._norms.append(norm)
        self.bad_in_a_row = 0
        return ""

    def _bad(self, reason: str) -> str:
        self.bad_in_a_row += 1
        return reason

    @property
    def hopeless(self) -> bool:
        return self.bad_in_a_row >= self.config.max_bad

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "norms": list(self._norms), "bad_in_a_row": self.bad_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self._norms = deque(state["norms"], maxlen=self.config.window)
        self.bad_in_a_row = int(state["bad_in_a_row"])


def report_bad_step(out: Path, step: int, reason: str, uids: Sequence[str], values: Mapping[str, float]) -> None:
    """Say that a step is skipped, and keep its objects in bad-steps.jsonl."""
    log.warning("step %d skipped: %s (objects %s)", step, reason, ", ".join(uids))
    entry = {"step": step, "reason": reason, "uids": list(uids), **{k: repr(v) for k, v in values.items()}}
    try:
        with (out / BAD_STEPS).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise InputError(f"'{out / BAD_STEPS}' cannot be written: {error.strerror}") from error


def gradient_norms(model: nn.Module, new: set[str]) -> dict[str, float]:
    """L2 norms before clipping: `grad_norm_new` of the parameters named in `new`, `grad_norm_base` of the others. Empty
    where a wrapper keeps the gradients to itself (DeepSpeed)."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups[name not in new].append(parameter.grad)
    named = zip(("grad_norm_new", "grad_norm_base"), groups, strict=True)
    return {name: float(whole(get_total_norm(group))) for name, group in named if group}
