"""Fetching the next objects while the workers render: threads with a bounded queue ahead of them."""

import contextlib
import errno
import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nova3d.data.assets import Asset
from nova3d.rendering.reasons import Reason, RenderError


@dataclass(frozen=True)
class Fetched:
    """The end of one fetch: the mesh file, or why there is none."""

    uid: str
    path: Path | None
    fault: RenderError | None


class Fetcher:
    """Runs `fetch(asset, folder) -> path` on daemon threads, each object in a folder of its own under `root`.

    `discard` removes that folder; a file that lies elsewhere (the user's own) is never touched.
    """

    def __init__(self, fetch: Callable[[Asset, Path], Path], root: Path, threads: int):
        self._fetch = fetch
        self._root = root
        self._asked: queue.SimpleQueue[Asset | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
        self._running: dict[str, float] = {}  # uid: when it began
        self.outstanding: set[str] = set()
        self._bell, self._rope = socket.socketpair()
        self._threads = 0
        for _ in range(threads):
            self._start_thread()

    def fileno(self) -> int:
        """Readable when a fetch has ended."""
        return self._bell.fileno()

    def request(self, asset: Asset) -> None:
        self.outstanding.add(asset.uid)
        self._asked.put(asset)

    def ended(self, limit: float) -> list[Fetched]:
        """Fetches that have ended since the last call; one that takes more than `limit` seconds ends as a failure."""
        found = []
        while not self._ended.empty():
            self._bell.recv(1)
            fetched = self._ended.get()
            if fetched.uid in self.outstanding:  # else it was given up before
                found.append(fetched)
        for uid, began in list(self._running.items()):
            if time.monotonic() - began > limit and uid in self.outstanding:
                self._running.pop(uid, None)
                self._start_thread()  # the old one hangs
                message = f"not fetched within {limit:g} s"
                found.append(Fetched(uid, None, RenderError(Reason.FETCH_FAILED, message)))
        self.outstanding -= {fetched.uid for fetched in found}
        return found

    def discard(self, uid: str) -> None:
        """Remove what was fetched for an object."""
        shutil.rmtree(self._root / uid, ignore_errors=True)

    def close(self) -> None:
        """Let the threads go; one that hangs is left alone."""
        for _ in range(self._threads):
            self._asked.put(None)
        self._bell.close()
        self._rope.close()

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (asset := self._asked.get()) is not None:
            began = self._running[asset.uid] = time.monotonic()
            fetched = self._fetch_one(asset)
            if self._running.get(asset.uid) != began:
                return  # given up; another thread has taken this one's place
            self._running.pop(asset.uid, None)
            self._ended.put(fetched)
            with contextlib.suppress(OSError):  # closed meanwhile
                self._rope.send(b".")

    def _fetch_one(self, asset: Asset) -> Fetched:
        folder = self._root / asset.uid
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return Fetched(asset.uid, self._fetch(asset, folder), None)
        except RenderError as error:
            fault = _disk_full(error.__cause__) or RenderError(error.reason, _one_line(str(error), asset, folder))
        except Exception as error:  # whatever a source's library raises is one object's failure
            message = _one_line(f"{type(error).__name__}: {error}", asset, folder)
            fault = _disk_full(error) or RenderError(Reason.FETCH_FAILED, message)
        return Fetched(asset.uid, None, fault)


def _one_line(message: str, asset: Asset, folder: Path) -> str:
    """Without line ends and without folders, which differ from run to run."""
    if asset.path:
        message = message.replace(asset.path, Path(asset.path).name)
    return " ".join(message.replace(f"{folder}/", "").split())


def _disk_full(error: BaseException | None) -> RenderError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RenderError(Reason.WRITE_ERROR, f"cannot write a fetched file: {error.strerror}")
    return None
