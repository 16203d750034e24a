"""TensorBoard and W&B beside stats.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.training.checkpoint import flat
from nova3d.training.config import TrainConfig
from nova3d.utils.compat import has

PROJECT = "nova3d"  # in which W&B puts the run, under the name of its folder


def make_trackers(config: TrainConfig, out: Path) -> list[GeneralTracker]:
    """accelerate's trackers, their files in `out`/logs and `out`/wandb; raises InputError for one not installed."""
    for name in config.trackers:
        if not has(name):
            raise InputError(f"trackers: {name} is not installed; `pip install {name}`, or take it off the list")
    made = {
        "tensorboard": lambda: TensorBoardTracker("logs", str(out)),
        "wandb": lambda: WandBTracker(PROJECT, name=out.name, dir=str(out)),
    }
    return [made[name]() for name in config.trackers]


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open them with the config's values. Raises InputError where W&B does not start, as without an account."""
    failures: tuple[type[Exception], ...] = ()
    if "wandb" in config.trackers:
        import wandb

        failures = (wandb.Error,)
    try:
        accelerator.init_trackers(PROJECT, settings(configs.to_dict(config)))
    except failures as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"trackers: wandb does not start ({reason}); WANDB_MODE=offline needs no account") from error


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as `section.key` -> number or text, which is what every tracker takes."""
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat(config).items()}
