"""A real object seen by rigs whose poses are written out here by hand, and the hull that views carve."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nova3d.cameras import CameraModel
from nova3d.data import render_object
from nova3d.views import ViewSet

from .foreign import ASSETS, Pose, rig

BURGER = ASSETS / "objects/pm_burger.glb"  # wide and flat
LLAMA = ASSETS / "objects/qua_farm_animals_animated_Llama.glb"  # long, with a head: no turn or mirror image is itself


@lru_cache
def _render(poses: tuple[Pose, ...], size: int, radius: float, focal: float, model: CameraModel, flat: bool) -> ViewSet:
    return render_object(BURGER if flat else LLAMA, rig(poses, size, radius, focal, model), supersample=2)


@pytest.fixture
def truth() -> Callable[..., ViewSet]:
    """(poses, size, radius, focal, model, flat) -> true views of a llama, or of a burger where `flat`."""

    def make(
        poses: Sequence[Pose],
        size: int,
        radius: float,
        focal: float,
        model: CameraModel = "perspective",
        flat: bool = False,
    ) -> ViewSet:
        return _render(tuple(poses), size, radius, focal, model, flat)

    return make


def hull(views: ViewSet, level: float, half: float = 0.6, nodes: int = 40) -> Tensor:
    """bool [nodes^3]: what no view sees less than `level` coverage at."""
    axis = torch.linspace(-half, half, nodes)
    points = torch.cartesian_prod(axis, axis, axis)
    inside = torch.ones(len(points), dtype=torch.bool)
    pixels, _ = views.cameras.project(points)
    for view in range(len(views)):
        x, y = pixels[view].floor().long().unbind(-1)
        seen = (x >= 0) & (x < views.cameras.width) & (y >= 0) & (y < views.cameras.height)
        value = views.mask[view][y.clamp(0, views.cameras.height - 1), x.clamp(0, views.cameras.width - 1)]
        inside &= (value > level) | ~seen
    return inside


@pytest.fixture
def hull_iou() -> Callable[..., float]:
    def iou(got: ViewSet, truth: ViewSet, keyed: bool = False) -> float:
        # Keying takes every pixel that is not quite background; coverage in quarters is never 0.4 or 0.1.
        ours, theirs = hull(got, 0.4), hull(truth, 0.1 if keyed else 0.4)
        return float((ours & theirs).sum() / (ours | theirs).sum())

    return iou


@pytest.fixture
def share_in_hull() -> Callable[[ViewSet, trimesh.Trimesh], float]:
    """Share of a mesh's surface samples that fall on every view's mask, to a pixel."""

    def share(views: ViewSet, mesh: trimesh.Trimesh) -> float:
        samples, _ = trimesh.sample.sample_surface(mesh, 2000, seed=0)
        pixels, _ = views.cameras.project(torch.from_numpy(np.asarray(samples)).float())
        wide = torch.nn.functional.max_pool2d((views.mask > 0.3).float()[:, None], 3, 1, 1)[:, 0]
        x, y = pixels[..., 0].floor().long(), pixels[..., 1].floor().long()
        x, y = x.clamp(0, views.cameras.width - 1), y.clamp(0, views.cameras.height - 1)
        hit = torch.stack([wide[v, y[v], x[v]] > 0 for v in range(len(views))])
        return float(hit.all(dim=0).float().mean())

    return share
