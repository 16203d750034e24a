"""The visual hull against bodies whose hull is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh

from nova3d.cameras import orbit, preset
from nova3d.hull import carve, dilate, least_coverage, unsupported, visual_hull_mesh
from nova3d.rendering import render_object
from tests.helpers.masks import discs

CELLS = 40


def test_hull_of_all_views_of_a_ball_is_a_stack_of_discs_of_16_sides():
    cameras = preset("ortho16", 96)
    hull = visual_hull_mesh(discs(0.4, cameras), cameras, CELLS)
    # at height y the hull is the regular polygon around the ball's circle (8 strips), with area 16 tan(pi/16) r(y)^2
    expected = 16 * math.tan(math.pi / 16) * 4 / 3 * 0.4**3
    assert hull.volume == pytest.approx(expected, rel=0.02)
    assert np.abs(hull.bounds - [[-0.4, -0.4, -0.4], [0.4, 0.4, 0.4]]).max() < 0.02


def test_hull_of_one_view_is_its_silhouette_through_the_unit_cube():
    cameras = preset("ortho16", 96)[:1]
    hull = visual_hull_mesh(discs(0.3, cameras), cameras, CELLS)
    assert hull.volume == pytest.approx(math.pi * 0.3**2, rel=0.04)
    assert hull.extents[2] == pytest.approx(1.0, abs=2 / CELLS)


def test_hull_is_where_the_silhouette_is():
    cameras = preset("ortho16", 96)[:1]
    hull = visual_hull_mesh(discs(0.2, cameras, shift=0.15), cameras, CELLS)
    assert hull.bounds.mean(axis=0) == pytest.approx([0.15, 0, 0], abs=0.01)


def test_hull_of_nothing_is_none_and_perspective_views_carve_too():
    cameras = preset("syncdreamer16", 48)
    assert visual_hull_mesh(torch.zeros(16, 48, 48), cameras, 8) is None
    full = visual_hull_mesh(torch.ones(16, 48, 48), cameras, 8)
    assert full.volume > 0.9


def test_carving_in_pieces_keeps_what_no_view_sees_background_at(monkeypatch):
    monkeypatch.setattr("nova3d.hull._POINTS_AT_ONCE", 7)
    cameras = preset("ortho16", 96)
    axis = torch.linspace(-0.5, 0.5, 9)
    points = torch.cartesian_prod(axis, axis, axis)
    masks = discs(0.4, cameras)
    kept = carve(points, masks, cameras)
    # The hull of a ball in a level ring: within the circle at its height, 1 / cos(pi / 16) at the polygon's corners.
    across, height = points[:, [0, 2]].norm(dim=-1), points[:, 1].clamp(-0.4, 0.4)
    circle = (0.4**2 - height**2).sqrt()
    assert kept[across < circle - 0.02].all()
    assert not kept[across > circle / math.cos(math.pi / 16) + 0.02].any()
    assert torch.equal(kept, least_coverage(points, masks, cameras) >= 0.5)


def test_tolerance_is_a_share_of_the_views():
    cameras = orbit(10, size=16)
    point = torch.zeros(1, 3)
    masks = torch.ones(10, 16, 16)
    masks[:2] = 0
    assert not carve(point, masks, cameras, 0.1)[0]
    assert carve(point, masks, cameras, 0.2)[0]


def test_points_that_a_view_does_not_show():
    cameras = orbit(1, size=16, model="perspective", radius=1.5, fov_deg=40)
    masks = torch.ones(1, 16, 16)
    beside, behind = torch.tensor([[1.4, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    assert not carve(beside, masks, cameras)[0]
    assert carve(beside, masks, cameras, outside=False)[0]
    assert not carve(beside, masks, cameras, outside=torch.tensor([True]))[0]
    assert not carve(behind, masks, cameras, outside=False)[0]
    assert carve(behind, masks, cameras, behind="unknown")[0]
    near = orbit(1, size=16, radius=0.1)
    assert not carve(behind, masks, near)[0]
    assert carve(behind, masks, near, behind="visible")[0]
    assert not carve(behind, 0 * masks, near, behind="visible")[0]


def test_dilating_takes_the_greatest_value_of_a_square_window():
    masks = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dilate(masks, 2), F.max_pool2d(masks[:, None], 5, 1, 2)[:, 0])
    assert torch.equal(dilate(masks[0], 0), masks[0])


def test_padding_matters_within_half_a_pixel_of_the_border():
    cameras = orbit(1, size=8, span=1.0)
    masks = torch.full((1, 8, 8), 0.6)
    rim = torch.tensor([[0.49, 0.0, 0.0]])  # 0.08 pixels within the border: 0.58 of the value with zeros beyond
    assert not carve(rim, masks, cameras)[0]
    assert carve(rim, masks, cameras, padding="border")[0]


def hull_nodes(cameras, masks):
    """Nodes of the visual hull, 0.03 apart, in a cube of half side 0.75."""
    axis = torch.linspace(-0.75, 0.75, 51)
    points = torch.cartesian_prod(axis, axis, axis)
    return points[carve(points, masks, cameras, outside=False)]


@pytest.mark.parametrize("side", [1, -1])
def test_a_hull_seen_from_one_side_is_closed_on_the_other(tmp_path, side):
    box = trimesh.creation.box((0.5, 1.0, 0.5))
    box.export(tmp_path / "box.glb")
    cameras = orbit(8, elevation_deg=side * 30.0, size=96)
    masks = render_object(tmp_path / "box.glb", cameras).mask
    points = hull_nodes(cameras, masks)
    beyond = -side * points[:, 1]
    assert float(beyond.max()) > 0.6  # the cone
    kept = points[~unsupported(points, masks, cameras, 0.03)]
    assert 0.48 <= float((-side * kept[:, 1]).max()) <= 0.53
    assert float((side * kept[:, 1]).max()) == float((side * points[:, 1]).max())  # the side that is seen stays


def test_a_hull_seen_from_both_sides_or_from_its_height_stays(tmp_path):
    both = torch.cat([orbit(4, elevation_deg=e, size=48).c2w for e in (30.0, -30.0)])
    cameras = orbit(8, size=48)
    for rig in (replace(cameras, c2w=both), cameras):
        masks = discs(0.4, rig)
        points = hull_nodes(rig, masks)
        assert len(points) and not bool(unsupported(points, masks, rig, 0.03).any())
