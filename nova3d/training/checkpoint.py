"""Training checkpoints: everything resume needs, written aside and renamed, the last few kept."""

import logging
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from nova3d.errors import InputError

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Stateful], config: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/checkpoints/step-00001000.pt` atomically and drop all but the newest `keep`.

    Raises InputError where the disk is full or the folder cannot be written; older checkpoints then stay.
    """
    directory = folder / "checkpoints"
    path = directory / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".part")
    state = {"step": step, "config": dict(config), "parts": {k: v.state_dict() for k, v in parts.items()}}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # where the folder is the trouble, there is nothing to remove
            temporary.unlink()
        raise InputError(f"cannot write checkpoint '{path}': {error}; older checkpoints are kept") from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful], config: Mapping[str, Any]) -> int:
    """Restore `parts` from the newest checkpoint of `folder`; returns the number of finished steps, 0 without one.

    Raises InputError where the checkpoint is damaged or its model or data differ from `config`.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0
    path = checkpoints[-1]
    state = read_checkpoint(path)
    for key in ("model", "alignment", "shards"):
        if key in config and state["config"].get(key) != config[key]:
            raise InputError(f"checkpoint '{path}' was made with another '{key}'; choose another out= or remove it")
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"checkpoint '{path}' does not fit this model: {str(error).splitlines()[0]}") from error
    log.info("resumed from %s", path)
    return int(state["step"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file; raises InputError where it is truncated or not a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"step", "config", "parts"} <= state.keys():
            raise KeyError("step, config, parts")
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint '{path}' is truncated or damaged ({reason}); remove it to use the one before"
        ) from error
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files of a run, oldest first."""
    directory = folder / "checkpoints"
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if re.fullmatch(r"step-\d{8}\.pt", p.name))
