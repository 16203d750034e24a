"""Files and folders: checked before long work, written aside and renamed, locked, read with one-line errors."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from nova3d.errors import InputError, first_line

T = TypeVar("T")

JSON_BYTES = 256 << 20  # the most that `read_json` reads
COMPONENT_BYTES = 90  # leaves room for suffixes below the 143 bytes of an encrypted home folder


def writable_folder(path: str | Path) -> Path:
    """Make the folder `path` and prove that it can be written; raises InputError otherwise."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to '{folder}': {error.strerror or error}") from error
    return folder


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
            with aside.open("rb") as file:
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


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> Path:
    """Write a value as JSON with sorted keys by `replacing`; what JSON lacks becomes its `str`. Returns the path."""
    return write_text(path, json.dumps(value, indent=indent, sort_keys=True, default=str))


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
        raise InputError(f"{what} '{file}' cannot be read: {error.strerror or first_line(error)}") from error


def parse_json(content: bytes | str, kind: type[T], name: str) -> T:
    """The value of JSON `content`, whose top level is of type `kind`; raises InputError that begins with `name`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {first_line(error, 100)}") from error
    if not isinstance(value, kind):
        raise InputError(f"{name} must hold a JSON {_JSON_NAMES[kind]}, not a {_JSON_NAMES[type(value)]}")
    return value


def check_component(name: str, what: str) -> str:
    """Check a name from a file before it becomes one component of a path.

    Args:
        name: the string.
        what: what it names, for the message: "uid", "shard".

    Returns:
        The name as it is.

    Raises:
        InputError: where it is empty, begins with a dot, holds a separator, a NUL or another control character, cannot
            be encoded as UTF-8, or is longer than COMPONENT_BYTES bytes.
    """
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError(f"{what} {name[:40]!r} cannot be encoded as UTF-8") from None
    bad = not name or name.startswith(".") or any(c in '/\\:*?"<>|' or ord(c) < 32 or ord(c) == 127 for c in name)
    if bad or name != name.strip() or name.endswith("."):
        raise InputError(f"{what} {name[:40]!r} cannot be a file name: use letters, digits, '_', '-' and inner dots")
    if length > COMPONENT_BYTES:
        raise InputError(f"{what} {name[:40]!r}... has {length} bytes; at most {COMPONENT_BYTES} can be a file name")
    return name


@contextmanager
def locked(folder: str | Path, what: str = "another process", name: str = "", wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock for the block. The system releases it when the process dies.

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
        raise InputError(f"cannot lock '{folder}': {error.strerror or first_line(error)}") from error
    try:
        yield
    finally:
        lock.release()


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
            with path.open("rb") as file:
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
