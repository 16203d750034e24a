"""Training checkpoints: folders with everything resume needs, written aside and renamed, the last few kept.

`checkpoints/step-00001000/` holds the files of the run's parts and `progress.json`: step, identity of the run, and the
size of every file. A checkpoint whose files have other sizes is truncated.
"""

import json
import logging
import os
import pickle
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from nova3d import config as configs
from nova3d.errors import InputError, first_line
from nova3d.utils.files import json_types, remove, sync_folder

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
    """An object whose state a checkpoint restores."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore the state."""
        ...


@dataclass(frozen=True)
class Collectives:
    """The collective operations that checkpoints need; the defaults are those of a single process.

    Attributes:
        is_main: whether this process writes what only one may write.
        barrier: waits for all processes.
        all_true: whether the value is True in all processes.
    """

    is_main: bool = True
    barrier: Callable[[], None] = lambda: None
    all_true: Callable[[bool], bool] = lambda mine: mine


def save_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    identity: Mapping[str, Any],
    keep: int = 2,
    collectives: Collectives = Collectives(),
) -> Path:
    """Write `folder/checkpoints/step-00001000` all or nothing and drop all but the newest ones.

    Args:
        folder: of the run.
        step: finished steps.
        write: puts its files into the folder that it is given; called in every process, so that each writes its share.
        identity: of the run, JSON-ready; a run of another identity refuses the checkpoint.
        keep: checkpoints that are kept.
        collectives: of the run's processes.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: where the disk is full or the folder cannot be written; older checkpoints then stay.
    """
    path = folder / "checkpoints" / f"step-{step:08d}"
    aside = path.with_suffix(".part")
    with _writing(path, aside, collectives.is_main):
        if collectives.is_main:
            remove(aside)
            aside.mkdir(parents=True)
    collectives.barrier()
    with _writing(path, aside, collectives.is_main):
        write(aside)
    collectives.barrier()
    with _writing(path, aside, collectives.is_main):
        if collectives.is_main:
            files = sorted(file for file in aside.rglob("*") if file.is_file())
            sizes = {str(file.relative_to(aside)): file.stat().st_size for file in files}
            progress = {"step": step, "identity": dict(identity), "files": sizes}
            (aside / PROGRESS).write_text(json.dumps(progress))
            sync_folder(aside)
            _sync(aside)
            # Later ones are damaged, or this run resumed from a checkpoint before them.
            for later in [other for other in list_checkpoints(folder) if other.name >= path.name]:
                log.warning("checkpoint '%s' is removed: this run resumed from an earlier one", later)
                shutil.rmtree(later)
            aside.rename(path)
            _sync(path.parent)
            for old in list_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    collectives.barrier()
    return path


@contextmanager
def _writing(path: Path, aside: Path, is_main: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not _is_of_file_writer(error):
            raise
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"cannot write checkpoint '{path}': {error}; older checkpoints are kept") from error


def _is_of_file_writer(error: RuntimeError) -> bool:
    """Whether `torch.save` could not write its file.

    It raises a plain RuntimeError then, with one of many messages. gloo raises a plain one, too, where another process
    has died, so what counts is where it was raised. Errors of a GPU are of derived classes.
    """
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return type(error) is RuntimeError and torch.serialization.__name__ in modules


def load_checkpoint(
    folder: Path,
    read: Callable[[Path], None],
    identity: Mapping[str, Any],
    resume: str = "auto",
    collectives: Collectives = Collectives(),
) -> int:
    """Restore a run from a checkpoint.

    Args:
        folder: of the run.
        read: takes everything from a checkpoint's folder; what it raises means that this checkpoint is damaged.
        identity: of the run.
        resume: "auto" takes the newest readable checkpoint and names damaged ones in the log; "never"; or the path of
            a checkpoint.
        collectives: of the run's processes.

    Returns:
        The number of finished steps, 0 where the run starts from step 0.

    Raises:
        InputError: where the checkpoint is of another run, or there are checkpoints and none can be read.
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
            # Derived classes are errors of a GPU. A plain one may say that another process has died: `all_true` fails
            # then, too.
            if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
                raise
            readable, reason = False, first_line(error)
        if collectives.all_true(readable):
            log.info("resumed from %s", path)
            return int(progress["step"])
        if path == candidates[-1]:
            if not path.is_dir():
                raise InputError(f"checkpoint '{path}' does not exist; resume= is auto, never or a checkpoint's folder")
            raise InputError(
                f"checkpoint '{path}' is truncated or damaged ({reason}) and there is none before it; "
                "resume=never or another out= starts from step 0"
            )
        log.warning("checkpoint '%s' is truncated or damaged (%s): the one before is taken", path, reason)
    return 0


def read_progress(path: Path) -> dict[str, Any]:
    """progress.json of a checkpoint's folder; raises OSError or ValueError where a file is not complete."""
    progress = json.loads((path / PROGRESS).read_text())
    keys = {"step", "identity", "files"}
    if not isinstance(progress, dict) or not keys <= progress.keys() or not isinstance(progress["files"], dict):
        raise ValueError(f"{PROGRESS} is not a checkpoint's")
    for name, size in progress["files"].items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, not {size}")
    return progress


def write_states(path: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the states of parts, by name, into a checkpoint's folder."""
    torch.save(dict(states), path / PARTS)


def read_states(path: Path, parts: Mapping[str, Stateful]) -> None:
    """Load the states of parts back; raises what torch raises where the file is damaged or of other parts."""
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
    """Check that the disk holds a run's checkpoints and the one being written.

    Args:
        folder: of the run.
        bytes_each: size of a checkpoint.
        keep: checkpoints that are kept.

    Raises:
        InputError: with the missing space in GB.
    """
    lacking = max(1, keep + 1 - len(list_checkpoints(folder))) * bytes_each - shutil.disk_usage(folder).free
    if lacking > 0:
        raise InputError(
            f"'{folder}' lacks {lacking / 1e9:.1f} GB for its checkpoints of {bytes_each / 1e9:.1f} GB each; free "
            "space, choose another out=, or set keep_checkpoints=1"
        )


# What checkpoints of earlier versions, which lack these keys, were made with.
_DEFAULT_IDENTITY = {
    "optimizer": "adamw",
    "condition": "picture",
    "model.row_attention": False,
    "model.guide_channels": 0,
    "start": "",
    "decoder_only": False,
    "latent_noise": 0.0,
}


def _check_identity(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key, value in configs.flatten(json_types(here)).items():
        other = configs.flatten(there).get(key, _DEFAULT_IDENTITY.get(key))
        if other != value:
            raise InputError(
                f"checkpoint '{path}' was made with another '{key}' ({other}, this run has {value}); choose another "
                "out=, or resume=never"
            )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
