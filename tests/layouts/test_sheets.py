"""Methods that write all views into one picture; poses are written out here as their programs have them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.views import ViewSet

from .foreign import save

Truth = Callable[..., ViewSet]
Compare = Callable[..., float]


def z_up_azimuth(angle_deg: float) -> float:
    """Our azimuth of a camera at (cos, sin, 0) of a +Z up world whose front camera stands at -Y, as MV-Adapter's."""
    x, y = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    right, front = x, -y  # the front camera looks along +Y with +X to its right
    return math.degrees(math.atan2(right, front)) % 360


def test_mv_adapter(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    given = [0, 45, 90, 180, 270, 315]
    azimuths = [z_up_azimuth(value - 90) for value in given]
    views = truth([(a, 0.0) for a in azimuths], 48, 1.8, 48 / 1.1, "orthographic")
    grey = views.rgb - 0.5 * (1 - views.mask[..., None])
    save(tmp_path / "llama.png", torch.cat(list(grey), dim=1))
    save(tmp_path / "llama_reference.png", grey[0])
    loaded = layouts.load(tmp_path)
    assert loaded.layout == "mv_adapter" and not loaded.views.has_normals
    torch.testing.assert_close(loaded.views.cameras.intrinsics, views.cameras.intrinsics)
    torch.testing.assert_close(loaded.views.cameras.c2w[:, :3, :3], views.cameras.c2w[:, :3, :3], atol=1e-5, rtol=0)
    assert hull_iou(loaded.views, views, True) > 0.9


def test_ouroboros3d(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    # Of hyper/c2w.npy, which has OpenCV's axes and +Y up: where each camera stands.
    places = [(0, 1.7417), (1.2316, 1.2316), (1.7417, 0), (1.2316, -1.2316), (0, -1.7417), (-1.2316, -1.2316)]
    places += [(-1.7417, 0), (-0.6665, 1.6091)]
    azimuths = [math.degrees(math.atan2(x, z)) for x, z in places]
    focal = 1.3889 * 48
    views = truth([(a, 0.0) for a in azimuths], 48, 1.7417, focal)
    sheet = torch.zeros(2 * 50 + 2, 4 * 50 + 2, 3)  # torchvision's grid: rules of 2 black pixels
    for k in range(8):
        top, left = 2 + k // 4 * 50, 2 + k % 4 * 50
        sheet[top : top + 48, left : left + 48] = views.rgb[k]
    save(tmp_path / "llama.png", sheet)
    save(tmp_path / "llama_input.png", views.rgb[0])
    (tmp_path / "llama.mp4").write_bytes(b"not read")
    loaded = layouts.load(tmp_path)
    assert loaded.layout == "ouroboros3d"
    assert np.abs(loaded.views.cameras.c2w - views.cameras.c2w).max() < 2e-3
    torch.testing.assert_close(loaded.views.cameras.intrinsics, views.cameras.intrinsics, atol=0.02, rtol=0)
    assert (loaded.views.rgb - views.rgb).abs().mean() < 0.01
    assert hull_iou(loaded.views, views, True) > 0.9


def test_kiss3dgen(tmp_path: Path, truth: Truth) -> None:
    focal = 24 / math.tan(math.radians(15))
    views = truth([(a, 5.0) for a in (0, 90, 180, 270)], 48, 4.5, focal)
    normals: Tensor = torch.rand(48, 4 * 48, 3, generator=torch.Generator().manual_seed(0))
    save(tmp_path / "llama_3d_bundle.png", torch.cat([torch.cat(list(views.rgb), dim=1), normals]))
    loaded = layouts.load(tmp_path)
    assert loaded.layout == "kiss3dgen" and not loaded.views.has_normals
    torch.testing.assert_close(loaded.views.cameras.c2w, views.cameras.c2w, atol=1e-4, rtol=0)
    torch.testing.assert_close(loaded.views.cameras.intrinsics, views.cameras.intrinsics, atol=1e-2, rtol=0)
    assert (loaded.views.rgb - views.rgb).abs().mean() < 0.01


@pytest.mark.parametrize("name", ["mv_adapter", "ouroboros3d", "kiss3dgen"])
def test_a_folder_without_the_sheet_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.png", torch.ones(8, 8, 3))
    with pytest.raises(InputError, match="has no picture of"):
        layouts.read(tmp_path, name)
