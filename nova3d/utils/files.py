"""Files and folders: checked before long work, written aside and renamed, locked, read with one-line errors."""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from filelock import FileLock, Timeout

from nova3d.errors import InputError, first_line, system_reason
from nova3d.utils.suffixes import IMAGE_SUFFIXES

log = logging.getLogger(__name__)
_SYNC_MODE = "r+b" if os.name == "nt" else "rb"  # Windows flushes only what is open for writing
T = TypeVar("T")

JSON_BYTES = 256 << 20  # the most that `read_json` reads
COMPONENT_BYTES = 90  # leaves room for suffixes below the 143 bytes of an encrypted home folder
_SYSTEM_BYTES = 255
_ASIDE = ".new-"  # begins the name of a result that is being written
_NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DIGITS = re.compile(r"(?<![\w.\"])-?\d{309}")  # an integer that no float holds


def check_file(path: str | Path, kind: str) -> Path:
    """Refuse a path that is not that of a file.

    Args:
        path: as a user gave it.
        kind: what it is, for messages: "image", "mask".

    Returns:
        The path.

    Raises:
        InputError: for a URL, a folder, and where there is no such file.
    """
    if _URL.match(str(path)):
        raise InputError(f"'{path}' is a URL: download the {kind} and give the file")
    path = Path(path)
    if not is_file(path):
        try:
            what = ": it is a folder" if path.is_dir() else ": it is no regular file" if path.exists() else ""
        except OSError as error:  # longer than the system's names
            raise InputError(f"{kind} '{str(path)[:80]}...' cannot be read: {system_reason(error)}") from error
        shown = str(path).replace("\0", "\\0")
        raise InputError(f"{kind} '{shown}' does not exist{what and ' as a file'}{what}")
    return path


def check_folder(path: str | Path, kind: str) -> Path:
    """Refuse a path that is not that of a folder.

    Args:
        path: as a user gave it.
        kind: what it is, for messages: "view folder".

    Returns:
        The path.

    Raises:
        InputError: where there is nothing, or something else.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{kind} '{path}' {'is no folder' if path.exists() else 'does not exist'}")
    return path


def files_in(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of a folder with one of the suffixes, in natural order (2.png before 10.png), without hidden ones."""
    wanted = set(suffixes)
    found = [path for path in folder.iterdir() if path.suffix.lower() in wanted and not path.name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=_natural_key)


def _natural_key(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def names_one_file(text: str | Path) -> bool:
    """Whether a text names a file, which need not exist, and no folder and no glob pattern."""
    path = Path(text)
    return not path.is_dir() and (path.exists() or not glob.has_magic(str(text)))


def writable_folder(path: str | Path, make: bool = True) -> Path:
    """Make a folder and prove that it can be written.

    Args:
        path: the folder.
        make: False makes nothing, and tries the nearest folder above that is there.

    Returns:
        Its path.

    Raises:
        InputError: where it cannot be made or written.
    """
    folder = Path(path)
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot write to {str(folder)!r}: {system_reason(error)}") from error
    return folder


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Raise an OSError of the block as an InputError of one line.

    Args:
        what: what the block writes, with its path: "the report 'out/report.html'".

    Raises:
        InputError: "cannot write", `what` and the system's reason.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {system_reason(error)}") from error


def check_replaceable(folder: str | Path, names: Sequence[str]) -> None:
    """Refuse to replace folders that are not of an earlier result.

    Args:
        folder: where a result is to be written. An earlier result has left its record.json there.
        names: the folders in it that the result replaces.

    Raises:
        InputError: naming the first that is there, holds something and was not written by `nova3d sample`, where
            there is no record.json.
    """
    if (Path(folder) / "record.json").is_file():
        return
    for path in (Path(folder) / name for name in names):
        if path.is_dir() and any(path.iterdir()) and not _is_sampled(path):
            raise InputError(
                f"'{path}' would be replaced, and is not a result of an earlier run: choose another folder"
            )


def _is_sampled(folder: Path) -> bool:
    """Whether a folder has the record of sampled views, as `nova3d.utils.provenance.record` makes it."""
    try:
        record = read_json(folder / "record.json", dict)
    except InputError:
        return False
    return record.get("stage") == "sample" and "nova3d" in record


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder aside, and rename it onto `path` when the block ends.

    A reader sees the old content or the new one, never a part. Where the block raises, what was written aside is
    removed and `path` stays as it was.

    Args:
        path: the file or folder to write; its parent is made where it is missing.

    Yields:
        A path beside `path` with the same suffix that does not exist yet. The block makes it, as a file or a folder.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{os.getpid()}.{os.urandom(4).hex()}"
    aside, old = (target.with_name(f".{target.stem}.{tag}{end}{target.suffix}") for end in ("", ".old"))
    try:
        yield aside
        if not aside.is_dir():
            with aside.open(_SYNC_MODE) as file:
                os.fsync(file.fileno())
            aside.replace(target)
            return
        sync_folder(aside)
        if target.exists():  # a folder that holds files cannot be replaced in one step
            target.rename(old)
        aside.rename(target)
    finally:
        remove(aside)
        remove(old)


@contextmanager
def filling(folder: str | Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Write the files and folders of one result aside, and put them into `folder` together when the block ends.

    Where the block raises or the process dies in it, `folder` has what it had before. Hold the folder's lock (see
    `locked`): what an earlier process has left aside is removed.

    Args:
        folder: an existing folder. What the block does not write stays.
        stale: glob patterns of further entries of an earlier result, which go when the new one comes.

    Yields:
        An empty folder in `folder`.
    """
    target = Path(folder)
    for left in target.glob(f"{_ASIDE}*"):
        remove(left)
    aside = target / f"{_ASIDE}{os.urandom(4).hex()}"
    aside.mkdir()
    try:
        yield aside
        sync_folder(aside)
        old = aside.with_name(f"{aside.name}.old")
        old.mkdir()
        try:
            earlier = {target / new.name for new in aside.iterdir()}
            for path in earlier.union(*(target.glob(name) for name in stale)):
                if path.exists():
                    path.rename(old / path.name)
            for new in sorted(aside.iterdir()):
                new.rename(target / new.name)
        finally:
            remove(old)
    finally:
        remove(aside)


def write_text(path: str | Path, text: str, keep_equal: bool = False) -> Path:
    """Write UTF-8 text by `replacing`.

    Args:
        path: the file.
        text: its content.
        keep_equal: leave a file that has this content already as it is, with its time.

    Returns:
        The path.
    """
    file, content = Path(path), text.encode("utf-8")
    if not (keep_equal and file.is_file() and file.read_bytes() == content):
        with replacing(file) as aside:
            aside.write_bytes(content)
    return file


def json_types(value: Any) -> Any:
    """A value as it reads back from a JSON file: tuples are lists, keys are texts, what JSON lacks is its `str`."""
    return json.loads(json.dumps(value, default=str))


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> Path:
    """Write a value as JSON with sorted keys by `replacing`; what JSON lacks becomes its `str`. Returns the path."""
    return write_text(path, json.dumps(value, indent=indent, sort_keys=True, default=str))


def append_json_lines(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append entries to a file of one JSON object per line, in one write.

    Several processes may append to one file: their lines do not mix. A line that a killed process cut short is ended
    first, and `read_json_lines` can leave it out.

    Args:
        path: the file, made where it is missing.
        entries: JSON-ready.

    Raises:
        OSError: where the file cannot be written.
    """
    content = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    with Path(path).open("a+b", buffering=0) as file:  # nothing is held back, so nothing can fail later
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_json(path: str | Path, kind: type[T], what: str = "file") -> T:
    """Read a JSON file whose top level is of type `kind`.

    Args:
        path: the file.
        kind: dict or list.
        what: what the file is, for the message: "shard index", "manifest".

    Returns:
        The value.

    Raises:
        InputError: naming the file, where it is missing, no regular file, larger than JSON_BYTES, not UTF-8, not JSON
            (NaN and Infinity included) or of another type.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise InputError(f"{what} '{file}' does not exist" if not file.exists() else f"'{file}' is not a file")
        if file.stat().st_size > JSON_BYTES:
            raise InputError(f"{what} '{file}' has {file.stat().st_size} bytes, more than a {what} can have")
        return parse_json(file.read_bytes(), kind, f"{what} '{file}'")
    except OSError as error:
        raise InputError(f"{what} '{file}' cannot be read: {system_reason(error)}") from error


def read_json_lines(path: str | Path, what: str = "file", cut: bool = False) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; empty lines are passed over.

    Args:
        path: the file.
        what: what the file is, for the message: "plan", "manifest".
        cut: leave out lines that are not JSON, which the log counts: a killed process may have cut one short.

    Returns:
        The objects.

    Raises:
        InputError: naming the file, or the line that is not a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {system_reason(error)}") from error
    found: list[dict[str, Any]] = []
    left_out = 0
    for number, line in enumerate(lines, start=1):
        try:
            found += [parse_json(line, dict, f"{what} '{path}', line {number}")] if line.strip() else []
        except InputError:
            if not cut:
                raise
            left_out += 1
    if left_out:
        log.warning("%s '%s': %d unfinished lines left out", what, path, left_out)
    return found


def parse_json(content: bytes | str, kind: type[T], name: str) -> T:
    """The value of JSON `content`, whose top level is of type `kind`; raises InputError that begins with `name`."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content  # Windows' tools write a mark
        if _DIGITS.search(text):
            raise ValueError("a number has more than 308 digits")
        value = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {first_line(error, 100)}") from error
    if not isinstance(value, kind):
        raise InputError(f"{name} must hold a JSON {_JSON_NAMES[kind]}, not a {_JSON_NAMES[type(value)]}")
    return value


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file of a name that another file gives; False for names that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # longer than the system's names, or with a NUL
        return False


def check_component(name: Any, what: str, most: int = COMPONENT_BYTES) -> str:
    """Check a name from a file before it becomes one component of a path.

    Args:
        name: what the file holds; only a string can be right.
        what: what it names, for the message: "uid", "shard".
        most: the bytes that it may have.

    Returns:
        The name as it is.

    Raises:
        InputError: where it is not a string, is empty, begins or ends with a dot or a blank, holds a separator, a NUL
            or another control character, cannot be encoded as UTF-8, or is longer than `most` bytes.
    """
    if not isinstance(name, str):
        raise InputError(f"{what} must be a string, not {str(name)[:40]!r}")
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError(f"{what} {name[:40]!r} cannot be encoded as UTF-8") from None
    if not name or name.strip().strip(".") != name or _NOT_IN_NAMES.search(name):
        raise InputError(f"{what} {name[:40]!r} cannot be a file name: use letters, digits, '_', '-' and inner dots")
    if length > most:
        raise InputError(f"{what} '{name[:40]}...' has {length} bytes; at most {most} can be a file name")
    return name


def to_component(name: str, most: int = COMPONENT_BYTES) -> str:
    """A name that `check_component` accepts, as near to `name` as that goes; equal names stay equal.

    Args:
        name: the name of a file, also one whose bytes are not UTF-8.
        most: the bytes that it may have.

    Returns:
        `name` with "_" for what cannot stand in it. A longer one is cut and ends in 8 hex digits of its SHA-256.
    """
    clean = _NOT_IN_NAMES.sub("_", readable(name).replace("\ufffd", "_"))
    clean = re.sub(r"^[\s.]+|[\s.]+$", "", clean) or "_"
    if len(clean.encode()) <= most:
        return clean
    tail = "_" + hashlib.sha256(clean.encode()).hexdigest()[:8]
    return clean.encode()[: most - len(tail)].decode(errors="ignore") + tail


def inside(folder: str | Path, name: Any, what: str) -> Path:
    """The path of a file that a list names, which must lie below the list's folder.

    Args:
        folder: the list's folder.
        name: the relative path that the list holds, with "/" between its components.
        what: what it names, for the message: "shard", "file of SHA256SUMS".

    Returns:
        The path, which may not exist.

    Raises:
        InputError: where a component of `name` cannot be one (see `check_component`).
    """
    parts = name.split("/") if isinstance(name, str) else [name]
    return Path(folder, *(check_component(part, what, _SYSTEM_BYTES) for part in parts))


def readable(name: str) -> str:
    """The name of a file as text that can be encoded: U+FFFD stands for the bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def locked(folder: str | Path, what: str = "another process", name: str = "", wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock for the block. The system releases it when the process dies.

    The file stays. A process that waits has it open already: were it removed, that process and a later one, which
    makes a new file, would both hold the lock.

    Args:
        folder: an existing folder; the lock is the file `.lock` in it.
        what: who may hold it, for the message: "a training run".
        name: of one lock among several of a folder: the file `.NAME.lock`.
        wait: wait for the holder instead of raising.

    Raises:
        InputError: at once, where another process holds it and `wait` is not set.
    """
    lock = FileLock(Path(folder) / (f".{name}.lock" if name else ".lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise InputError(f"{what} is at work in '{folder}': wait for it, or choose another folder") from None
    except OSError as error:
        raise InputError(f"cannot lock '{folder}': {system_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def is_disk_full(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def remove(path: str | Path) -> None:
    """Remove a file or a folder with what it holds; nothing where there is none. Links are removed, not followed."""
    target = Path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Flush every file below a folder to the disk, so that a rename cannot outlive its content."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with path.open(_SYNC_MODE) as file:
                os.fsync(file.fileno())


_JSON_NAMES = {
    dict: "object",
    list: "list",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
