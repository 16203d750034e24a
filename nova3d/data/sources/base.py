"""What every source shares: its settings, its protocol, lists of uids, and the check of a fetched file."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nova3d.data.assets import Asset
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils import provenance

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]  # done, total, message

RENDERABLE_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")  # what every engine reads


@dataclass
class SourceConfig:
    """Where objects come from.

    kind: "folder" (any meshes), "objaverse" (through the package of that name) or "gso" (Google Scanned Objects).
    path, recursive: the folder of a folder or gso source, and whether its subfolders are searched too. licences: a JSON
    with `objects`, rows of name, licence, attribution, sha256 ..., for a folder or gso source. subset: "lvis" or
    "all" of Objaverse. list, exclude_list: files of uids to take and never to take, one per line or JSON; "" for none.
    hashes: take each file's SHA-256 from the Objaverse-XL annotations. timeout_s: seconds without a byte after which
    a download has failed.
    """

    kind: str = "folder"
    path: str = "objects"
    recursive: bool = False
    licences: str = ""
    subset: str = "lvis"
    list: str = ""
    exclude_list: str = ""
    hashes: bool = True
    timeout_s: float = 60.0


class Source(Protocol):
    """A collection of objects. `assets` may need a network; `fetch` brings one object's file onto this machine."""

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """Every object of the source, in an order that does not vary. Raises InputError where there is none."""
        ...

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """The local mesh file of `asset`, placed in `folder` unless it is already on this machine.

        Raises RenderError: FETCH_FAILED, FETCH_HASH or PARSE_ERROR.
        """
        ...


def uid_of(name: str) -> str:
    """A file's stem as an object's key, which ends at the first dot in a WebDataset tar."""
    return name.replace(".", "_")


def read_uids(path: str | Path) -> list[str]:
    """The uids in a file, each once, in the file's order.

    Text has one per line, `#` starts a comment. JSON is a list, a mapping of categories to lists, or a mapping with
    uids as its keys. A `.glb` at a uid's end is dropped. Raises InputError where the file cannot be read or is empty.
    """
    path = Path(path)
    try:
        text = path.read_text()
        names = _json_uids(json.loads(text)) if path.suffix == ".json" else _text_uids(text)
        uids = list(dict.fromkeys(uid_of(name.removesuffix(".glb")) for name in names))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"uid list '{path}' cannot be read: {error}") from error
    if not uids:
        raise InputError(f"uid list '{path}' names no object")
    return uids


def selected(uids: Iterable[str], config: SourceConfig) -> set[str]:
    """Those of the source's `uids` that `list` names and `exclude_list` does not. Listed uids that the source lacks
    are counted in the log. Raises InputError where none is left."""
    chosen = set(uids)
    if config.list:
        wanted = read_uids(config.list)
        missing = [uid for uid in wanted if uid not in chosen]
        if missing:
            log.warning("%d uids of '%s' are not in the source, the first is %s", len(missing), config.list, missing[0])
        chosen &= set(wanted)
    if config.exclude_list:
        chosen -= set(read_uids(config.exclude_list))
    if not chosen:
        raise InputError(f"'{config.list or config.exclude_list}' leaves no object of the source")
    return chosen


def _text_uids(text: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _json_uids(content: Any) -> Iterable[str]:
    if isinstance(content, dict):
        groups = list(content.values())
        grouped = bool(groups) and all(isinstance(group, list) for group in groups)
        return [uid for group in groups for uid in group] if grouped else content.keys()
    if not isinstance(content, list):
        raise TypeError("the JSON is neither a list nor a mapping")
    return content


def licence_rows(path: str) -> dict[str, dict[str, Any]]:
    """The rows of a licence file by the objects' names; empty for "". Raises InputError where it cannot be used, or
    gives one name two different licences."""
    if not path:
        return {}
    rows: dict[str, dict[str, Any]] = {}
    try:
        for row in json.loads(Path(path).read_text())["objects"]:
            earlier = rows.setdefault(row["name"], row)
            if earlier.get("licence") != row.get("licence"):
                raise InputError(f"licence file '{path}' gives '{row['name']}' two licences")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"licence file '{path}' cannot be used: {error!r}") from error
    return rows


def check_file(path: Path, asset: Asset) -> Path:
    """`path` itself, once it is the file that `asset` describes. Raises RenderError otherwise."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise RenderError(Reason.FETCH_FAILED, f"'{path}' cannot be read: {error.strerror or error}") from error
    if not head:
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is empty")
    if head.startswith(b"version https://git-lfs"):
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is a Git LFS pointer, not a mesh; run `git lfs pull`")
    if head.lstrip().startswith(b"<"):  # no mesh format read here begins so
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is an HTML or XML page, not a mesh")
    if asset.sha256 and (found := provenance.hash_file(path)) != asset.sha256:
        raise RenderError(Reason.FETCH_HASH, f"'{path}' has SHA-256 {found[:16]}, not {asset.sha256[:16]}")
    return path
