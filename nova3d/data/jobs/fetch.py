"""Fetching the next objects while the workers render: threads with a bounded queue ahead of them."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nova3d.data.sources import Asset
from nova3d.rendering.reasons import Reason, RenderError, one_line
from nova3d.utils.files import check_component, is_disk_full, remove


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
            cause, reason, message = error.__cause__, error.reason, str(error)
        except Exception as error:  # whatever a source's library raises is one object's failure
            cause, reason, message = error, Reason.FETCH_FAILED, f"{type(error).__name__}: {error}"
        if is_disk_full(cause):
            reason, message = Reason.WRITE_ERROR, f"cannot write a fetched file: {cause.strerror}"
        return FetchResult(asset.uid, None, RenderError(reason, one_line(message, folder, Path(asset.path).parent)))
