"""Poses, rigs and files written by hand, without the code under test."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nova3d.cameras import CameraModel, Cameras
from nova3d.views import ViewSet

ASSETS = Path(__file__).parents[2] / "assets"
Pose = tuple[float, float]  # azimuth, elevation in degrees


def pose(azimuth_deg: float, elevation_deg: float, radius: float) -> np.ndarray:
    """c2w [4,4]: the camera at that azimuth (from +Z towards +X), upright, facing the origin."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    back = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, back * radius], axis=1)
    return matrix


def rig(poses: Sequence[Pose], size: int, radius: float, focal: float, model: CameraModel) -> Cameras:
    """focal: pixels (perspective) or pixels per unit (orthographic)."""
    c2w = torch.from_numpy(np.stack([pose(a, e, radius) for a, e in poses])).float()
    return Cameras(c2w, torch.tensor([[focal, focal, size / 2, size / 2]] * len(poses)), size, size, model)


def uint8(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)


def save(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(uint8(values)).save(path)


def rgba(views: ViewSet, view: int) -> Tensor:
    return torch.cat([views.rgb[view], views.mask[view][..., None]], dim=-1)


def coloured(vectors: Tensor) -> Tensor:
    """(n + 1) / 2 as these systems save normals; background white."""
    known = vectors.norm(dim=-1, keepdim=True) > 0.5
    return torch.where(known, (vectors + 1) / 2, torch.ones_like(vectors))


def same_cameras(got: ViewSet, truth: ViewSet) -> None:
    """The same pictures of the same points; orthographic cameras may stand anywhere along their axes."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    torch.testing.assert_close(
        got.cameras.project(corners)[0], truth.cameras.project(corners)[0], atol=2e-3, rtol=0, check_stride=False
    )
    torch.testing.assert_close(got.cameras.c2w[:, :3, :3], truth.cameras.c2w[:, :3, :3], atol=1e-5, rtol=0)
