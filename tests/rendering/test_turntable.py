"""The turntable and the preview of a mesh file."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nova3d import images
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.rendering import render_object
from nova3d.rendering.turntable import PREVIEW_SIZE, write_preview, write_turntable
from tests.helpers.meshes import write_lopsided


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    return write_lopsided(tmp_path / "mesh.glb")


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "av" else find(name, *rest))


def test_the_preview_shows_the_mesh_from_front_right(mesh: Path, tmp_path: Path) -> None:
    shown = write_preview(mesh, tmp_path / "preview.png")
    camera = orbit(1, 10.0, PREVIEW_SIZE, start_azimuth_deg=30.0)
    again = render_object(mesh, camera, supersample=2, light="flat", normalise=False).straight_alpha(0)
    assert torch.equal(shown, again) and 0.02 < float((shown[..., 3] > 0.5).float().mean()) < 0.5
    assert (images.read_image(tmp_path / "preview.png") - shown).abs().max() <= 0.5 / 255 + 1e-6
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_preview(mesh, tmp_path / "file" / "preview.png")


def test_without_pyav_the_turntable_is_an_animation_and_the_log_says_so(
    mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_pyav(monkeypatch)
    (tmp_path / "turntable.mp4").write_bytes(b"of an earlier run")
    with caplog.at_level(logging.INFO):
        path = write_turntable(mesh, tmp_path, 6, 32)
    assert path.name == "turntable.webp" and not (tmp_path / "turntable.mp4").exists()
    assert [record.message for record in caplog.records if "PyAV is not installed" in record.message]
    with Image.open(path) as opened:
        frames = [torch.from_numpy(np.asarray(f.convert("RGB")) / 255) for f in ImageSequence.Iterator(opened)]
        assert opened.info["duration"] == 667 and opened.info["loop"] == 0
    true = render_object(mesh, orbit(6, 10.0, 32), supersample=2, light="flat", normalise=False).rgb
    assert len(frames) == 6
    assert all((frame - true[i]).abs().mean() < 0.04 for i, frame in enumerate(frames))


@pytest.mark.extras
def test_with_pyav_the_turntable_is_a_film_of_the_whole_turn(mesh: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "turntable.webp").write_bytes(b"of an earlier run")
    path = write_turntable(mesh, tmp_path, 8, 65)
    assert path.name == "turntable.mp4" and not (tmp_path / "turntable.webp").exists()
    frames = images.read_frames(path)
    true = render_object(mesh, orbit(8, 10.0, 65), supersample=2, light="flat", normalise=False).rgb
    assert len(frames) == 8 and frames[0].shape == (64, 64, 3)  # H.264 wants even sides
    assert all((frame - true[i, :64, :64]).abs().mean() < 0.04 for i, frame in enumerate(frames))
    with av.open(str(path)) as container:
        assert float(container.duration) / av.time_base == pytest.approx(4.0, abs=0.1)
        assert container.streams.video[0].codec_context.name == "h264"
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads
