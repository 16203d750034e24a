"""Baselines and figures of shapes from small pictures, for tests that ask what is scored and not how well."""

from collections.abc import Callable
from functools import partial

import pytest

from nova3d import cameras
from nova3d.evaluation import baselines, shape_figures
from nova3d.utils.workers import Work


def coarsen(patch: pytest.MonkeyPatch) -> None:
    """Measure shapes at 32 pixels and 16 voxels."""
    patch.setattr(baselines, "preset", partial(cameras.preset, size=32))
    patch.setattr(shape_figures, "INPUT_SIZE", 32)
    patch.setattr(shape_figures, "_VOXELS", 16)


def coarse_work(work: Work, part: int, parts: int, device: str, tick: Callable[[], None]) -> None:
    """`work` of a process of `in_parts`, coarsened there."""
    with pytest.MonkeyPatch.context() as patch:
        coarsen(patch)
        work(part, parts, device, tick)
