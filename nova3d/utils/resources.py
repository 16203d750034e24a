"""The shipped configs, protocols, models and samples, found by name in a clone as in an installed package.

A clone has them in `configs/` and `assets/` beside the package, a wheel inside it (see `setup.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nova3d.errors import InputError

Kind = Literal["config", "protocol", "model", "asset"]

_FOLDERS: dict[Kind, str] = {"config": "configs", "protocol": "configs/eval", "model": "assets", "asset": "assets"}
_PACKAGE = Path(__file__).resolve().parents[1]
# The files of configs/train that are not configs of `nova3d train`, by the stage in which they are looked up instead.
_AMONG_TRAIN = {"train-autoencoder": ("mini-autoencoder",), "preset": ("24gb", "48gb", "mini-gpu")}


@dataclass(frozen=True)
class Shipped:
    """Marks a config key that names something shipped or a path: `Annotated[str, Shipped("model")]`.

    The command line replaces the value by the path that `locate` gives, and leaves it alone where that is None.
    """

    kind: Kind
    stage: str = ""


def root() -> Path:
    """The folder that holds `configs/` and `assets/`."""
    return _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def find(name: str | Path, kind: Kind, stage: str = "") -> Path:
    """The path of something shipped, by name, or of the user's own, by path.

    Args:
        name: a shipped name, or a path. A shipped name wins over a file of the working directory; "./cpu" is always a
            path. A path below `configs/` or `assets/` that does not exist in the working directory is looked up among
            what is shipped. A config's name has its stage ("fusion/cpu"); the bare name is enough where only one stage
            has it. The bundled model "nova3d-mini" is also called "mini".
        kind: "config", "protocol", "model" (a folder in diffusers' layout) or "asset" (any file or folder; by path
            only).
        stage: the folder of `configs/` in which a config's name is looked up first: "fusion" makes "cpu" enough.
            "train-autoencoder" and "preset" (what `nova3d train --preset` takes) have their files in configs/train.

    Returns:
        The path of a file, or of a folder where `kind` is "model" or "asset".

    Raises:
        InputError: where nothing is found; it lists the shipped names.
    """
    found = locate(name, kind, stage)
    if found is None:
        what = "folder" if kind == "model" else "file"
        shipped = ", ".join(names(kind, stage))
        raise InputError(f"{kind} '{name}' is neither a {what} nor one of {shipped}")
    return found


def locate(name: str | Path, kind: Kind, stage: str = "") -> Path | None:
    """As `find`, with None where nothing is found, for names that may also be a hub id."""
    text = str(name)
    folder = root() / _FOLDERS[kind]
    if kind == "model" and (shipped := {text, f"nova3d-{text}"} & set(names(kind))):
        return folder / shipped.pop()
    if kind in ("config", "protocol") and text in names(kind, stage):
        return folder / _folder(stage) / f"{text}.yaml"
    if kind == "config":
        every = names(kind)
        same = [text] if text in every else [each for each in every if not stage and each.partition("/")[2] == text]
        if len(same) == 1:
            return folder / f"{same[0]}.yaml"
    for path in (Path(name), root() / name):
        if path.is_dir() if kind == "model" else path.is_file() or (kind == "asset" and path.is_dir()):
            return path
        if Path(name).parts[:1] not in (("configs",), ("assets",)):
            break
    return None


def names(kind: Kind, stage: str = "") -> list[str]:
    """The shipped names of a kind, sorted; of configs those of one stage, or all with their stage ("fusion/cpu")."""
    folder = root() / _FOLDERS[kind] / _folder(stage)
    if kind == "model":
        return sorted(path.parent.name for path in folder.glob("*/model_index.json"))
    if kind == "asset":
        return sorted(f"assets/{path.name}" for path in folder.iterdir())
    files = folder.glob("*.yaml" if stage or kind == "protocol" else "*/*.yaml")
    shipped = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)
    if stage in _AMONG_TRAIN:
        return [name for name in shipped if name in _AMONG_TRAIN[stage]]
    if stage == "train":
        return [name for name in shipped if not any(name in apart for apart in _AMONG_TRAIN.values())]
    return [name for name in shipped if name != "published"] if kind == "protocol" else shipped


def _folder(stage: str) -> str:
    return "train" if stage in _AMONG_TRAIN else stage
