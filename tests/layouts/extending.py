"""The layout of docs/how-to/extending.md, in a copy of the package that has it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.views import ViewSet

from .foreign import rgba, same_cameras, save

Truth = Callable[..., ViewSet]
Compare = Callable[..., float]


def test_the_documented_layout(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    azimuths = [0.0, 30.0, 90.0, 200.0]
    views = truth([(a, 0.0) for a in azimuths], 48, 1.5, 48 / 1.2, "orthographic")
    for i, azimuth in enumerate(azimuths):
        save(tmp_path / f"angle_{azimuth:g}.png", rgba(views, i))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="none of the known layouts"):
        patch.delitem(layouts.LAYOUTS, "turntable")
        layouts.read(tmp_path)
    loaded = layouts.load(tmp_path)
    assert loaded.layout == "turntable"
    assert loaded.placement.is_identity
    same_cameras(loaded.views, views)
    assert (loaded.views.mask - views.mask).abs().max() < 0.5 / 255 + 1e-6
    assert hull_iou(loaded.views, views) > 0.98
    small = layouts.read(tmp_path, "turntable", size=24, assume=layouts.Assume(span=1.5))
    assert small.cameras.intrinsics[0].tolist() == [16.0, 16.0, 12.0, 12.0]
