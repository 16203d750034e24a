import math

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit, preset
from nova3d.evaluation import volume_iou
from nova3d.evaluation.baselines import (
    COPY,
    input_colour,
    mesh_floors,
    shifted,
    silhouette_oracle,
    speck,
    view_floors,
    visual_hull,
)
from nova3d.evaluation.mesh_metrics import is_closed
from nova3d.views import ViewSet

CELLS = 40


def discs(radius: float, cameras, shift: float = 0.0) -> torch.Tensor:
    """[v,h,w] silhouettes of a ball of `radius` in orthographic cameras, moved to the right by `shift` world units."""
    origins, directions = cameras.rays()
    closest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    right = cameras.c2w[:, None, None, :3, 0]
    return ((closest - shift * right).norm(dim=-1) < radius).float()


def test_hull_of_all_views_of_a_ball_is_a_stack_of_discs_of_16_sides():
    cameras = preset("ortho16", 96)
    hull = visual_hull(discs(0.4, cameras), cameras, CELLS)
    # at height y the hull is the regular polygon around the ball's circle (8 strips), with area 16 tan(pi/16) r(y)^2
    expected = 16 * math.tan(math.pi / 16) * 4 / 3 * 0.4**3
    assert hull.volume == pytest.approx(expected, rel=0.02)
    assert np.abs(hull.bounds - [[-0.4, -0.4, -0.4], [0.4, 0.4, 0.4]]).max() < 0.02


def test_hull_of_one_view_is_its_silhouette_through_the_unit_cube():
    cameras = preset("ortho16", 96)[:1]
    hull = visual_hull(discs(0.3, cameras), cameras, CELLS)
    assert hull.volume == pytest.approx(math.pi * 0.3**2, rel=0.04)
    assert hull.extents[2] == pytest.approx(1.0, abs=2 / CELLS)


def test_hull_is_where_the_silhouette_is():
    cameras = preset("ortho16", 96)[:1]
    hull = visual_hull(discs(0.2, cameras, shift=0.15), cameras, CELLS)
    assert hull.bounds.mean(axis=0) == pytest.approx([0.15, 0, 0], abs=0.01)


def test_hull_of_nothing_is_none_and_perspective_views_carve_too():
    cameras = preset("syncdreamer16", 48)
    assert visual_hull(torch.zeros(16, 48, 48), cameras, 8) is None
    full = visual_hull(torch.ones(16, 48, 48), cameras, 8)
    assert full.volume > 0.9


def test_shifted_moves_to_the_right_and_fills_with_white():
    cameras = orbit(1, size=4)
    rgb = torch.arange(4.0).expand(1, 4, 4)[..., None].expand(-1, -1, -1, 3) / 8
    ones = torch.ones(1, 4, 4)
    moved = shifted(ViewSet(rgb, torch.nn.functional.normalize(torch.ones(1, 4, 4, 3), dim=-1), ones, cameras), 1)
    assert (moved.rgb[0, 0, :, 0] * 8).tolist() == [8, 0, 1, 2]
    assert moved.mask[0, 0].tolist() == [0, 1, 1, 1]
    assert (moved.normals[0, :, 0] == 0).all() and (moved.normals[0, :, 1:] != 0).all()


def test_view_floors_know_only_what_their_names_say():
    cameras = orbit(4, size=48)
    mask = discs(0.35, cameras)
    rgb = torch.where(mask[..., None] > 0, torch.tensor([0.2, 0.4, 0.6]), 1.0)
    ref = ViewSet(rgb, torch.zeros(4, 48, 48, 3), mask, cameras)
    floors = dict(view_floors(ref, (1, 2), 24))
    assert list(floors) == [
        "all-white image",
        COPY,
        "silhouette oracle",
        "hull of input view, mean colour",
        "hull of all views, mean colour",
        "true views, 1 px off",
        "true views, 2 px off",
    ]
    assert input_colour(ref).tolist() == pytest.approx([0.2, 0.4, 0.6])
    one, every = (floors[f"hull of {name}, mean colour"].mask for name in ("input view", "all views"))
    assert (one[0] - mask[0]).abs().mean() < 0.02 and one[1].sum() > 1.3 * mask[1].sum()
    assert (every - mask).abs().mean() < 0.02
    hull = floors["hull of all views, mean colour"]
    assert torch.allclose(hull.rgb[0, 24, 24], torch.tensor([0.2, 0.4, 0.6]), atol=1e-3)
    assert float(hull.normals[0, 24, 24, 2]) > 0.9  # faces the camera
    assert list(dict(view_floors(ref, (), 0))) == ["all-white image", COPY, "silhouette oracle"]


def test_silhouette_oracle_has_one_colour_taken_from_the_input_view():
    cameras = orbit(3, size=32)
    mask = discs(0.35, cameras)
    noise = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    ref = ViewSet(torch.where(mask[..., None] > 0, noise, 1.0), torch.zeros(3, 32, 32, 3), mask, cameras)
    colours = silhouette_oracle(ref).rgb[mask > 0.5]
    assert torch.allclose(colours, noise[0][mask[0] > 0.5].mean(dim=0).expand_as(colours), atol=1e-5)


def test_mesh_floors_are_ordered_by_what_they_know():
    ball = trimesh.creation.icosphere(3, 0.5)
    floors = dict(mesh_floors(ball, CELLS))
    iou = {name: volume_iou(mesh, ball, 48) for name, mesh in floors.items()}
    box, one, every, itself = iou.values()
    assert list(iou) == [
        "bounding box",
        "hull of input silhouette",
        "hull of 16 silhouettes",
        "reference itself (sampling limit)",
    ]
    assert box < one < every < itself == 1.0
    assert every > 0.9


def test_a_speck_is_a_closed_mesh_of_next_to_nothing():
    assert is_closed(speck()) and speck().volume < 1e-8
