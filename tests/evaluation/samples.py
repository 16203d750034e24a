"""Objects and tables that several test files of the evaluation use."""

import csv
import io

import torch

from nova3d.cameras import orbit
from nova3d.evaluation import Table
from nova3d.views import ViewSet

BALL_RADIUS = 0.4
# Differences between two methods, object by object: one sign throughout, and either.
CLEAR = [0.5, 0.62, 0.41, 0.7, 0.55, 0.48, 0.66, 0.59]
NOISE = [0.5, -0.62, 0.41, -0.7, 0.55, -0.48, 0.66, -0.59]


def ball(size: int = 32, num_views: int = 4, elevation_deg: float = 0.0) -> ViewSet:
    """A ball seen by an orthographic orbit, shaded by its world normal: analytic, and different from every side."""
    cameras = orbit(num_views, elevation_deg, size)
    origins, directions = cameras.rays()
    along = (origins * directions).sum(-1, keepdim=True)
    closest = origins - along * directions
    inside = (closest.norm(dim=-1) < BALL_RADIUS).float()
    depth = (BALL_RADIUS**2 - closest.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    normals = (closest - depth * directions) / BALL_RADIUS * inside[..., None]
    rgb = torch.where(inside[..., None] > 0, 0.5 + 0.4 * normals, 1.0)
    return ViewSet(rgb, torch.nn.functional.normalize(normals, dim=-1), inside, cameras)


def table(**changes) -> Table:
    rows = {"a": {"psnr": 10.0, "chamfer": 0.01}, "b": {"psnr": 20.0, "chamfer": 0.03}}
    floors = {"all-white image": {"a": {"psnr": 5.0}, "b": {"psnr": 6.0}}}
    return Table(**{"protocol": "p", "protocol_hash": "abc", "rows": rows, "baselines": floors} | changes)


def seeded(**changes) -> Table:
    per_seed = {
        3: {"a": {"psnr": 10.0, "lpips_vgg": 0.3}, "b": {"psnr": 20.0, "lpips_vgg": 0.1}},
        7: {"a": {"psnr": 14.0, "lpips_vgg": 0.1}, "b": {"psnr": 18.0, "lpips_vgg": 0.3}},
    }
    return Table.from_seeds("p", "abc", per_seed, {}, **changes)


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def method(offsets: list[float], metric: str = "psnr", **changes) -> Table:
    """A table of one metric over objects o0, o1, ... that differ much more among each other than by `offsets`."""
    rows = {f"o{i}": {metric: 20.0 + 3 * i + offset} for i, offset in enumerate(offsets)}
    return table(rows=rows, baselines={}, **changes)
