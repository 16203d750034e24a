"""Pictures without a layout of their own: frames of a video, and anyone's with a camera preset."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.views import ViewSet

from .foreign import rgba, same_cameras, save, uint8

Truth = Callable[..., ViewSet]
Compare = Callable[..., float]
Angle = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.extras
def test_video(tmp_path: Path, truth: Truth) -> None:
    av = pytest.importorskip("av")
    views = truth([(20.0 * k, 0.0) for k in range(18)], 32, 2.0, 16 / math.tan(math.radians(30)))
    with av.open(str(tmp_path / "000000.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = 32
        for k in range(18):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(uint8(views.rgb[k]), format="rgb24")))
        container.mux(stream.encode())
    assert layouts.detect(tmp_path) == "v3d"
    got = layouts.read(tmp_path, "v3d")
    assert (got.rgb - views.rgb).abs().mean() < 0.05
    (tmp_path / "000000.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        layouts.read(tmp_path, "v3d")


def test_a_video_without_a_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "000000.mp4").write_bytes(b"")
    (tmp_path / "000000.jpg").write_bytes(b"")
    assert layouts.detect(tmp_path) == "sv3d"
    with pytest.raises(InputError, match=r"pip install 'nova3d\[video\]'"):
        layouts.read(tmp_path)


def test_frames_of_anyone_with_a_preset(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    views = truth([(45.0 * k, 0.0) for k in range(8)], 32, 1.5, 32 / 1.5, "orthographic")
    for k in range(8):
        save(tmp_path / f"view{k + 5}.png", rgba(views, k))  # 5 ... 12: numbers, not letters, give the order
    with pytest.raises(InputError, match="none of the known layouts"):
        layouts.detect(tmp_path)
    with pytest.raises(InputError, match="does not give its cameras"):
        layouts.read(tmp_path, "frames")
    with pytest.raises(InputError, match=r"has 16 views, .* has 8"):
        layouts.read(tmp_path, "frames", assume=layouts.Assume(cameras="ortho16"))
    got = layouts.read(tmp_path, "frames", assume=layouts.Assume(cameras="ortho8"))
    same_cameras(got, views)
    assert hull_iou(got, views) > 0.98


def test_only_pictures_with_a_number_for_a_name_are_frames(tmp_path: Path, truth: Truth) -> None:
    """Depth maps, hidden files of macOS and previews beside numbered pictures are passed over."""
    views = truth([(360 / 21 * k, 0.0) for k in range(21)], 32, 2.0, 16 / math.tan(math.radians(16.9)))
    for k in range(21):
        save(tmp_path / f"{k:06d}.png", views.rgb[k])
    plain = layouts.load(tmp_path)
    save(tmp_path / "000000-depth.png", views.rgb[3])
    save(tmp_path / "preview.png", views.rgb[4])
    (tmp_path / "._000000.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(64))
    got = layouts.load(tmp_path)
    assert got.layout == plain.layout == "sv3d" and (got.views.rgb == plain.views.rgb).all()


@pytest.mark.parametrize("stored", ["turned", "upright"])
def test_frames_are_turned_by_their_exif_orientation(tmp_path: Path, truth: Truth, stored: str) -> None:
    views = truth([(360 / 8 * k, 0.0) for k in range(8)], 32, 2.0, 40.0)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a clockwise quarter turn
    for k in range(8):
        pixels = uint8(views.rgb[k])
        if stored == "turned":
            Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / f"{k}.png", exif=exif)
        else:
            Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    got = layouts.read(tmp_path, "frames", assume=layouts.Assume(cameras="persp8"))
    assert (got.rgb - views.rgb).abs().mean() < 0.01


def test_pictures_without_transparency_can_stay_as_they_are(tmp_path: Path, truth: Truth) -> None:
    views = truth([(360 / 8 * k, 0.0) for k in range(8)], 32, 2.0, 40.0)
    grey = views.rgb * 0.5 + 0.25
    noise = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0))
    for k in range(8):
        save(tmp_path / f"{k}.png", grey[k] if k else noise)
    rig = layouts.Assume(cameras="persp8")
    with pytest.raises(InputError, match=r"0\.png"):
        layouts.read(tmp_path, "frames", assume=rig)
    got = layouts.read(tmp_path, "frames", assume=replace(rig, as_they_are=True))
    assert (got.rgb[1:] - grey[1:]).abs().max() <= 0.5 / 255 + 1e-6  # the grey background is still there
    assert (got.rgb[0] - noise).abs().max() <= 0.5 / 255 + 1e-6
    assert bool((got.mask[0] == 1).all())
    assert ((got.mask[1] > 0.5) == (views.mask[1] > 0.5)).float().mean() > 0.95  # keying takes the rim
