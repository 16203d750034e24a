"""The app in headless Chromium, with a tiny model: upload, brush, mesh, downloads, stop, two visitors, bad files."""

import http.client
import io
import json
import shutil
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nova3d import config
from nova3d.app.config import AppConfig
from nova3d.cameras import orbit
from nova3d.rendering import render_object
from nova3d.settings import GenerateConfig
from nova3d.utils import resources
from tests.helpers.browser import chromium

uvicorn = pytest.importorskip("uvicorn", reason="needs Gradio: pip install nova3d[app]")
pytest.importorskip("gradio", reason="needs Gradio: pip install nova3d[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install nova3d[browser]")
pytestmark = pytest.mark.extras

TINY = {
    "sample.steps": 2,
    "turntable_frames": 3,
    "turntable_size": 48,
    "fusion.optim.steps": 20,
    "fusion.hull.resolution": 32,
    "fusion.hull.fit_steps": 10,
    "fusion.conflict.polish_steps": 10,
    "fusion.extract.resolution": 48,
    "fusion.extract.coarse": 24,
    "fusion.extract.faces": 2000,
    "fusion.texture.size": 256,
    "fusion.texture.most": 256,
    "fusion.sampling.rays": 64,
}
OWL = resources.root() / "assets/images/owl.png"
PATIENCE = 300_000  # milliseconds: a busy machine may need minutes for seconds of work


@dataclass(frozen=True)
class Served:
    """The app at work."""

    port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def sessions(self) -> list[str]:
        """The folders of open pages."""
        return [path.name for path in self.folder.iterdir() if len(path.name) == 32 and path.is_dir()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app with one worker, a model of random weights whose views are objects all over, and short fits."""
    from nova3d.app.server import application, listening
    from tests.pipeline.conftest import build

    model = tmp_path_factory.mktemp("model")
    pipeline = build()
    pipeline.register_to_config(size=32)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(2.0)
    pipeline.save_pretrained(model)
    settings = config.load(GenerateConfig, None, (), TINY | {"sample.model": str(model)})
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        with application(AppConfig(), "cpu", {"Draft": settings}) as app, listening("127.0.0.1", 0) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            yield Served(listener.getsockname()[1], next(temporary.glob("nova3d-app-*")))
            server.should_exit = True
            thread.join()
    assert list(temporary.iterdir()) == []  # nothing of the app stays


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(playwright) as started:
        yield started


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Open the app as another visitor; at the end nothing was fetched elsewhere and no script has failed."""
    faults: list[str] = []
    contexts = []

    def _visit(**options: Any) -> Any:
        contexts.append(browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("request", lambda request: faults.append(request.url[:99]) if elsewhere(request.url) else None)
        page.goto(served.address)
        page.wait_for_selector("#make")
        return page

    def elsewhere(url: str) -> bool:
        return not url.startswith((served.address, "data:", "blob:"))

    yield _visit
    for context in contexts:
        context.close()
    assert faults == []


def choose(page: Any, path: Path = OWL) -> None:
    """Upload a picture, and wait for its cut-out."""
    page.locator("#upload input[type=file]").set_input_files(path)
    page.wait_for_selector("#editor canvas")


def status(page: Any, words: str, tab: str = "picture") -> None:
    page.locator(f"#status-{tab}", has_text=words).wait_for()


def until(page: Any, condition: Callable[[], bool], seconds: float = PATIENCE / 1000) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        page.wait_for_timeout(50)


def stage(page: Any, tab: str = "picture") -> Any:
    """The 3D view, once it draws."""
    found = page.frame_locator(f"#mesh-{tab} iframe").locator(".stage.ready")
    found.wait_for()
    found.scroll_into_view_if_needed()
    return found


def pixels(shown: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shown.screenshot())).convert("RGB")) / 255


def turned(page: Any, shown: Any) -> float:
    """The share of the 3D view's pixels that change when it is dragged by half its width."""
    before, box = pixels(shown), shown.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - box["width"] / 2.5, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    return float((np.abs(pixels(shown) - before).max(axis=-1) > 0.15).mean())


def test_a_picture_becomes_views_and_a_mesh_that_turns_and_is_downloaded(
    visit: Callable[..., Any], served: Served
) -> None:
    page = visit()
    choose(page)
    assert "own transparency cuts it out: 37 %" in page.locator("#cutout").inner_text()
    page.locator("#make").click()
    page.locator("#stop").wait_for()
    page.locator("#sheet-picture img").wait_for()
    assert not page.locator("#status-picture .done").is_visible()  # the views are there before the mesh
    status(page, "Done in")
    assert turned(page, stage(page)) > 0.02
    taken = {}
    for name in ("GLB mesh", "OBJ mesh (zip)", "STL mesh", "Views (zip)", "Report", "Turntable"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name, exact=True).or_(
                page.get_by_role("button", name=name, exact=True)
            ).first.click()
        taken[name] = Path(download.value.path()).read_bytes()
    assert taken["GLB mesh"][:4] == b"glTF" and b"three" in taken["Report"] and len(taken["Turntable"]) > 500
    assert len(taken["STL mesh"]) == 84 + 50 * struct.unpack("<I", taken["STL mesh"][80:84])[0]
    with (
        zipfile.ZipFile(io.BytesIO(taken["OBJ mesh (zip)"])) as obj,
        zipfile.ZipFile(io.BytesIO(taken["Views (zip)"])) as views,
    ):
        assert {"mesh.obj", "mesh.mtl", "mesh.png"} <= set(obj.namelist())
        assert {"transforms.json", "rgb/015.png", "normal/015.png"} <= set(views.namelist())
    assert page.locator("#make").is_enabled() and not page.locator("#stop").is_visible()
    (folder,) = served.sessions()
    page.close()
    last = time.monotonic() + 60
    while folder in served.sessions():  # its files go with the page
        assert time.monotonic() < last
        time.sleep(0.1)


def test_a_stopped_job_makes_room_for_the_next_visitor_s(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    for page in (first, second):
        choose(page)
    first.locator("#make").click()
    status(first, "Part 1 of 2")
    second.locator("#make").click()
    status(second, "In the queue. 1 job is before yours")
    first.locator("#stop").click()
    started = time.monotonic()
    status(first, "Stopped.")
    until(second, lambda: "In the queue" not in second.locator("#status-picture").inner_text(), 30)
    assert time.monotonic() - started < 10  # the queue's own test measures the worker's two seconds
    assert first.locator("#make").is_enabled()
    second.locator("#stop").click()
    status(second, "Stopped.")


def test_the_brush_takes_away_from_the_object(visit: Callable[..., Any]) -> None:
    page = visit()
    choose(page)
    canvas = page.locator("#editor canvas").first  # another one lies on it
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the editor fits its picture into its frame
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"], steps=20)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#strokes").click()
    page.locator("#cutout", has_text="Your mask cuts it out").wait_for()
    share = int(page.locator("#cutout").inner_text().split("out: ")[1].split(" %")[0])
    assert 10 < share < 37


def test_what_is_no_picture_or_a_bomb_is_refused_in_words(visit: Callable[..., Any], tmp_path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "bomb.png").write_bytes(png + struct.pack(">I", 1000) + b"IDAT" + bytes(1000))
    (tmp_path / "text.png").write_text("not a picture")
    for name, words in (("bomb.png", "1600000000 pixels) exceeds limit of 64000000"), ("text.png", "cannot be read")):
        page = visit()
        page.locator("#upload input[type=file]").set_input_files(tmp_path / name)
        page.get_by_text(words).first.wait_for()
        assert str(tmp_path) not in page.content() and not page.locator("#editor").is_visible()


def test_after_a_refusal_the_box_is_free_and_the_earlier_picture_stays(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    page = visit()
    page.locator("#examples button").last.click()
    page.wait_for_selector("#editor canvas")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "text.png")
    page.get_by_text("cannot be read").first.wait_for()
    page.locator("#upload", has_text="Click to Upload").wait_for()
    assert page.locator("#upload", has_text="text.png").count() == 0
    assert "own transparency cuts it out: 37 %" in page.locator("#cutout").inner_text()
    page.locator("#make").click()
    status(page, "Part 1 of 2")
    page.locator("#stop").click()
    status(page, "Stopped.")
    (tmp_path / "bad.zip").write_text("no zip file")
    page.get_by_role("tab", name="Views to mesh").click()
    page.locator("#views input[type=file]").set_input_files(tmp_path / "bad.zip")
    page.get_by_text("'bad.zip' cannot be unpacked").first.wait_for()
    page.locator("#views", has_text="Click to Upload").wait_for()


def test_views_in_a_zip_file_are_fused(visit: Callable[..., Any], lopsided_file: Path, tmp_path: Path) -> None:
    render_object(lopsided_file, orbit(8, size=64)).save(tmp_path / "views", {})
    zipped = shutil.make_archive(str(tmp_path / "views"), "zip", tmp_path / "views")
    page = visit()
    page.get_by_role("tab", name="Views to mesh").click()
    page.locator("#views input[type=file]").set_input_files(zipped)
    page.locator("#views", has_text="views.zip").wait_for()
    page.locator("#fuse").click()
    status(page, "Done in", "views")
    assert "8 views were read as the layout nova3d" in page.content()
    assert turned(page, stage(page, "views")) > 0.02


def call(served: Served, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    given = {"content-type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), given | headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/a.png", "{folder}/../x.png"])
def test_a_request_cannot_name_a_file_that_was_not_uploaded(served: Served, path: str) -> None:
    page = json.loads(call(served, "GET", "/config")[1])
    upload = next(c["id"] for c in page["components"] if c["props"].get("elem_id") == "upload")
    function = next(d["id"] for d in page["dependencies"] if [upload, "upload"] in d["targets"])
    file = {"path": path.format(folder=served.folder), "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [file], "fn_index": function, "session_hash": "someone", "event_data": None}
    assert call(served, "POST", "/gradio_api/queue/join", asked)[0] == 200
    told = call(served, "GET", "/gradio_api/queue/data?session_hash=someone")[1]
    assert '"success":false' in told and ("uploaded here" in told or "not uploaded" in told)


def test_what_browsers_elsewhere_and_curious_visitors_ask_is_refused(served: Served) -> None:
    assert call(served, "GET", "/")[0] == 200
    assert call(served, "GET", "/", host="evil.example")[0] == 400
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://a/"):
        assert call(served, "GET", path)[0] == 403
    assert call(served, "GET", "/report/x")[0] == 404 and call(served, "GET", "/docs")[0] == 404
    large = {"content-length": "17000000"}
    assert call(served, "POST", "/gradio_api/queue/join", **large)[0] == 413
