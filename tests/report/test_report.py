import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.report import page as page_module
from nova3d.report import write_report
from nova3d.report.pictures import conflict_colours, data_uri, normal_colours
from nova3d.report.plots import MAX_POINTS, bar_chart, loss_charts
from nova3d.views import ViewSet

VOID = {"meta", "img", "input", "link", "polyline"}


class Page(HTMLParser):
    """Tags in order with their attributes, and the text; fails on a tag that does not close where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decode(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.fixture
def views() -> ViewSet:
    cameras = orbit(16, size=24)
    normals = torch.zeros(16, 24, 24, 3)
    normals[:, 6:18, 6:18, 2] = 1
    mask = normals.norm(dim=-1)
    return ViewSet(1 - 0.5 * mask[..., None].expand(-1, -1, -1, 3), normals, mask, cameras)


@pytest.fixture
def write(views, tmp_path):
    def _write(**changes):
        return write_report(tmp_path / "run" / "report.html", **({"title": "Chair", "views": views} | changes))

    return _write


@pytest.fixture
def mesh(tmp_path) -> Path:
    path = tmp_path / "run" / "my mesh.glb"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 8000)
    return path


def script(text: str, name: str) -> str:
    """The content of a data block."""
    return re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def test_a_full_report_holds_everything_in_one_file(write, views, mesh):
    lift = torch.eye(4)
    lift[1, 3] = 0.01
    path = write(
        input_image=np.full((24, 24, 4), 0.5),
        reference=np.full((48, 48, 4), 0.5),
        mesh_path=mesh,
        preview=np.full((30, 30, 4), 0.5),
        cameras=replace(views.cameras, c2w=views.cameras.c2w @ lift),
        conflict=torch.full((16, 24, 24), 0.25),
        health={"faces": 12345, "watertight": True, "unseen_share": 0.126, "inv_s": 64.7},
        warnings=["A warning."],
        notes=["A note."],
        model=["A limit."],
        history=[{"step": 10 * i, "colour": 1 / (i + 1)} for i in range(9)],
        timings={"sampling": 30.0, "fusion": 90.0},
        record={"created": "2025-01-01T10:20:30+00:00", "nova3d": "0.1.0", "seed": 7},
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    kinds = [image["data-kind"] for image in page.all("img") if "data-kind" in image]
    assert kinds == ["rgb", "normal", "conflict"] * 16
    assert all(decode(image["src"]).shape == (24, 24, 4) for image in page.all("img") if "data-kind" in image)
    assert base64.b64decode(script(text, "glb")) == mesh.read_bytes()
    run = json.loads(script(text, "run"))
    assert decode(run["reference"]).shape == (48, 48, 4) and run["has_input"] is True
    assert len(run["rig"]["views"]) == 16 and run["rig"]["model"] == "orthographic"
    np.testing.assert_allclose(run["rig"]["views"][3]["c2w"], (views.cameras.c2w[3] @ lift).flatten(), atol=1e-6)
    assert run["rig"]["views"][0]["intrinsics"] == [16, 16, 12, 12]
    assert page.all("a") == [{"class": "main button", "id": "download", "download": "my mesh.glb", "hidden": None}]
    assert "Download my mesh.glb 2.0 MB" in page.text
    for words in ("Chair", "A warning.", "A note.", "A limit.", "22.5°", "337.5°", "colour", "120.0 s", '"seed": 7'):
        assert words in page.text
    for words in ("nova3d 0.1.0", "2025-01-01 10:20", "12,345", "13%", "12.6%", "Mean conflict 0.250.", "Wireframe"):
        assert words in page.text
    assert "Refined poses" in page.text and "up to 0.0100" in page.text
    assert "64.7" not in page.text and page.text.count("yes") == 2
    tags = [tag for tag, _ in page.tags]
    assert tags.count("polyline") == 1 and tags.count("rect") == 16 and tags.count("details") == 2


def test_nothing_is_fetched_from_anywhere(write, mesh):
    text = write(mesh_path=mesh).read_text()
    page = Page(text)
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources and all(value.startswith("data:") for value in sources)
    # Names of XML spaces, which nobody fetches.
    assert set(re.findall(r"https?://[^\s\"'`)<]+", text)) <= {"http://www.w3.org/1999/xhtml"}
    assert "@import" not in text and "url(" not in re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]


def test_the_policy_lets_only_the_scripts_written_here_run(write, mesh):
    for changes, count in (({"mesh_path": mesh}, 3), ({}, 1)):
        text = write(**changes).read_text()
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts]
        assert len(scripts) == count
        (policy,) = [entry["content"] for entry in Page(text).all("meta") if "http-equiv" in entry]
        assert re.findall(r"'sha256-([^']+)'", policy) == hashes
        assert "default-src 'none'" in policy and "unsafe-eval" not in policy
        assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_a_mesh_too_large_for_a_page_is_linked(write, mesh, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_GLB", 2_000_000)
    text = write(mesh_path=mesh).read_text()
    page = Page(text)
    assert page.all("a") == [{"class": "main button", "href": "my%20mesh.glb", "download": None}]
    assert 'id="glb"' not in text and not page.all("canvas")


def test_the_vendored_script_is_the_one_that_its_readme_names():
    folder = Path(page_module.__file__).parent / "vendor"
    content = (folder / "three.min.js").read_bytes()
    readme = (folder / "README.md").read_text()
    assert f"`{hashlib.sha256(content).hexdigest()}` | {len(content):,} |" in readme
    assert "MIT License" in (folder / "LICENSE-three.txt").read_text() and b"SPDX-License-Identifier: MIT" in content
    assert len(content) < 1_200_000 and b"</script" not in content


def test_motions_of_poses_are_measured(views):
    moved = views.cameras.c2w.clone()
    angle = torch.tensor(0.01).deg2rad()
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    turn[:3, 3] = torch.tensor([0.03, 0.0, 0.04])
    moved[5] = turn @ moved[5]
    degrees, lengths = page_module._motions(views.cameras, replace(views.cameras, c2w=moved))
    assert degrees[5] == pytest.approx(0.01, rel=0.02) and lengths[5] == pytest.approx(0.05, rel=1e-5)
    assert np.delete(degrees, 5).max() < 1e-4 and np.delete(lengths, 5).max() < 1e-6


def test_what_is_absent_has_no_place_on_the_page(write):
    page = Page(write().read_text())
    assert not {"canvas", "a", "svg", "table", "details"} & {tag for tag, _ in page.tags}
    assert not any(words in page.text for words in ("Input", "Conflict", "Refined", "limits", "Time", "input ·"))


def test_text_is_escaped(write):
    evil = "<script>alert(1)</script>"
    text = write(
        title=evil,
        notes=[evil],
        warnings=[evil],
        model=[evil],
        record={"commit": evil},
        timings={evil: 1.0},
        history=[{evil: 1.0}, {evil: 2.0}],
    ).read_text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") >= 7
    assert "<" not in script(text, "run")


@pytest.mark.parametrize(("commit", "line"), [("abc", "nova3d 0.1.0 · abc"), ("unknown", "nova3d 0.1.0")])
def test_an_unknown_commit_is_left_out_of_the_head(write, commit, line):
    """An installed package knows none."""
    text = write(record={"nova3d": "0.1.0", "commit": commit}).read_text()
    assert re.search(r'</h1><p class="soft">([^<]*)</p>', text)[1] == line


def test_labels_say_azimuth_from_the_input_view_and_elevation_where_there_is_one(write, views):
    assert "0° · input" in Page(write(input_image=np.ones((9, 9, 3))).read_text()).text
    assert "input" not in Page(write().read_text()).text.split("Azimuth from")[0]
    tilted = ViewSet(views.rgb, views.normals, views.mask, orbit(16, 30.0, 24))
    page = Page(write(views=tilted).read_text())
    labels = [button["data-label"] for button in page.all("button") if "data-label" in button]
    assert labels[:2] == ["0°, up 30°", "22.5°, up 30°"]
    assert "View 0 0°, up 30°" in page.text and "22.5°, up" not in page.text  # the strip has azimuths only


def test_large_pictures_are_made_smaller(write):
    page = Page(write(input_image=np.zeros((900, 1800, 3), np.uint8)).read_text())
    (given,) = [image for image in page.all("img") if image["alt"] == "the input picture, cut out"]
    assert decode(given["src"]).shape == (256, 512, 3)


def test_the_mask_of_the_input_is_shown(write):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 255
    page = Page(write(input_image=np.ones((40, 60, 4)), input_mask=mask).read_text())
    (shown,) = [image for image in page.all("img") if image["alt"] == "its mask"]
    assert np.abs(decode(shown["src"])[..., 0].astype(int) - mask).max() < 40  # stored as WebP
    assert "its mask" not in write(input_image=np.ones((40, 60, 4))).read_text()


def test_bad_input_is_one_line(write, tmp_path):
    with pytest.raises(InputError, match=r"mesh '.*none.glb' does not exist"):
        write(mesh_path=tmp_path / "none.glb")
    with pytest.raises(InputError, match=r"picture must be .*got \[3, 24, 24\]"):
        write(input_image=np.zeros((3, 24, 24)))
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the report"):
        write()


def test_pictures_keep_their_values():
    grey = np.full((16, 16, 3), 0.25)
    assert np.abs(decode(data_uri(grey)).astype(int) - 64).max() <= 2
    assert np.abs(decode(data_uri((grey * 255).astype(np.uint8))).astype(int) - 63).max() <= 2
    assert decode(data_uri(np.ones((16, 16), np.float32))).min() >= 253


def test_normals_are_cut_out_by_the_mask():
    shown = normal_colours(np.array([[[0.0, 0, 1], [0, 0, 0]]]), np.array([[1.0, 0.0]]))
    assert np.allclose(shown, [[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.0]]])


def test_conflict_is_red_on_the_view_s_grey():
    picture = np.array([[[0.9, 0.0, 0.0, 1.0], [0.0, 0.9, 0.0, 1.0], [0.2, 0.2, 0.2, 0.0]]], np.float32)
    shown = conflict_colours(np.array([[0.0, 1.0, 0.0]]), picture)
    assert np.ptp(shown[0, 0, :3]) < 1e-6 and shown[0, 0, 0] == pytest.approx(0.6)
    assert shown[0, 1, 0] > 0.8 and shown[0, 1, 1:3].max() < 0.15
    assert shown[0, :, 3].tolist() == [1, 1, 0]


def test_views_without_normals_show_only_their_colours(write, views):
    bare = ViewSet(views.rgb, views.normals * 0, views.mask, views.cameras)
    page = Page(write(views=bare, cameras=views.cameras).read_text())
    assert {image["data-kind"] for image in page.all("img") if "data-kind" in image} == {"rgb"}
    assert "Normals" not in page.text and "Refined" not in page.text  # nor poses that nobody refined


def points(svg: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]


def test_a_falling_loss_is_drawn_falling_over_its_steps():
    svg = loss_charts([{"step": 0, "loss": 4.0}, {"step": 10, "loss": 3.0}, {"step": 40, "loss": 2.0}])
    assert points(svg) == [(0.0, 4.0), (80.0, 60.0), (320.0, 116.0)]
    assert ", log" not in svg


def test_a_loss_over_decades_is_drawn_on_a_log_axis():
    svg = loss_charts([{"loss": 100.0}, {"loss": 10.0}, {"loss": 1.0}])
    assert points(svg) == [(0.0, 4.0), (160.0, 60.0), (320.0, 116.0)]
    assert ", log" in svg


def test_one_chart_per_loss_skipping_gaps_words_and_values_that_are_not_finite():
    rows = [{"a": 1.0, "b": 1.0, "stage": "coarse"}, {"a": float("nan"), "b": 2.0}, {"a": 3.0}, {"a": 2, "c": 1.0}]
    svg = loss_charts(rows)
    assert re.findall(r"<b>(\w+)</b>", svg) == ["a", "b"]
    assert len(points(svg)) == 3


def test_a_long_history_is_thinned_but_keeps_its_ends():
    svg = loss_charts([{"step": i, "loss": float(i)} for i in range(10_000)])
    drawn = points(svg)
    assert len(drawn) <= MAX_POINTS
    assert drawn[0] == (0.0, 116.0) and drawn[-1] == (320.0, 4.0)
    assert "loss: from 0 at step 0 to 1e+04 at step 9999" in svg  # not the means of the first and last bins


def test_the_room_does_not_import_torch():
    code = "import sys, nova3d.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bars_grow_with_their_values():
    svg = bar_chart(["a", "<b>"], [1.0, 4.0], "°")
    assert [float(h) for h in re.findall(r'height="([\d.]+)"', svg)] == [30.0, 120.0]
    assert "<title>&lt;b&gt;: 4°</title>" in svg
