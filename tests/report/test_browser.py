"""The report in headless Chromium: it turns, zooms, wipes and downloads, on a desktop and on a phone."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import chromium

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install nova3d[browser]")
pytestmark = pytest.mark.extras

DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(playwright) as started:
        yield started


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a report; at the end no console message, no script error and no request may have come up."""
    faults: list[str] = []
    contexts = []

    def _visit(path: Path, before: str = "", **options: Any) -> Any:
        contexts.append(browser.new_context(**(options or DESKTOP)))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("request", lambda request: faults.append(request.url[:99]) if request.url != path.as_uri() else None)
        page.add_init_script(before)
        page.goto(path.as_uri())
        page.wait_for_selector(".stage.ready, .stage.failed, .flat")
        return page

    yield _visit
    for context in contexts:
        context.close()
    assert [fault for fault in faults if not fault.startswith(("blob:", "data:"))] == []


@pytest.fixture(scope="module")
def run(write_run: Callable[..., Path]) -> Path:
    return write_run("browser")


def pixels(page: Any, selector: str = ".stage") -> np.ndarray:
    """The element as drawn after all pending frames, [h,w,3] in [0,1], without the labels that lie over it."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    style = ".side, #where, .line, .wipe { opacity: 0 !important } .stage { outline: 0 !important }"
    shot = page.locator(selector).screenshot(style=style)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that differ visibly."""
    return float((np.abs(a - b).max(axis=-1) > 0.15).mean())


def until(page: Any, condition: str) -> bool:
    """Whether a condition comes true within five seconds, since input reaches the page with the next frame.

    Playwright's own way evaluates a string in the page, which its policy forbids.
    """
    for _ in range(100):
        if page.evaluate(condition):
            return True
        page.wait_for_timeout(50)
    return False


def shows(page: Any, label: str) -> bool:
    """Whether the strip comes to mark one view, that with this label."""
    return until(page, f"all('.strip [aria-current]').map(view => view.dataset.label).join() === {json.dumps(label)}")


def drag(page: Any, dx: float, dy: float, **options: Any) -> None:
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.4
    page.mouse.move(x, y)
    page.mouse.down(**options)
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up(**options)


def touch(page: Any, *paths: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """Fingers that move at once from one point of the stage to another, in shares of its sides."""
    box = page.locator(".stage").bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.0), ("touchMove", 0.4), ("touchMove", 1.0), ("touchEnd", None)):
        points = []
        for i, ((x0, y0), (x1, y1)) in enumerate(paths if share is not None else ()):
            x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
            points.append({"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": i})
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_the_mesh_turns_with_the_mouse_and_the_strip_follows(visit: Callable[..., Any], run: Path) -> None:
    page = visit(run)
    start = pixels(page)
    assert shows(page, "0° · input") and page.locator("#where").inner_text() == "0° · input"
    width = page.locator(".stage").bounding_box()["width"]
    drag(page, -width / 2, 0)  # half the width is a quarter turn
    turned = pixels(page)
    assert difference(start, turned) > 0.03
    assert shows(page, "90°") and page.locator("#where").inner_text() == "90°"
    drag(page, 0, width / 4)
    assert difference(turned, pixels(page)) > 0.03 and page.locator("#where").inner_text() == "90°, up 45°"
    page.locator("#reset").click()
    assert difference(start, pixels(page)) == 0 and shows(page, "0° · input")


def test_fingers_turn_and_zoom(visit: Callable[..., Any], run: Path) -> None:
    page = visit(run, **PHONE)
    start = pixels(page)
    touch(page, ((0.75, 0.5), (0.25, 0.5)))
    assert shows(page, "90°") and difference(start, pixels(page)) > 0.03
    page.locator("#reset").click()
    assert shows(page, "0° · input")
    touch(page, ((0.45, 0.5), (0.3, 0.5)), ((0.55, 0.5), (0.7, 0.5)))
    assert until(page, "viewer.zoom > 3")
    shown = [(picture < 0.97).any(axis=-1).mean() for picture in (start, pixels(page))]
    assert shown[1] > 3 * shown[0] and shows(page, "0° · input")


def test_each_mode_draws_another_picture_and_normals_are_those_of_the_maps(
    visit: Callable[..., Any], run: Path
) -> None:
    page = visit(run)
    drawn = {}
    for mode in ("texture", "normals", "clay", "wireframe"):
        page.locator(f"input[value={mode}]").check()
        drawn[mode] = pixels(page)
    modes = list(drawn)
    assert all(difference(drawn[a], drawn[b]) > 0.005 for a in modes for b in modes if a < b)
    page.locator("input[value=normals]").check()
    page.locator("#compare").click()
    assert page.locator("#left").inner_text() == "normal map"
    for label in ("0° · input", "135°"):
        page.locator(f".strip [data-label='{label}']").click()
        by_map, by_mesh = both_sides(page)
        assert difference(by_map, by_mesh) < 0.01


def both_sides(page: Any) -> tuple[np.ndarray, np.ndarray]:
    """The stage with the wipe at its right end, all picture, and at its left end, all mesh."""
    sides = []
    for key in ("End", "Home"):
        page.locator(".wipe").press(key)
        sides.append(pixels(page)[:, 20:-20])  # the wipe leaves half a knob at both ends
    return sides[0], sides[1]


@pytest.mark.parametrize("rig", ["orthographic", "perspective"])
def test_the_wipe_lays_every_view_on_the_mesh_as_the_same_camera_sees_it(
    visit: Callable[..., Any], write_run: Callable[..., Path], rig: str
) -> None:
    page = visit(write_run(rig, rig, cameras=None))
    page.locator("#compare").click()
    for index in (0, 3, 6):
        page.locator(".strip button").nth(index).click()
        picture, mesh = both_sides(page)
        assert difference(picture, mesh) < 0.005 < (mesh < 0.97).any(axis=-1).mean()
    page.locator("#closer").click()  # zoom and pan keep them together
    drag(page, 40, 25, button="right")
    picture, mesh = both_sides(page)
    assert difference(picture, mesh) < 0.005


def test_the_wipe_is_dragged_and_dragging_elsewhere_leafs_through_the_views(
    visit: Callable[..., Any], run: Path
) -> None:
    page = visit(run)
    page.locator("input[value=clay]").check()
    clay = pixels(page)
    page.locator("#compare").click()
    page.locator(".wipe").press("Home")
    assert difference(clay[:, 20:-20], pixels(page)[:, 20:-20]) == 0
    box = page.locator(".wipe").bounding_box()
    page.mouse.move(box["x"] + 18, box["y"] + 18)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 18, steps=4)
    page.mouse.up()
    half, middle = pixels(page), clay.shape[1] // 2
    assert difference(clay[:, : middle - 2], half[:, : middle - 2]) > 0.03
    assert difference(clay[:, middle + 2 :], half[:, middle + 2 :]) == 0
    drag(page, 0, 0)
    assert shows(page, "0° · input")
    width = page.locator(".stage").bounding_box()["width"]
    drag(page, -2.2 * width / 8, 10)
    assert shows(page, "90°")


def test_a_refined_pose_draws_the_mesh(visit: Callable[..., Any], run: Path) -> None:
    page = visit(run)
    page.locator("#compare").click()
    page.locator(".strip [data-label='90°']").click()
    picture, mesh = both_sides(page)
    assert difference(picture, mesh) > 0.015  # this view was turned
    assert "Pose moved by 5.7" in page.locator("#about").inner_text()


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_mesh_downloads_from_within_the_file_and_nothing_sticks_out(
    visit: Callable[..., Any], run: Path, device: dict[str, Any], scheme: str
) -> None:
    page = visit(run, **device, color_scheme=scheme)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "lopsided.glb"
    assert Path(download.value.path()).read_bytes() == run.with_name("lopsided.glb").read_bytes()
    assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]
    canvas, stage = (page.locator(name).bounding_box() for name in ("canvas", ".stage"))
    assert abs(canvas["width"] - stage["width"]) <= 2 and abs(stage["width"] - stage["height"]) <= 1
    assert (pixels(page)[4, 60].mean() < 0.5) == (scheme == "dark")


def test_everything_works_by_the_keyboard(visit: Callable[..., Any], run: Path) -> None:
    page = visit(run)
    page.locator("input[value=texture]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=normals]").is_checked()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "stage ready"
    start = pixels(page)
    for key in ("ArrowRight", "+", "4"):
        before = pixels(page)
        page.keyboard.press(key)
        assert difference(before, pixels(page)) > 0.003
    for key in ("0", "2"):
        page.keyboard.press(key)
    assert difference(start, pixels(page)) == 0
    page.keyboard.press("c")
    page.keyboard.press("ArrowLeft")
    assert shows(page, "315°") and page.locator("#compare").get_attribute("aria-pressed") == "true"
    page.keyboard.press(" ")
    assert page.locator("#spin").get_attribute("aria-pressed") == "true"
    assert page.locator("#compare").get_attribute("aria-pressed") == "false"
    before = pixels(page)
    page.wait_for_timeout(400)
    assert difference(before, pixels(page)) > 0.003
    page.locator(".strip button").nth(4).press("Enter")
    assert shows(page, "180°") and page.locator("#spin").get_attribute("aria-pressed") == "false"
    page.locator("#view").press("Home")
    assert shows(page, "0° · input")


def test_the_wheel_zooms_the_stage_once_it_is_chosen_and_scrolls_the_page_before(
    visit: Callable[..., Any], run: Path
) -> None:
    page = visit(run)
    start = pixels(page)
    page.locator(".stage").hover()
    page.mouse.wheel(0, 100)
    assert until(page, "scrollY > 0")
    page.evaluate("scrollTo(0, 0)")
    assert difference(start, pixels(page)) == 0
    page.locator(".stage").click()
    page.mouse.wheel(0, -400)
    assert until(page, "viewer.zoom > 1")
    assert difference(start, pixels(page)) > 0.02 and page.evaluate("scrollY") == 0


def test_hostile_names_do_nothing(visit: Callable[..., Any], write_run: Callable[..., Path]) -> None:
    evil = "</script><img src=x onerror='window.hurt=1'>\"<script>window.hurt=1</script>"
    page = visit(
        write_run("evil", title=evil, notes=[evil], warnings=[evil], model=[evil], timings={evil: 1.0},
                  history=[{evil: 1.0}, {evil: 2.0}], record={"created": evil, "commit": evil, evil: evil})
    )  # fmt: skip
    assert page.evaluate("window.hurt") is None and page.locator("h1").inner_text() == evil
    assert page.locator("main img[src=x]").count() == 0


def test_a_mesh_that_cannot_be_drawn_is_said(
    visit: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF, but not really")
    page = visit(write_run("broken", mesh_path=broken, preview=np.zeros((8, 8, 3))))
    assert page.locator("#status").inner_text().startswith("The mesh cannot be drawn here:")
    assert page.locator(".poster").is_visible() and page.locator("#spin").is_disabled()
    page.locator(".strip button").nth(3).click()
    assert shows(page, "135°")


def test_without_webgl_the_preview_stays_and_the_page_says_why(
    visit: Callable[..., Any], write_run: Callable[..., Path]
) -> None:
    page = visit(
        write_run("plain", preview=np.zeros((8, 8, 3))),
        before="HTMLCanvasElement.prototype.getContext = () => null",
    )
    assert page.locator("#status").inner_text() == "The mesh cannot be drawn here: the browser has no WebGL 2"
    assert page.locator(".poster").is_visible() and page.locator("#download").is_visible()


def test_a_report_without_a_mesh_still_leafs_through_the_views(
    visit: Callable[..., Any], write_run: Callable[..., Path]
) -> None:
    page = visit(write_run("views", mesh_path=None, cameras=None, input_image=None), **PHONE)
    assert page.locator("canvas").count() == 0
    page.locator("#view").press("ArrowRight")
    assert shows(page, "45°")
    column, tile = page.locator(".strip [aria-current] img").first, page.locator(".tile img").first
    assert column.get_attribute("src") == tile.get_attribute("src")
    page.locator(".tile button").first.click()
    assert page.locator("dialog img").get_attribute("src") == tile.get_attribute("src")
