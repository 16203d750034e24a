"""Objaverse: lists, credits and downloads, against a stand-in for its package and a server on this machine."""

import gzip
import hashlib
import json
import sys
import threading
import types
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trimesh

from nova3d.data.sources import Asset, SourceConfig, make_source
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError

GLB = trimesh.exchange.gltf.export_glb(trimesh.Scene(trimesh.creation.box()))
GLB_SHA = hashlib.sha256(GLB).hexdigest()
UIDS = ["0a" * 16, "1b" * 16, "2c" * 16, "3d" * 16]


def reason_of(action: Any) -> Reason:
    with pytest.raises(RenderError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value.reason


# The stand-in has the real package's names, return types and files.


class Objaverse(types.ModuleType):
    """Of objaverse 0.1.7: BASE_PATH, load_uids, load_lvis_annotations, load_annotations, and its cache on disk."""

    def __init__(self, base: Path):
        super().__init__("objaverse")
        self.BASE_PATH = str(base)
        self.paths = {uid: f"glbs/000-{i // 2:03d}/{uid}.glb" for i, uid in enumerate(UIDS)}
        self.loaded: list[list[str]] = []

    def load_uids(self) -> list[str]:
        cache = Path(self.BASE_PATH) / "hf-objaverse-v1"
        cache.mkdir(parents=True, exist_ok=True)
        with gzip.open(cache / "object-paths.json.gz", "wt") as file:
            json.dump(self.paths, file)
        return list(self.paths)

    def load_lvis_annotations(self) -> dict[str, list[str]]:
        return {"zebra": [UIDS[2], UIDS[0]], "animal": [UIDS[0], UIDS[1]]}

    def load_annotations(self, uids: list[str]) -> dict[str, Any]:
        self.loaded.append(uids)
        user = {"username": "ann", "displayName": "Ann A.", "profileUrl": "https://sketchfab.com/ann"}
        full = {
            uid: {
                "uri": f"https://api.sketchfab.com/v3/models/{uid}",
                "uid": uid,
                "name": f"Thing {uid[:2]}",
                "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
                "user": user,
                "license": "by",
            }
            for uid in uids
        }
        full[UIDS[1]] = {"uid": UIDS[1], "name": None, "license": None, "user": {}}
        return {uid: full[uid] for uid in uids if uid != UIDS[3]}


class SketchfabDownloader:
    """Of objaverse.xl.sketchfab: the table's two columns that are read."""

    @classmethod
    def get_annotations(cls, download_dir: str = "~/.objaverse", refresh: bool = False) -> dict[str, list[str]]:
        pages = [f"https://sketchfab.com/3d-models/{uid}" for uid in UIDS]
        return {"fileIdentifier": pages, "sha256": [GLB_SHA, "1" * 64, "2" * 64, "3" * 64]}


@pytest.fixture
def objaverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objaverse:
    package = Objaverse(tmp_path / "cache")
    xl, sketchfab = types.ModuleType("objaverse.xl"), types.ModuleType("objaverse.xl.sketchfab")
    sketchfab.SketchfabDownloader = SketchfabDownloader  # type: ignore[attr-defined]
    for name, module in (("objaverse", package), ("objaverse.xl", xl), ("objaverse.xl.sketchfab", sketchfab)):
        monkeypatch.setitem(sys.modules, name, module)
    return package


def test_objaverse_lists_lvis_with_credits(objaverse: Objaverse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova3d.data.sources.objaverse._BATCH", 2)
    calls: list[tuple[int, int]] = []
    assets = make_source(SourceConfig(kind="objaverse")).assets(lambda done, total, _: calls.append((done, total)))
    assert [asset.uid for asset in assets] == UIDS[:3]
    assert calls == [(2, 3), (3, 3)] and objaverse.loaded == [UIDS[:2], UIDS[2:3]]  # a batch at a time
    first, second, third = assets
    assert first.licence == "CC-BY-4.0" and first.sha256 == GLB_SHA and first.title == "Thing 0a"
    page = f"https://sketchfab.com/3d-models/{UIDS[0]}"
    credit = f'"Thing 0a" ({page}) by Ann A. (https://sketchfab.com/ann), licensed under CC-BY-4.0'
    assert first.attribution == credit
    assert first.url.endswith(f"/resolve/main/glbs/000-000/{UIDS[0]}.glb")
    assert (first.category, third.category) == ("animal", "zebra")  # the first of several, whatever their order
    assert second.licence == "" and UIDS[1] in second.attribution


def test_objaverse_whole_or_by_list(objaverse: Objaverse, tmp_path: Path) -> None:
    whole = make_source(SourceConfig(kind="objaverse", subset="all", hashes=False)).assets()
    assert [asset.uid for asset in whole] == UIDS
    assert {asset.sha256 for asset in whole} == {""} and {asset.category for asset in whole} == {""}
    assert whole[3].licence == "" and UIDS[3] in whole[3].attribution  # without annotations it is still listed
    published, invalid = tmp_path / "lvis.json", tmp_path / "invalid.json"
    published.write_text(json.dumps([UIDS[2], UIDS[0], "f" * 32]))
    invalid.write_text(json.dumps([UIDS[2]]))
    config = SourceConfig(kind="objaverse", list=str(published), exclude_list=str(invalid))
    assert [asset.uid for asset in make_source(config).assets()] == [UIDS[0]]
    with pytest.raises(InputError, match="subset 'some'"):
        make_source(SourceConfig(kind="objaverse", subset="some"))


def test_objaverse_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "objaverse", None)
    with pytest.raises(InputError, match=r"nova3d\[render\]"):
        make_source(SourceConfig(kind="objaverse"))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("load_uids", urllib.error.URLError("no route to host")),
        ("load_lvis_annotations", urllib.error.HTTPError("https://x", 404, "Not Found", None, None)),  # type: ignore[arg-type]
        ("load_annotations", gzip.BadGzipFile("half a file")),
        ("load_annotations", EOFError("half a file")),
    ],
)
def test_a_broken_network_is_a_failed_fetch(
    objaverse: Objaverse, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(objaverse, function, fail)
    assert reason_of(make_source(SourceConfig(kind="objaverse")).assets) is Reason.FETCH_FAILED


@pytest.fixture
def server() -> Iterator[str]:
    """A file server on this machine: /good is a GLB, /page a web page with status 200, /short breaks off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/good": GLB, "/page": b"<html>come back later</html>", "/short": GLB[:100]}.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(GLB) if self.path == "/short" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_objaverse_downloads_whole_files(objaverse: Objaverse, server: str, tmp_path: Path) -> None:
    source = make_source(SourceConfig(kind="objaverse", timeout_s=5))
    target = tmp_path / "job"
    target.mkdir()

    def fetch(name: str, sha256: str = "") -> Path:
        return source.fetch(Asset(uid="a", source="objaverse", url=f"{server}/{name}", sha256=sha256), target)

    assert fetch("good", GLB_SHA) == target / "a.glb" and (target / "a.glb").read_bytes() == GLB
    assert reason_of(lambda: fetch("good", "0" * 64)) is Reason.FETCH_HASH
    assert reason_of(lambda: fetch("page")) is Reason.PARSE_ERROR
    (target / "a.glb").unlink()
    for name in ("short", "absent"):
        assert reason_of(lambda name=name: fetch(name)) is Reason.FETCH_FAILED  # type: ignore[misc]
    assert list(target.iterdir()) == []  # nothing half-done is left


def test_objaverse_uses_what_is_already_there(objaverse: Objaverse, tmp_path: Path) -> None:
    source = make_source(SourceConfig(kind="objaverse"))
    asset = source.assets()[0]
    cached = Path(objaverse.BASE_PATH) / "hf-objaverse-v1" / objaverse.paths[UIDS[0]]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(GLB)
    assert source.fetch(asset, tmp_path / "job") == cached
    cached.write_bytes(GLB[:-1])
    assert reason_of(lambda: source.fetch(asset, tmp_path / "job")) is Reason.FETCH_HASH
