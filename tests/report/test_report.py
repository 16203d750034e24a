import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.report import write_report
from nova3d.report.pictures import data_uri, normals_on_white
from nova3d.report.plots import MAX_POINTS, loss_charts
from nova3d.views import ViewSet

VOID = {"meta", "img", "input", "polyline"}


class Page(HTMLParser):
    """Tags in order with their attributes; fails on a tag that does not close where it should."""

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
        image, mask = np.full((24, 24, 3), 0.5), np.ones((24, 24))
        arguments = {"title": "Chair", "input_image": image, "input_mask": mask, "views": views}
        return write_report(tmp_path / "run" / "report.html", **(arguments | changes))

    return _write


def test_a_full_report_holds_everything_in_one_file(write, tmp_path):
    mesh = tmp_path / "run" / "my mesh.glb"
    mesh.parent.mkdir()
    mesh.write_bytes(b"x" * 2_000_000)
    path = write(
        mesh_path=mesh,
        turntable=torch.rand(5, 24, 24, 3),
        history=[{"step": 10 * i, "colour": 1 / (i + 1)} for i in range(9)],
        timings={"sampling": 30.0, "fusion": 90.0},
        record={"created": "2025-01-01", "nova3d": "0.1.0", "seed": 7},
        notes=["A note."],
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("img")) == 2 + 2 * 16
    assert all(decode(image["src"]).shape == (24, 24, 3) for image in page.all("img"))
    assert len(re.findall(r"data:image/webp", text)) == 2 + 2 * 16 + 5
    assert page.all("a") == [{"class": "download", "href": "my%20mesh.glb", "download": None}]
    assert "Download my mesh.glb (2.0 MB)" in page.text
    for words in ("Chair", "A note.", "22.5°", "337.5°", "colour", "120.0 s", '"seed": 7', "nova3d 0.1.0"):
        assert words in page.text
    assert [tag for tag, _ in page.tags].count("polyline") == 1


def test_nothing_is_fetched_from_anywhere(write):
    page = Page(write(turntable=np.zeros((3, 24, 24, 3))).read_text())
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources and all(value.startswith("data:") for value in sources)
    assert "http" not in page.text and "@import" not in page.text and "url(" not in page.text


def test_what_is_absent_has_no_place_on_the_page(write):
    page = Page(write().read_text())
    assert not {"canvas", "a", "svg", "table", "details"} & {tag for tag, _ in page.tags}
    assert "Input and mesh" not in page.text


def test_text_is_escaped(write):
    evil = "<script>alert(1)</script>"
    text = write(
        title=evil,
        notes=[evil],
        record={"commit": evil},
        timings={evil: 1.0},
        history=[{evil: 1.0}, {evil: 2.0}],
    ).read_text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") >= 5


def test_labels_say_azimuth_from_the_input_view_and_elevation_where_there_is_one(write, views):
    assert "0° input" in Page(write().read_text()).text
    tilted = ViewSet(views.rgb, views.normals, views.mask, orbit(16, 30.0, 24))
    assert "22.5°, up 30°" in Page(write(views=tilted).read_text()).text


def test_large_pictures_are_made_smaller(write):
    page = Page(write(input_image=np.zeros((900, 1800, 3), np.uint8)).read_text())
    assert decode(page.all("img")[0]["src"]).shape == (256, 512, 3)


def test_bad_input_is_one_line(write, tmp_path):
    with pytest.raises(InputError, match=r"mesh '.*none.glb' does not exist"):
        write(mesh_path=tmp_path / "none.glb")
    with pytest.raises(InputError, match=r"turntable must be \[n,h,w,3\].*\[24, 24, 3\]"):
        write(turntable=np.zeros((24, 24, 3)))
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


def test_normals_are_shown_on_white():
    normals = np.array([[[0.0, 0, 1], [0, 0, 0]]])
    shown = normals_on_white(normals, np.array([[1.0, 0.0]]))
    assert np.allclose(shown, [[[0.5, 0.5, 1.0], [1, 1, 1]]])


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


def test_the_room_does_not_import_torch():
    code = "import sys, nova3d.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
