from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d.fusion.levelling import colour_transform, extend, level


def strip(cells: int, length: float = 1.0) -> trimesh.Trimesh:
    """A strip of triangles along x from 0 to `length`."""
    x = np.linspace(0, length, cells + 1)
    points = np.concatenate([np.stack([x, np.full_like(x, y), 0 * x], axis=1) for y in (0.0, length / cells)])
    low, high = np.arange(cells), np.arange(cells) + cells + 1
    faces = np.concatenate([np.stack([low, low + 1, high + 1], axis=1), np.stack([low, high + 1, high], axis=1)])
    return trimesh.Trimesh(points, faces, process=False)


def test_an_offset_is_linear_between_two_borders():
    mesh = strip(40)
    x = torch.from_numpy(np.array(mesh.vertices[:, 0])).float()
    weight = ((x < 1e-6) | (x > 1 - 1e-6)).float() * 1000
    found = extend(mesh, torch.stack([x, 3 * x, 0 * x], dim=1), weight)
    torch.testing.assert_close(found[:, 0], x, atol=0.05, rtol=0)  # the two ends alone are known, and averaged a little
    torch.testing.assert_close(found[:, 1], 3 * found[:, 0], atol=1e-4, rtol=0)


def test_a_part_where_nothing_is_known_takes_the_mean():
    known, other = strip(10), strip(10).apply_translation([0, 1, 0])
    mesh: Any = trimesh.util.concatenate([known, other])
    values = torch.zeros(len(mesh.vertices), 1)
    weight = torch.zeros(len(mesh.vertices))
    weight[: len(known.vertices)] = 1.0
    values[: len(known.vertices)] = 0.25
    torch.testing.assert_close(extend(mesh, values, weight), torch.full_like(values, 0.25), atol=1e-4, rtol=0)


def test_smoothing_averages_more_values_where_the_mesh_is_denser():
    noise = torch.Generator().manual_seed(0)
    left = []
    for cells in (50, 200):
        mesh = strip(cells)
        values = torch.randn(len(mesh.vertices), 1, generator=noise)
        left.append(float(extend(mesh, values, torch.ones(len(mesh.vertices))).std()))
    assert left[1] < 0.7 * left[0] < 0.5


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_a_transform_is_found_where_there_is_one(gain):
    colours = torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    matrix, shift = colour_transform(colours, colours * gain + 0.02, torch.ones(500))
    torch.testing.assert_close(matrix, gain * torch.eye(3), atol=5e-3, rtol=0)
    torch.testing.assert_close(shift, torch.full((3,), 0.02), atol=5e-3, rtol=0)


def test_a_transform_of_few_colours_is_a_shift():
    generator = torch.Generator().manual_seed(2)
    grey = torch.full((500, 3), 0.5) + 0.01 * torch.randn(500, 3, generator=generator)
    target = torch.full((500, 3), 0.2) + 0.1 * torch.randn(500, 3, generator=generator)
    matrix, shift = colour_transform(grey, target, torch.ones(500))
    assert float((matrix - torch.eye(3)).abs().max()) < 0.1
    torch.testing.assert_close(grey.mean(dim=0) @ matrix + shift, target.mean(dim=0), atol=1e-5, rtol=0)


def test_levelled_colours_meet_their_target_where_it_is_known():
    mesh = trimesh.creation.icosphere(4, 0.5)
    points = torch.from_numpy(np.array(mesh.vertices)).float()
    target = 0.5 + 0.3 * points
    colours = (target * 0.8).clamp(0, 1)
    weight = (points[:, 2] / 0.5).clamp_min(0)
    found = level(mesh, colours, target, weight)
    levelled = found.apply(colours, found.offset)
    assert float((levelled - target).abs()[weight > 0].max()) < 0.01
    assert float((levelled - target).abs().max()) < 0.02  # of the far side, too
