"""Fetching the next objects while the workers render: threads with a bounded queue ahead of them."""

import contextlib
import errno
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nova3d.data.sources import Asset
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import check_component, remove


@dataclass(frozen=True)
class FetchResult:
    """The end of one fetch: the mesh file, or why there is none."""

    uid: str
    path: Path | None
    error: RenderError | None


class Fetcher:
    """Runs `fetch(asset, folder) -> path` on daemon threads, each object in a folder of its own under `root`.

    `discard` removes that folder. A file that lies elsewhere (the user's own) is never touched.
    """

    def __init__(self, fetch: Callable[[Asset, Path], Path], root: Path, threads: int):
        self._fetch, self._root = fetch, root
        self._requests: queue.SimpleQueue[Asset | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[FetchResult] = queue.SimpleQueue()
        self._running: dict[str, float] = {}  # uid: start time
        self._outstanding: set[str] = set()
        self._wakeup, self._notifier = socket.socketpair()
        self._threads = 0
        for _ in range(threads):
            self._start_thread()

    def fileno(self) -> int:
        """Return a descriptor that is readable when a fetch has ended."""
        return self._wakeup.fileno()

    def request(self, asset: Asset) -> None:
        """Queue an object."""
        self._outstanding.add(asset.uid)
        self._requests.put(asset)

    def finished(self, limit: float) -> list[FetchResult]:
        """Return the fetches that ended since the last call; one that takes more than `limit` seconds has failed."""
        found = []
        while not self._results.empty():
            self._wakeup.recv(1)
            result = self._results.get()
            if result.uid in self._outstanding:  # else it has timed out before
                found.append(result)
        for uid, began in list(self._running.items()):
            if time.monotonic() - began > limit and uid in self._outstanding:
                self._running.pop(uid, None)
                self._start_thread()  # in place of the one that hangs
                message = f"not fetched within {limit:g} s"
                found.append(FetchResult(uid, None, RenderError(Reason.FETCH_FAILED, message)))
        self._outstanding -= {result.uid for result in found}
        return found

    def discard(self, uid: str) -> None:
        """Remove what was fetched for an object."""
        with contextlib.suppress(OSError):  # it goes with the scratch folder
            remove(self._root / check_component(uid, "uid"))

    def close(self) -> None:
        """End the threads; one that hangs is left alone."""
        for _ in range(self._threads):
            self._requests.put(None)
        self._wakeup.close()
        self._notifier.close()

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (asset := self._requests.get()) is not None:
            began = self._running[asset.uid] = time.monotonic()
            result = self._fetch_one(asset)
            if self._running.get(asset.uid) != began:
                return  # timed out; another thread has replaced this one
            self._running.pop(asset.uid, None)
            self._results.put(result)
            with contextlib.suppress(OSError):  # closed meanwhile
                self._notifier.send(b".")

    def _fetch_one(self, asset: Asset) -> FetchResult:
        folder = self._root / asset.uid
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return FetchResult(asset.uid, self._fetch(asset, folder), None)
        except RenderError as error:
            fault = _disk_full(error.__cause__) or RenderError(error.reason, _one_line(str(error), asset, folder))
        except Exception as error:  # whatever a source's library raises is one object's failure
            message = _one_line(f"{type(error).__name__}: {error}", asset, folder)
            fault = _disk_full(error) or RenderError(Reason.FETCH_FAILED, message)
        return FetchResult(asset.uid, None, fault)


def _one_line(message: str, asset: Asset, folder: Path) -> str:
    """Return a message without line ends and without folders, which differ from run to run."""
    if asset.path:
        message = message.replace(asset.path, Path(asset.path).name)
    return " ".join(message.replace(f"{folder}/", "").split())


def _disk_full(error: BaseException | None) -> RenderError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RenderError(Reason.WRITE_ERROR, f"cannot write a fetched file: {error.strerror}")
    return None
