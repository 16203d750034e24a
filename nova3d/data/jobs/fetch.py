"""Fetching the next objects while the workers render: a thread for each."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from nova3d.data.sources import Asset
from nova3d.rendering.reasons import Reason, RenderError, one_line
from nova3d.utils.files import check_component, is_disk_full, remove


class Fetcher:
    """Runs `fetch(asset, folder) -> path` for each object in a folder of its own under `root`."""

    def __init__(self, fetch: Callable[[Asset, Path], Path], root: Path):
        self._fetch, self._root = fetch, root

    def request(self, asset: Asset) -> Future[Path | RenderError]:
        """Start to fetch an object; the future gives its mesh file, or why there is none."""
        future: Future[Path | RenderError] = Future()
        # A daemon thread: the process must be able to end while a fetch hangs, which an executor's thread prevents.
        threading.Thread(target=lambda: future.set_result(self._run(asset)), daemon=True).start()
        return future

    def discard(self, uid: str) -> None:
        """Remove an object's folder. A file that lies elsewhere (the user's own) is never touched."""
        with contextlib.suppress(OSError):  # it goes with the scratch folder
            remove(self._root / check_component(uid, "uid"))

    def _run(self, asset: Asset) -> Path | RenderError:
        folder = self._root / asset.uid
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return self._fetch(asset, folder)
        except RenderError as error:
            cause, reason, message = error.__cause__, error.reason, str(error)
        except Exception as error:  # whatever a source's library raises is one object's failure
            cause, reason, message = error, Reason.FETCH_FAILED, f"{type(error).__name__}: {error}"
        if is_disk_full(cause):
            reason, message = Reason.WRITE_ERROR, f"cannot write a fetched file: {cause.strerror}"
        return RenderError(reason, one_line(message, folder, Path(asset.path).parent))
