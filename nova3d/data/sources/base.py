"""What every source of objects shares: assets, settings, the protocol, uid lists and the check of a fetched file."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from nova3d.choices import ObjaverseSubset
from nova3d.errors import InputError, first_line, system_reason
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils import provenance
from nova3d.utils.files import check_component, parse_json, read_json, to_component
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)

LICENCES = "licences.json"
UID_BYTES = 84  # with `.normal.000.png` behind it, a uid is a name of at most 100 bytes in a tar
RENDERABLE_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")  # what every engine reads


@dataclass(frozen=True)
class Asset:
    """One object to render: what it is, where it comes from, and on what terms.

    Raises:
        InputError: where the uid cannot be the name of a file, is longer than UID_BYTES or holds a dot.

    Attributes:
        uid: the object's key everywhere, without dots (a WebDataset key ends at the first).
        source: the kind of source.
        path: the local mesh file, "" until fetched.
        url: where it is fetched from.
        sha256: of the mesh file, "" where the source does not say.
        size_bytes: of the mesh file, 0 where the source does not say.
        licence: SPDX-like name.
        attribution: the credit that the licence requires.
        title: of the object.
        category: of the object.
        split: "train" or "val".
    """

    uid: str
    source: str
    path: str = ""
    url: str = ""
    sha256: str = ""
    size_bytes: int = 0
    licence: str = ""
    attribution: str = ""
    title: str = ""
    category: str = ""
    split: str = "train"

    def __post_init__(self) -> None:
        check_uid(self.uid)

    def to_row(self) -> dict[str, Any]:
        """Return a JSON row; `from_row` reads it back."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Asset":
        """Make an asset of a row of a plan or a manifest; other columns are ignored.

        Raises:
            InputError: where a column has another type, or the uid cannot be one.
        """
        check_uid(row.get("uid"))
        columns = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        for name, value in columns.items():
            if not isinstance(value, int if name == "size_bytes" else str):
                raise InputError(f"object '{row['uid']}': {name} cannot be {str(value)[:40]!r}")
        return cls(**{"source": "", **columns})


@dataclass
class SourceConfig:
    """Where objects come from."""

    kind: str = "folder"
    """folder (any meshes), objaverse (through the package of that name), gso (Google Scanned Objects) or procedural
    (made-up household objects)."""
    path: str = "objects"
    """The folder of a folder or gso source."""
    recursive: bool = False
    """Whether subfolders are searched too (folder)."""
    licences: str | None = None
    """A JSON with `objects`: rows of name, licence, attribution, sha256 ... (folder, gso). null: licences.json in the
    folder of the meshes, where there is one."""
    subset: ObjaverseSubset = "lvis"
    """lvis: the objects with LVIS categories; or all (objaverse)."""
    list: str | None = None
    """A file of the uids to take, one per line or JSON; null takes all."""
    exclude_list: str | None = None
    """A file of uids never to take."""
    hashes: bool = True
    """Take each file's SHA-256 from the Objaverse-XL annotations (objaverse)."""
    timeout_s: float = 60.0
    """Seconds without a byte after which a download has failed."""
    count: int = 1000
    """How many objects are made (procedural)."""
    seed: int = 0
    """Another seed makes other objects (procedural)."""


class Source(Protocol):
    """A collection of objects; `SOURCES` maps a kind to the class, which is constructed with a SourceConfig."""

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """List every object of the source, in an order that does not vary; may need a network.

        Args:
            progress: called as the list grows.

        Returns:
            At least one asset.

        Raises:
            InputError: where there is no object.
        """
        ...

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """Bring the mesh file of an asset onto this machine.

        Args:
            asset: of this source.
            folder: where a file goes that is not on this machine yet.

        Returns:
            The local file.

        Raises:
            RenderError: FETCH_FAILED, FETCH_HASH or PARSE_ERROR.
        """
        ...


def uid_of(name: str) -> str:
    """Return a file's stem as a uid: "_" for dots and for what no name can hold, and at most UID_BYTES."""
    return to_component(name.replace(".", "_"), UID_BYTES)


def check_uid(uid: Any) -> str:
    """Return the uid as it is; raises InputError where it cannot be one (see `Asset`)."""
    if "." in check_component(uid, "uid", UID_BYTES):
        raise InputError(f"uid '{uid}' has a dot: a key of a tar of samples ends at the first")
    return str(uid)


def read_uids(path: str | Path) -> list[str]:
    """Read a list of uids.

    Text has one per line, `#` starts a comment. JSON is a list, a mapping of categories to lists, or a mapping with
    uids as its keys. A `.glb` at a uid's end is dropped.

    Args:
        path: the file.

    Returns:
        The uids in the file's order, each once.

    Raises:
        InputError: where the file cannot be read or is empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _json_uids(parse_json(text, object, "it")) if path.suffix == ".json" else _text_uids(text)
        uids = list(dict.fromkeys(uid_of(name.removesuffix(".glb")) for name in names))
    except (OSError, UnicodeDecodeError, InputError, TypeError, AttributeError) as error:  # a name that is not a string
        raise InputError(f"uid list '{path}' cannot be read: {first_line(error)}") from error
    if not uids:
        raise InputError(f"uid list '{path}' names no object")
    return uids


def select_uids(uids: Iterable[str], config: SourceConfig) -> set[str]:
    """Return those of the source's `uids` that `list` names and `exclude_list` does not.

    Listed uids that the source lacks are counted in the log. Raises InputError where none is left.
    """
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


def licence_rows(path: str | None, beside: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Read a licence file.

    Args:
        path: a JSON file with `objects`, or None.
        beside: a folder of meshes, whose licences.json is read where `path` is None.

    Returns:
        Its rows by the objects' names; empty where there is no file.

    Raises:
        InputError: where the file cannot be used, or gives one name two different licences.
    """
    if not path:
        if beside is None or not (Path(beside) / LICENCES).is_file():
            return {}
        path = str(Path(beside) / LICENCES)
        log.info("licences are those of '%s'", path)
    rows: dict[str, dict[str, Any]] = {}
    listed = read_json(path, dict, "licence file").get("objects")
    if not isinstance(listed, list):
        raise InputError(f"licence file '{path}' has no list `objects`")
    for number, row in enumerate(listed, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise InputError(f"licence file '{path}', object {number}: it must be an object with a name")
        earlier = rows.setdefault(row["name"], row)
        if earlier.get("licence") != row.get("licence"):
            raise InputError(f"licence file '{path}' gives '{row['name'][:80]}' two licences")
    return rows


def check_file(path: Path, asset: Asset) -> Path:
    """Return `path` where it is the file that `asset` describes. Raises RenderError otherwise."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise RenderError(Reason.FETCH_FAILED, f"'{path}' cannot be read: {system_reason(error)}") from error
    if not head:
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is empty")
    if head.startswith(b"version https://git-lfs"):
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is a Git LFS pointer, not a mesh; run `git lfs pull`")
    if head.lstrip().startswith(b"<"):  # no mesh format read here begins so
        raise RenderError(Reason.PARSE_ERROR, f"'{path}' is an HTML or XML page, not a mesh")
    if asset.sha256 and (found := provenance.hash_file(path)) != asset.sha256:
        raise RenderError(Reason.FETCH_HASH, f"'{path}' has SHA-256 {found[:16]}, not {asset.sha256[:16]}")
    return path
