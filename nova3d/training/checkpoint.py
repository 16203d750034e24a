"""Training checkpoints: folders with everything resume needs, written aside and renamed, the last few kept.

`checkpoints/step-00001000/` holds what the writers put there and `progress.json`: step, identity of the run, and every
file's size, by which a checkpoint that was cut short afterwards is known.
"""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from nova3d.errors import InputError

log = logging.getLogger(__name__)
PROGRESS = "progress.json"
PARTS = "parts.pt"
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    pickle.UnpicklingError,
    SafetensorError,
)


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Together:
    """How the processes of a run keep in step; the defaults are those of a run of one."""

    is_main: bool = True
    wait: Callable[[], None] = lambda: None
    all_agree: Callable[[bool], bool] = lambda mine: mine


def save_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    identity: Mapping[str, Any],
    keep: int = 2,
    together: Together = Together(),
) -> Path:
    """Write `folder/checkpoints/step-00001000` all or nothing and drop all but the newest `keep`.

    write(path): puts its files into the folder `path`; called in every process, so that each can write its share.
    Raises InputError where the disk is full or the folder cannot be written; older checkpoints then stay.
    """
    path = folder / "checkpoints" / f"step-{step:08d}"
    aside = path.with_suffix(".part")
    try:
        if together.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        together.wait()
        write(aside)
        together.wait()
        if together.is_main:
            files = sorted(file for file in aside.rglob("*") if file.is_file())
            sizes = {str(file.relative_to(aside)): file.stat().st_size for file in files}
            progress = {"step": step, "identity": dict(identity), "files": sizes}
            (aside / PROGRESS).write_text(json.dumps(progress))
            for file in (*files, aside / PROGRESS, aside):
                _sync(file)
            # Later ones are of a history that this run has left: damaged, or it was told to resume before them.
            for left in [other for other in list_checkpoints(folder) if other.name >= path.name]:
                log.warning("checkpoint '%s' is removed: this run went on from an earlier one", left)
                shutil.rmtree(left)
            aside.rename(path)
            _sync(path.parent)
            for old in list_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:
        if together.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"cannot write checkpoint '{path}': {error}; older checkpoints are kept") from error
    together.wait()
    return path


def load_checkpoint(
    folder: Path,
    read: Callable[[Path], None],
    identity: Mapping[str, Any],
    resume: str = "auto",
    together: Together = Together(),
) -> int:
    """Restore a run; returns the number of finished steps, 0 where it starts anew.

    read(path): takes everything from a checkpoint's folder; what it raises means that this one is damaged. resume:
    "auto", the newest readable checkpoint of `folder`: a damaged one is named in the log and the one before is taken;
    "never"; or the path of a checkpoint. Raises InputError where the checkpoint is of another run than `identity`, or
    where there are checkpoints and none can be read.
    """
    if resume == "never":
        return 0
    candidates = list_checkpoints(folder)[::-1] if resume == "auto" else [Path(resume)]
    for path in candidates:
        reason = "another process cannot read it"
        try:
            progress = read_progress(path)
            _check_identity(path, progress["identity"], identity)
            read(path)
            readable = True
        except InputError:
            raise
        except _UNREADABLE as error:
            readable, reason = False, _first_line(error)
        if together.all_agree(readable):
            log.info("resumed from %s", path)
            return int(progress["step"])
        if path == candidates[-1]:
            raise InputError(
                f"checkpoint '{path}' is truncated or damaged ({reason}) and there is none before it; "
                "resume=never or another out= starts anew"
            )
        log.warning("checkpoint '%s' is truncated or damaged (%s): the one before is taken", path, reason)
    return 0


def read_progress(path: Path) -> dict[str, Any]:
    """progress.json of a checkpoint's folder; raises OSError or ValueError where a file is not whole."""
    progress = json.loads((path / PROGRESS).read_text())
    if not isinstance(progress, dict) or not {"step", "identity", "files"} <= progress.keys():
        raise ValueError(f"{PROGRESS} is not a checkpoint's")
    for name, size in progress["files"].items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, not {size}")
    return progress


def write_parts(path: Path, parts: Mapping[str, Stateful]) -> None:
    """Put the states of `parts` into a checkpoint's folder."""
    torch.save({name: part.state_dict() for name, part in parts.items()}, path / PARTS)


def read_parts(path: Path, parts: Mapping[str, Stateful]) -> None:
    """Take them back; raises what torch raises where the file is damaged or of other parts."""
    states = torch.load(path / PARTS, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    directory = folder / "checkpoints"
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and re.fullmatch(r"step-\d{8}", p.name))


def check_space(folder: Path, bytes_each: int, keep: int) -> None:
    """Raise InputError unless the disk under `folder` holds `keep` checkpoints and the one being written."""
    lacking = max(1, keep + 1 - len(list_checkpoints(folder))) * bytes_each - shutil.disk_usage(folder).free
    if lacking > 0:
        raise InputError(
            f"'{folder}' lacks {lacking / 1e9:.1f} GB for its checkpoints of {bytes_each / 1e9:.1f} GB each; free "
            "space, choose another out=, or set keep_checkpoints=1"
        )


# What checkpoints without these keys were made with.
_FORMER = {"optimizer": "adamw", "condition": "picture"}


def _check_identity(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key, value in flat(json.loads(json.dumps(here))).items():
        other = flat(there).get(key, _FORMER.get(key))
        if other != value:
            raise InputError(
                f"checkpoint '{path}' was made with another '{key}' ({other}, this run has {value}); choose another "
                "out=, or resume=never"
            )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined by dots."""
    entries: dict[str, Any] = {}
    for key, entry in value.items():
        entries |= flat(entry, f"{prefix}{key}.") if isinstance(entry, Mapping) else {f"{prefix}{key}": entry}
    return entries


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
