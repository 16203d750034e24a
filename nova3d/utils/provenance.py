"""The run record: what made an output. Written into every folder, mesh and picture this project produces."""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nova3d
from nova3d.errors import InputError, first_line
from nova3d.utils.files import inside, readable, write_json, writing

if TYPE_CHECKING:
    from torch import Tensor

_ABSOLUTE = re.compile(r"(~|[A-Za-z]:)?[/\\]|~$")
_PATH_IN_TEXT = re.compile(r"(?<=[\s'\"=(,\[])(~|[A-Za-z]:)?[/\\][^\s'\",;)\]]+")
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "trimesh", "xatlas")


def record(stage: str, config: Any = None, **facts: Any) -> dict[str, Any]:
    """A record of what made an output.

    Args:
        stage: what was done: "sample", "train" ...
        config: its settings, a config instance or a mapping.
        **facts: the stage's own: seeds, hashes of inputs and weights, timings.

    Returns:
        A JSON-ready dict: stage, config and its hash, commit, versions, kind of machine, time and `facts`. Of absolute
        paths it has the last component alone: records go wherever pictures and meshes go.
    """
    settings = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config or {})
    return {
        "stage": stage,
        "nova3d": nova3d.__version__,
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        "config": without_folders(settings),
        "config_hash": hash_json(settings),
        **without_folders(facts),
    }


def without_folders(value: Any) -> Any:
    """Nested dicts, lists and texts, with the last component alone of every absolute path in a text."""
    if isinstance(value, Mapping):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry) for entry in value]
    if not isinstance(value, str | Path):
        return value
    text = readable(str(value))
    if _ABSOLUTE.match(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _PATH_IN_TEXT.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def write(folder: str | Path, entry: Mapping[str, Any]) -> Path:
    """Write `entry` as folder/record.json; raises InputError where it cannot be written."""
    path = Path(folder) / "record.json"
    with writing(f"'{path}'"):
        return write_json(path, entry)


def commit() -> str:
    """The git commit of this checkout, with `-dirty` where tracked files differ; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changes else "")


def hash_json(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stable_hash(text: str, bits: int = 256) -> int:
    """A number made of a text alone: the same in every process, version and machine, unlike `hash`.

    Seeds, orders, splits and shares of work follow from it.

    Args:
        text: any that UTF-8 encodes.
        bits: a multiple of 8, at most 256.

    Returns:
        The first `bits` bits of the text's SHA-256.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: bits // 8])


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, hex. A file that has not changed since is not read again by the same process."""
    state = Path(path).stat()
    return _hash_file(str(Path(path).resolve()), (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=1024)
def _hash_file(path: str, state: tuple[int, ...]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(*states: "Mapping[str, Tensor]", shapes: bool = True) -> str:
    """Hash named tensors by their values as float32: the same from whatever file, dtype or device they come.

    Args:
        states: state dicts, hashed one after the other, each by sorted names.
        shapes: whether the shapes count too. Without them the hash is that of latent caches.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for state in states:
        for name, value in sorted(state.items()):
            digest.update((f"{name} {tuple(value.shape)} " if shapes else name).encode())
            digest.update(value.detach().float().contiguous().numpy(force=True).tobytes())
    return digest.hexdigest()[:16]


def verify_checksums(folder: str | Path) -> list[str]:
    """One line per file of `folder` that does not fit its SHA256SUMS (`sha256sum` format); empty when all fit.

    Raises InputError where the folder or its SHA256SUMS is missing or unreadable.
    """
    sums = Path(folder) / "SHA256SUMS"
    if not sums.is_file():
        raise InputError(f"'{folder}' has no SHA256SUMS to check its files against")
    faults = []
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{sums}' cannot be read: {first_line(error)[:100]}") from error
    for number, line in enumerate(lines, start=1):
        expected, _, name = line.partition(" ")
        name = name.lstrip(" *")
        if len(expected) != 64 or not name:
            raise InputError(f"{sums}, line {number}: not of the form 'SHA256  FILE'")
        path = inside(folder, name, f"{sums}, line {number}: file")
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif hash_file(path) != expected:
            faults.append(f"{path} differs from its checksum (an incomplete download or a Git LFS pointer?)")
    return faults


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
