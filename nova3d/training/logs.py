"""The logs of a run: stats.jsonl, losses by noise level, gradient norms, bad steps, TensorBoard and W&B."""

import itertools
import json
import logging
import math
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from nova3d import config as configs
from nova3d.errors import InputError, first_line, system_reason
from nova3d.tasks import TASKS
from nova3d.training.config import HealthConfig, TrainConfig
from nova3d.training.ema import full_tensor
from nova3d.utils.compat import has
from nova3d.utils.files import append_json_lines, write_text, writing

log = logging.getLogger(__name__)
# Bin edges of the noise levels, from near the data up to where only the object's position is left.
SIGMA_EDGES = (0.5, 2.0, 8.0, 32.0)
BAD_STEPS = "bad-steps.jsonl"
WANDB_ID = "wandb-id.txt"
MIN_HISTORY = 20  # accepted steps before the median is used
PROJECT = "nova3d"  # in which W&B puts the run, under the name of its folder


class StatsLog:
    """Collects the values of each step and appends their means to a JSON-lines file.

    Args:
        path: the file; its folder is made. Lines after `start` are removed.
        start: finished steps of the run that is resumed.

    Raises:
        InputError: where the folder cannot be written.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output folder '{path.parent}' cannot be written: {system_reason(error)}") from error
        truncate_after(path, start)
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = start

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Collect the values of one (zero-based) step."""
        self._step = step + 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def flush(self, extra: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write the means over the steps since the last flush; `step` counts finished steps.

        Args:
            extra: further values of the line.

        Returns:
            What was written; empty, and nothing is written, where there was no step.

        Raises:
            InputError: where the file cannot be written.
        """
        if not self._counts:
            return {}
        means = {key: total / self._counts[key] for key, total in self._sums.items()} | dict(extra or {})
        with writing(f"'{self.path}'"):
            append_json_lines(self.path, [{"step": self._step, **means}])
        self._sums, self._counts = {}, {}
        return means


def truncate_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of a JSON-lines file that a resumed run will write again, and one that was cut short.

    Args:
        path: the file; it may be missing.
        step: lines of later steps are removed.

    Returns:
        The lines that are kept.
    """
    if not path.exists():
        return []
    # `read_json_lines` refuses NaN, which a mean over no pixels is.
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept), keep_equal=True)
    return kept


class LossBySigma:
    """Sums of losses by task and noise level. They stay on the device until `pop`."""

    def __init__(self, device: torch.device):
        self._table = torch.zeros(2, len(TASKS), len(SIGMA_EDGES) + 1, device=device)  # sums, counts
        self._edges = torch.tensor(SIGMA_EDGES, device=device)

    def add(self, losses: Tensor, sigma: Tensor) -> None:
        """Add the losses of a batch; those that are not finite are left out.

        Args:
            losses: float32 [b,t].
            sigma: float32 [b], their noise levels.
        """
        bins = torch.nn.functional.one_hot(torch.bucketize(sigma, self._edges), len(SIGMA_EDGES) + 1).float()
        finite = torch.isfinite(losses)
        self._table[0] += torch.where(finite, losses, 0.0).float().T @ bins
        self._table[1] += finite.float().T @ bins

    def pop(self) -> Tensor:
        """Return the sums and counts since the last call, float32 [2,t,bins], and reset them."""
        table = self._table.clone()
        self._table.zero_()
        return table

    @staticmethod
    def means(table: Tensor) -> dict[str, float]:
        """The means of a table that is summed over processes.

        Args:
            table: float32 [2,t,bins], as `pop` returns it.

        Returns:
            `loss_rgb/sigma_2_to_8` and the like, of the noise levels that occurred.
        """
        names = ["below_0.5", *(f"{a:g}_to_{b:g}" for a, b in itertools.pairwise(SIGMA_EDGES))]
        names.append(f"above_{SIGMA_EDGES[-1]:g}")
        return {
            f"loss_{task.name.lower()}/sigma_{name}": float(table[0, t, k] / table[1, t, k])
            for t, task in enumerate(TASKS)
            for k, name in enumerate(names)
            if table[1, t, k] > 0
        }


def gradient_norms(model: nn.Module, new: set[str]) -> dict[str, float]:
    """L2 norms of the gradients before clipping.

    Args:
        model: after a backward pass.
        new: names of the parameters that SVD does not have.

    Returns:
        `grad_norm_new` of the parameters in `new`, `grad_norm_base` of the others. Empty where the parameters
        have no `.grad` (DeepSpeed).
    """
    gradients: dict[str, list[Tensor]] = {"grad_norm_new": [], "grad_norm_base": []}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients["grad_norm_new" if name in new else "grad_norm_base"].append(parameter.grad)
    return {name: float(full_tensor(get_total_norm(group))) for name, group in gradients.items() if group}


class BadStepDetector:
    """Finds steps that must be skipped, by loss and gradient norm: not finite, or far above their median.

    Both values must be the same in all processes, so that all processes agree.

    Args:
        config: the limits.
    """

    def __init__(self, config: HealthConfig):
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self.bad_in_a_row = 0

    def check(self, loss: float, norm: float) -> str | None:
        """Check one step, and record the values of an accepted one.

        Args:
            loss: mean over the global batch.
            norm: of the gradient, before clipping.

        Returns:
            Why the step must be skipped; None where it is accepted.
        """
        for name, value, past in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            reason = None
            if not math.isfinite(value):
                reason = f"the {name} is not finite"
            elif self.config.spike and len(past) >= MIN_HISTORY and value > self.config.spike * median(past):
                reason = f"the {name} {value:.4g} is over {self.config.spike:g} times its median"
            if reason:
                self.bad_in_a_row += 1
                return reason
        self._losses.append(loss)
        self._norms.append(norm)
        self.bad_in_a_row = 0
        return None

    @property
    def too_many(self) -> bool:
        """Whether as many steps in a row were bad as end a run."""
        return self.bad_in_a_row >= self.config.max_bad

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint stores."""
        return {"losses": list(self._losses), "norms": list(self._norms), "bad_in_a_row": self.bad_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self._norms = deque(state["norms"], maxlen=self.config.window)
        self.bad_in_a_row = int(state["bad_in_a_row"])


def log_bad_step(out: Path, step: int, reason: str, uids: Sequence[str], values: Mapping[str, float]) -> None:
    """Log that a step is skipped, and append its objects to bad-steps.jsonl.

    Args:
        out: the run's folder.
        step: counted from 1, as in stats.jsonl.
        reason: as `BadStepDetector.check` returns it.
        uids: the objects of the global batch.
        values: losses and gradient norm.

    Raises:
        InputError: where the file cannot be written.
    """
    log.warning("step %d skipped: %s (objects %s)", step, reason, ", ".join(uids))
    numbers = {name: repr(value) for name, value in values.items()}  # JSON has no nan
    with writing(f"'{out / BAD_STEPS}'"):
        append_json_lines(out / BAD_STEPS, [{"step": step, "reason": reason, "uids": list(uids), **numbers}])


def make_trackers(config: TrainConfig, out: Path) -> list[GeneralTracker]:
    """accelerate's trackers, their files in `out`/logs and `out`/wandb; raises InputError for one not installed."""
    for name in config.trackers:
        if not has(name):
            extra = {"tensorboard": "train", "wandb": "wandb"}[name]
            raise InputError(
                f"trackers: {name} is not installed; `pip install 'nova3d[{extra}]'`, or remove it from the list"
            )
    made = {
        "tensorboard": lambda: TensorBoardTracker("logs", str(out)),
        "wandb": lambda: WandBTracker(PROJECT, name=out.name, dir=str(out)),
    }
    return [made[name]() for name in config.trackers]


def start_trackers(accelerator: Accelerator, config: TrainConfig, out: Path, start: int) -> None:
    """Open the trackers with the config's values. A resumed run goes on with its run of W&B.

    Args:
        accelerator: with the trackers of `make_trackers`.
        config: of the run.
        out: the run's folder.
        start: finished steps.

    Raises:
        InputError: where W&B does not start, as without an account.
    """
    # W&B leaves out steps before its last one, so a run that goes back has a new one there.
    identity = wandb_id(out) if start and config.resume == "auto" else secrets.token_hex(8)
    for tracker in accelerator.log_with:
        if isinstance(tracker, WandBTracker):
            tracker.init_kwargs |= {"id": identity, "resume": "allow"}
    failures: tuple[type[Exception], ...] = ()
    if "wandb" in config.trackers:
        import wandb

        failures = (wandb.Error,)
    values = configs.flatten(configs.to_dict(config)).items()
    # Numbers and texts are what every tracker takes.
    settings = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values}
    try:
        accelerator.init_trackers(PROJECT, settings)
    except failures as error:
        reason = first_line(error)
        raise InputError(f"trackers: wandb does not start ({reason}); WANDB_MODE=offline needs no account") from error
    if "wandb" in config.trackers and accelerator.is_main_process:
        write_text(out / WANDB_ID, identity + "\n", keep_equal=True)


def wandb_id(out: Path) -> str:
    """The id at W&B of the run in a folder; a new one where it has none yet."""
    try:
        return (out / WANDB_ID).read_text().strip() or secrets.token_hex(8)
    except FileNotFoundError:
        return secrets.token_hex(8)
