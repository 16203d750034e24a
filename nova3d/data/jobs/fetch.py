"""Fetching the next objects while the workers render: a thread for each."""

import contextlib
import queue
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
    """Runs `fetch(asset, folder) -> path` on a daemon thread per object, each in a folder of its own under `root`.

    `discard` removes that folder. A file that lies elsewhere (the user's own) is never touched.
    """

    def __init__(self, fetch: Callable[[Asset, Path], Path], root: Path):
        self._fetch, self._root = fetch, root
        self._started: dict[str, float] = {}  # by uid, of the fetches whose end `finished` has not returned
        self._results: queue.SimpleQueue[tuple[float, FetchResult]] = queue.SimpleQueue()

    def request(self, asset: Asset) -> None:
        """Start to fetch an object."""
        started = self._started[asset.uid] = time.monotonic()
        threading.Thread(target=self._run, args=(asset, started), daemon=True).start()

    def finished(self, limit: float) -> list[FetchResult]:
        """Return the fetches that ended since the last call; one that takes more than `limit` seconds has failed."""
        found = []
        while not self._results.empty():
            started, result = self._results.get()
            if self._started.get(result.uid) == started:  # else it has timed out before
                found.append(result)
        for uid, started in self._started.items():
            if time.monotonic() - started > limit and all(result.uid != uid for result in found):
                message = f"not fetched within {limit:g} s"
                found.append(FetchResult(uid, None, RenderError(Reason.FETCH_FAILED, message)))
        for result in found:
            del self._started[result.uid]
        return found

    def discard(self, uid: str) -> None:
        """Remove what was fetched for an object."""
        with contextlib.suppress(OSError):  # it goes with the scratch folder
            remove(self._root / check_component(uid, "uid"))

    def _run(self, asset: Asset, started: float) -> None:
        self._results.put((started, self._fetch_one(asset)))

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
