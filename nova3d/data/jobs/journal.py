"""The record of a render job: an append-only journal and a status file per scheduler.

A row of the journal is one attempt: the Asset's columns, state (done | refused | failed | queued), reason, message,
attempt, seconds, worker, device, time, sequence. An object is done when its tar exists, whatever its rows are;
otherwise the latest row decides, by `sequence`: clocks of machines differ. `queued` cancels the attempts before it.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nova3d.data.sources import Asset
from nova3d.errors import InputError, first_line
from nova3d.utils.files import append_json_lines, locked, read_json, read_json_lines, write_json
from nova3d.utils.provenance import stable_hash

STALE_SECONDS = 30.0  # a status that is older belongs to a dead scheduler


def object_path(out: Path, uid: str) -> Path:
    """Return the path of an object's tar: out/objects/ab/UID.tar, ab from the hash of its uid."""
    return out / "objects" / f"{stable_hash(uid, 8):02x}" / f"{uid}.tar"


class Journal:
    """Appends rows to out/journal/NAME.jsonl and holds a lock, so that a name has one scheduler at a time.

    Raises:
        InputError: where another process holds the lock.
    """

    def __init__(self, out: Path, name: str):
        self._path = out / "journal" / f"{name}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(locked(out, f"another process ({name})", name))
        # Later than every row that any machine has written: a scheduler and a retry of one object never write at once.
        self._sequence = max((row["sequence"] for row in read_rows(out)), default=0)

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
        """Append one attempt, which is on disk when this returns (short of a power cut). Raises OSError."""
        row = asset.to_row() | {
            "state": state,
            "reason": str(reason),
            "message": message,
            "attempt": attempt,
            "seconds": round(seconds, 3),
            "worker": worker,
            "device": device,
            "time": round(time.time(), 3),
            "sequence": self._sequence + 1,
        }
        self._sequence += 1
        append_json_lines(self._path, [dict(sorted(row.items()))])

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return all rows of all journals of a job in their order, without half-written lines.

    Rows of earlier versions have no sequence: they come first, by their time.
    """
    rows = []
    for path in sorted((out / "journal").glob("[!.]*.jsonl")):
        rows += read_json_lines(path, "journal", cut=True)
    whole = [row for row in rows if isinstance(row.get("time"), int | float) and {"uid", "state"} <= row.keys()]
    numbered = [row | {"sequence": row["sequence"] if type(row.get("sequence")) is int else 0} for row in whole]
    return sorted(numbered, key=lambda row: (row["sequence"], row["time"]))


@dataclass(frozen=True)
class AssetOutcome:
    """Where one planned object stands.

    Attributes:
        state: done, refused (for good), failed (given up), or waiting.
        reason: of a refused or failed object.
        message: one line on the reason.
        attempts: those that failed since the object was queued.
        seconds: how long the latest attempt took.
    """

    state: str
    reason: str = ""
    message: str = ""
    attempts: int = 0
    seconds: float = 0.0


def outcomes(out: Path, assets: Iterable[Asset], strikes: int) -> dict[str, AssetOutcome]:
    """Return every asset's outcome by uid; a failure is given up after `strikes` attempts."""
    latest: dict[str, dict[str, Any]] = {row["uid"]: row for row in read_rows(out)}
    tars = {path.stem for path in (out / "objects").glob("*/*.tar")}
    found = {}
    for asset in assets:
        row = latest.get(asset.uid, {})
        state, attempts, seconds = row.get("state", "queued"), row.get("attempt", 0), row.get("seconds", 0.0)
        if asset.uid in tars:
            found[asset.uid] = AssetOutcome("done", seconds=seconds)
        elif state == "refused" or (state == "failed" and attempts >= strikes):
            found[asset.uid] = AssetOutcome(state, row["reason"], row["message"], attempts, seconds)
        else:
            found[asset.uid] = AssetOutcome("waiting", attempts=attempts if state == "failed" else 0)
    return found


def write_status(out: Path, name: str, status: dict[str, Any]) -> None:
    """Write what the scheduler NAME is doing to out/status/NAME.json, with host, process and time."""
    facts = {"name": name, "host": socket.gethostname(), "pid": os.getpid(), "updated": round(time.time(), 1)}
    write_json(out / "status" / f"{name}.json", status | facts)


def read_status(out: Path) -> list[dict[str, Any]]:
    """Return the status of every scheduler, with `age` in seconds, and `live`: whether it is still at work.

    A scheduler that was killed leaves the state `running`. It is recognised by its age and, on its own host, by its
    process. The age of another host's status is that of its file, by the clock of the file system that both share: the
    hosts' own clocks may differ.
    """
    found = []
    for path in sorted((out / "status").glob("[!.]*.json")):
        status = read_json(path, dict, "status")
        try:
            here = status["host"] == socket.gethostname()
            age = time.time() - status["updated"] if here else _file_system_time(path.parent) - path.stat().st_mtime
            gone = here and not psutil.pid_exists(status["pid"])
            live = status["state"] == "running" and age < STALE_SECONDS and not gone
        except (KeyError, TypeError, OverflowError) as error:
            raise InputError(f"status '{path}' is broken ({first_line(error, 60)}): delete it") from error
        found.append(status | {"age": max(0.0, age), "live": live})
    return found


def _file_system_time(folder: Path) -> float:
    """The time now by the clock of a folder's file system; by this host's where the folder cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
