from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d.fusion.levelling import SurfacePoints, colour_transform, extend, level


def strip(cells: int, length: float = 1.0) -> trimesh.Trimesh:
    """A strip of triangles along x from 0 to `length`."""
    x = np.linspace(0, length, cells + 1)
    points = np.concatenate([np.stack([x, np.full_like(x, y), 0 * x], axis=1) for y in (0.0, length / cells)])
    low, high = np.arange(cells), np.arange(cells) + cells + 1
    faces = np.concatenate([np.stack([low, low + 1, high + 1], axis=1), np.stack([low, high + 1, high], axis=1)])
    return trimesh.Trimesh(points, faces, process=False)


def fitted(mesh: trimesh.Trimesh, value, known, count: int = 4000) -> torch.Tensor:
    """`extend` from functions of points [m,3] that give values [m,c], and whether they are known [m]."""
    at = SurfacePoints.spread(mesh, count)
    return extend(mesh, at, value(at.points), known(at.points).float())


def test_points_are_spread_over_the_surface_and_interpolate_linear_functions():
    mesh = strip(7)
    at = SurfacePoints.spread(mesh, 500)
    torch.testing.assert_close(at.interpolate(torch.from_numpy(np.array(mesh.vertices)).float()), at.points)
    assert bool((at.normals == torch.tensor([0.0, 0, 1])).all())
    assert float(at.points[:, 0].mean()) == pytest.approx(0.5, abs=0.05)


def test_an_offset_is_linear_between_two_borders():
    mesh = strip(40)
    found = fitted(
        mesh, lambda p: torch.stack([p[:, 0], 3 * p[:, 0], 0 * p[:, 0]], dim=1), lambda p: (p[:, 0] - 0.5).abs() > 0.25
    )
    x = torch.from_numpy(np.array(mesh.vertices[:, 0])).float()
    inside = (x - 0.5).abs() < 0.45  # at the very ends nothing pulls from beyond
    torch.testing.assert_close(found[inside, 0], x[inside], atol=0.01, rtol=0)
    torch.testing.assert_close(found[:, 1], 3 * found[:, 0], atol=1e-4, rtol=0)


def test_a_part_where_nothing_is_known_takes_the_mean():
    mesh: Any = trimesh.util.concatenate([strip(10), strip(10).apply_translation([0, 1, 0])])
    found = fitted(mesh, lambda p: torch.full((len(p), 1), 0.25), lambda p: p[:, 1] < 0.5)
    torch.testing.assert_close(found, torch.full_like(found, 0.25), atol=1e-4, rtol=0)


def test_smoothing_has_one_width_whatever_the_mesh_s_density():
    left = []
    for cells in (60, 240):
        steps = fitted(strip(cells), lambda p: (p[:, :1] > 0.5).float(), lambda p: p[:, 0] > -1, 40_000)
        x = np.linspace(0, 1, cells + 1)
        left.append(float(np.interp(0.53, x, steps[: cells + 1, 0])))
    # A step's smoothed edge, one smoothing width from it: 1 - exp(-1) / 2.
    assert left == pytest.approx([1 - np.exp(-1) / 2] * 2, abs=0.03)


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_a_transform_is_found_where_there_is_one(gain):
    colours = torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    transform = colour_transform(colours, colours * gain + 0.02, torch.ones(500))
    torch.testing.assert_close(transform.apply(colours), colours * gain + 0.02, atol=0.01, rtol=0)
    corner = torch.tensor([[3.0, 3.0, 3.0]])  # far from all: what is added there is no more than at the data's edge
    added = float((transform.apply(corner) - corner).abs().max())
    assert added < abs(gain - 1) * (0.5 + 4 * 3 * 0.3) + 0.02


def test_colours_that_have_nothing_in_common_with_the_target_are_left_alone():
    generator = torch.Generator().manual_seed(2)
    grey = torch.full((500, 3), 0.5) + 0.01 * torch.randn(500, 3, generator=generator)
    target = torch.full((500, 3), 0.2) + 0.1 * torch.randn(500, 3, generator=generator)
    transform = colour_transform(grey, target, torch.ones(500))
    torch.testing.assert_close(transform.apply(grey), grey, atol=0.02, rtol=0)


def test_levelled_colours_meet_their_target_where_it_is_known():
    mesh = trimesh.creation.icosphere(4, 0.5)
    at = SurfacePoints.spread(mesh, 10_000)
    target = 0.5 + 0.3 * at.points
    colours = target * 0.8
    weight = (at.points[:, 2] / 0.5).clamp_min(0)
    found = level(mesh, at, colours, target, weight)
    levelled = found.apply(colours, at.interpolate(found.offset))
    assert float((levelled - target).abs()[weight > 0].max()) < 0.01
    assert float((levelled - target).abs().max()) < 0.04  # of the far side, too: at the pole z is 4 deviations away
    nothing = level(mesh, at, colours, target, torch.zeros_like(weight))
    torch.testing.assert_close(nothing.apply(colours, at.interpolate(nothing.offset)), colours)


@pytest.mark.parametrize(
    ("near", "target", "far", "expected"),
    [
        ((0.6, 0.6, 0.6), (0.05, 0.05, 0.05), (0.5, 0.6, 0.7), (0.03, 0.05, 0.07)),  # a black lamp that was made grey
        ((0.5, 0.1, 0.1), (0.8, 0.15, 0.15), (0.1, 0.1, 0.6), (0.2, 0.15, 0.77)),  # its back keeps its hue
        ((0.3, 0.3, 0.3), (0.9, 0.9, 0.9), (0.0, 0.3, 0.3), (0.18, 0.9, 0.9)),
    ],
)
def test_colours_of_the_hidden_side_change_by_the_factor_of_the_seen_side(near, target, far, expected):
    mesh = trimesh.creation.icosphere(4, 0.5)
    at = SurfacePoints.spread(mesh, 10_000)
    front = at.points[:, 2:] > 0
    noise = 0.01 * torch.randn(len(front), 3, generator=torch.Generator().manual_seed(3))
    colours = (torch.where(front, torch.tensor(near), torch.tensor(far)) + noise).clamp(0, 1)
    found = level(mesh, at, colours, torch.tensor(target).expand(len(front), 3), front[:, 0].float())
    behind = at.points[:, 2] < -0.3
    levelled = found.apply(colours, at.interpolate(found.offset))[behind].median(dim=0).values
    torch.testing.assert_close(levelled, torch.tensor(expected), atol=0.05, rtol=0)
