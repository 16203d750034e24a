"""Objaverse 1.0 through the `objaverse` package (the `render` extra): lists, licences, credits, files."""

import gzip
import http.client
import importlib
import logging
import shutil
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nova3d.data.sources.base import Asset, SourceConfig, check_file, select_uids
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import inside, parse_json, replacing
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
_FILES = "https://huggingface.co/datasets/allenai/objaverse/resolve/main/"
_CACHE = "hf-objaverse-v1"  # under the package's BASE_PATH, laid out as the data set itself
_PAGE = "https://sketchfab.com/3d-models/"
_BLOCK = 1 << 20  # bytes read at a time
_BATCH = 50_000  # annotations held at a time, several kB each


class ObjaverseSource:
    """Objects of Objaverse 1.0: its LVIS subset or all of it, narrowed by a list of uids.

    Lists and annotations come from the package and stay in its cache. A mesh file is taken from that cache where it is
    there (`objaverse.load_objects` puts it there); otherwise it is downloaded into the job's folder, to be
    deleted after rendering. `load_objects` itself is not called: for each object it reads the list of all 800,000
    files again (1.3 CPU-s and 400 MB, measured), has no timeout, and keeps every file.
    """

    def __init__(self, config: SourceConfig):
        if config.subset not in ("lvis", "all"):
            raise InputError(f"source subset '{config.subset}' is not one of lvis, all")
        self.config = config
        self.package = _import("objaverse")

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """List the objects sorted by uid.

        Raises:
            RenderError: FETCH_FAILED, where lists or annotations cannot be downloaded.
            InputError: where the uid lists leave no object.
        """
        with _fetching("the list of objects", self.package):
            uids = set(self.package.load_uids())
            paths = self._object_paths()
        categories: dict[str, str] = {}
        if self.config.subset == "lvis":
            with _fetching("the LVIS annotations", self.package):
                lvis: dict[str, list[str]] = self.package.load_lvis_annotations()
            categories = {uid: name for name in sorted(lvis, reverse=True) for uid in lvis[name]}
            uids &= categories.keys()
        uids = select_uids(uids, self.config)
        hashes = self._hashes() if self.config.hashes else {}
        assets = []
        for part in _batches(uids, paths):
            with _fetching("the annotations", self.package):
                annotations = self.package.load_annotations(part)
            for uid in part:
                asset = _asset(uid, paths[uid], annotations.get(uid, {}), categories.get(uid, ""), hashes.get(uid, ""))
                assets.append(asset)
            if progress:
                progress(len(assets), len(uids), "annotations")
        return sorted(assets, key=lambda asset: asset.uid)

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """Return the GLB in the package's cache, or downloaded to `folder`/uid.glb."""
        if asset.url.startswith(_FILES):
            cached = inside(self._cache(), asset.url.removeprefix(_FILES), "path in Objaverse")
            if cached.is_file():
                return check_file(cached, asset)
        path = folder / f"{asset.uid}.glb"
        _download(asset.url, path, self.config.timeout_s)
        return check_file(path, asset)

    def _cache(self) -> Path:
        return Path(self.package.BASE_PATH) / _CACHE

    def _object_paths(self) -> dict[str, str]:
        """Return each uid's path in the data set; `load_uids` has put this list into the cache."""
        with gzip.open(self._cache() / "object-paths.json.gz", "rb") as file:
            return parse_json(file.read(), dict, "Objaverse's list of objects")

    def _hashes(self) -> dict[str, str]:
        """Return each uid's SHA-256, from the Objaverse-XL annotations of the same files."""
        downloader = _import("objaverse.xl.sketchfab").SketchfabDownloader
        with _fetching("the Objaverse-XL annotations (hashes=false does without)", self.package):
            table = downloader.get_annotations()
        return {
            str(page).removeprefix(_PAGE): str(sha256)
            for page, sha256 in zip(table["fileIdentifier"], table["sha256"], strict=True)
        }


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"source 'objaverse' needs a package: pip install 'nova3d[render]' ({error})") from error


@contextmanager
def _fetching(what: str, package: Any) -> Iterator[None]:
    """Turn failures of the network and of half-downloaded files into one line."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, http.client.HTTPException) as error:
        raise RenderError(
            Reason.FETCH_FAILED,
            f"Objaverse: {what} cannot be had: {type(error).__name__}: {error}; the package keeps its files in "
            f"'{package.BASE_PATH}': delete a half-downloaded one there and try again",
        ) from error


def _batches(uids: set[str], paths: dict[str, str]) -> list[list[str]]:
    """Divide the uids into parts that share few annotation files.

    Memory stays bounded, and the package, which reads its list of all objects again in each call, is called seldom.
    """
    ordered = sorted(uids, key=lambda uid: (paths[uid], uid))
    return [ordered[i : i + _BATCH] for i in range(0, len(ordered), _BATCH)]


def _asset(uid: str, path: str, annotation: dict[str, Any], category: str, sha256: str) -> Asset:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("user") or {}, dict):
        raise InputError(f"Objaverse: the annotation of '{uid}' is not an object")
    user = annotation.get("user") or {}
    title = annotation.get("name") or ""
    author = user.get("displayName") or user.get("username") or ""
    licence = spdx(annotation.get("license") or "")
    profile = user.get("profileUrl")
    credit = [f'"{title}"', f"({annotation.get('viewerUrl') or _PAGE + uid})"]
    credit += [f"by {author}"] * bool(author) + [f"({profile})"] * bool(profile)
    return Asset(
        uid=uid,
        source="objaverse",
        url=_FILES + path,
        sha256=sha256,
        licence=licence,
        attribution=" ".join(credit) + (f", licensed under {licence}" if licence else ""),
        title=title,
        category=category,
    )


def _download(url: str, path: Path, timeout: float) -> None:
    """Download `url` to `path`, all or nothing. Raises RenderError(FETCH_FAILED)."""
    if not url.startswith(("https://", "http://")):  # a plan is a file, and urllib opens local files too
        raise RenderError(Reason.FETCH_FAILED, f"{url[:80]!r} is not a web address")
    try:
        with replacing(path) as aside:
            with urllib.request.urlopen(url, timeout=timeout) as answer, aside.open("wb") as file:
                expected = answer.headers.get("Content-Length")
                shutil.copyfileobj(answer, file, _BLOCK)
                size = file.tell()
            if expected is not None and size != int(expected):
                raise OSError(f"{size} of {expected} bytes came")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RenderError(Reason.FETCH_FAILED, f"{url}: {type(error).__name__}: {error}") from error
