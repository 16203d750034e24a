"""What a job has done so far: one append-only journal per parent process, and the status each of them shows.

A row is one attempt: the Asset's columns, state (done | refused | failed | queued), reason, message, attempt, seconds,
worker, device, time. An object counts as done when its tar exists, whatever the journal says; otherwise the latest row
decides. `queued` wipes the attempts before it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from nova3d.data.assets import Asset
from nova3d.data.shards import replace_text
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason

log = logging.getLogger(__name__)
STALE_SECONDS = 30.0


def object_path(out: Path, uid: str) -> Path:
    """Where an object's tar lies: out/objects/ab/UID.tar, ab from the hash of its uid."""
    return out / "objects" / uid_hash(uid)[:2] / f"{uid}.tar"


def uid_hash(uid: str) -> str:
    """SHA-256 of a uid, hex: the order of objects in shards and their share among several jobs."""
    return hashlib.sha256(uid.encode()).hexdigest()


class Journal:
    """Appends rows to out/journal/NAME.jsonl; holds a lock on it, so that a name has one parent at a time."""

    def __init__(self, out: Path, name: str):
        path = out / "journal" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)  # nothing is held back, so nothing can fail later
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"another process is rendering '{out}' ({name}); see `status`, or wait for it") from error
        if self._file.tell() and not _ends_in_newline(path):  # a parent was killed in mid-line
            self._file.write(b"\n")

    def write(
        self,
        asset: Asset,
        state: str,
        reason: str = "",
        message: str = "",
        attempt: int = 0,
        seconds: float = 0.0,
        worker: str = "",
        device: str = "",
    ) -> None:
        """One attempt, on disk when this returns (short of a power cut). Raises OSError."""
        row = asset.to_row() | {
            "state": state,
            "reason": str(reason),
            "message": message,
            "attempt": attempt,
            "seconds": round(seconds, 3),
            "worker": worker,
            "device": device,
            "time": round(time.time(), 3),
        }
        line = json.dumps(row, sort_keys=True).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All rows of all journals of a job in order of time; half-written lines are left out, and counted in the log."""
    rows, torn = [], 0
    for path in sorted((out / "journal").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                row["uid"], row["state"], row["time"]
                rows.append(row)
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                torn += bool(line.strip())
    if torn:
        log.info("%d half-written journal lines left out", torn)
    return sorted(rows, key=lambda row: row["time"])


@dataclass(frozen=True)
class Outcome:
    """Where one planned object stands. state: done, refused (for good), failed (given up), or waiting; attempts: tries
    that failed since it was queued; row: the journal's latest on it, {} for none."""

    state: str
    reason: str
    message: str
    attempts: int
    row: dict[str, Any]


def outcomes(out: Path, assets: Iterable[Asset], strikes: int) -> dict[str, Outcome]:
    """Every asset's outcome by uid; a failure is given up after `strikes` attempts."""
    latest: dict[str, dict[str, Any]] = {row["uid"]: row for row in read_rows(out)}
    tars = {path.stem for path in (out / "objects").glob("*/*.tar")}
    found = {}
    for asset in assets:
        row = latest.get(asset.uid, {})
        state, attempts = row.get("state", "queued"), row.get("attempt", 0)
        if asset.uid in tars:
            found[asset.uid] = Outcome("done", "", "", 0, row)
        elif state == "refused" or (state == "failed" and attempts >= strikes):
            found[asset.uid] = Outcome(state, row["reason"], row["message"], attempts, row)
        else:
            found[asset.uid] = Outcome("waiting", "", "", attempts if state == "failed" else 0, row)
    return found


def requeue(out: Path, assets: Iterable[Asset], reasons: Iterable[Reason], strikes: int) -> list[str]:
    """Have the next run try again what was refused or given up for one of `reasons`; returns the uids."""
    assets, wanted = list(assets), set(reasons)
    found = outcomes(out, assets, strikes)
    chosen = [a for a in assets if found[a.uid].state in ("refused", "failed") and found[a.uid].reason in wanted]
    journal = Journal(out, "retry")
    for asset in chosen:
        journal.write(asset, "queued", message=f"retry of {found[asset.uid].reason}")
    journal.close()
    return [asset.uid for asset in chosen]


def write_status(out: Path, name: str, status: dict[str, Any]) -> None:
    """Show what the parent NAME is doing, as out/status/NAME.json; host, process and time are added."""
    path = out / "status" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"name": name, "host": socket.gethostname(), "pid": os.getpid(), "updated": round(time.time(), 1)}
    replace_text(path, json.dumps(status | facts, indent=1))


def read_status(out: Path) -> list[dict[str, Any]]:
    """The status of every parent, with `live`: whether it is still at work. A parent that was killed leaves a status
    that says `running`; it is known by its age and, on its own host, by its process."""
    found = []
    for path in sorted((out / "status").glob("*.json")):
        with contextlib.suppress(json.JSONDecodeError, OSError):  # being replaced at this moment
            status = json.loads(path.read_text())
            fresh = time.time() - status["updated"] < STALE_SECONDS
            gone = status["host"] == socket.gethostname() and not psutil.pid_exists(status["pid"])
            found.append(status | {"live": status["state"] == "running" and fresh and not gone})
    return found


@contextlib.contextmanager
def lock(path: Path) -> Iterator[IO[bytes]]:
    """Hold an exclusive lock on a file, waiting for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
