import math

import pytest
import torch
import trimesh

from nova3d.cameras import orbit, preset
from nova3d.evaluation import volume_iou
from nova3d.evaluation.baselines import (
    COPY,
    CUT_OUT,
    INFLATED,
    THICKNESS,
    _log_left_out,
    all_white,
    cut_out,
    cut_out_mesh,
    inflated,
    input_colour,
    mesh_baselines,
    row_label,
    shifted,
    silhouette_oracle,
    speck,
    view_baselines,
)
from nova3d.evaluation.mesh_metrics import is_closed
from nova3d.views import ViewSet
from tests.helpers.masks import discs

CELLS = 40


def test_shifted_moves_to_the_right_and_fills_with_white():
    cameras = orbit(1, size=4)
    rgb = torch.arange(4.0).expand(1, 4, 4)[..., None].expand(-1, -1, -1, 3) / 8
    ones = torch.ones(1, 4, 4)
    moved = shifted(ViewSet(rgb, torch.nn.functional.normalize(torch.ones(1, 4, 4, 3), dim=-1), ones, cameras), 1)
    assert (moved.rgb[0, 0, :, 0] * 8).tolist() == [8, 0, 1, 2]
    assert moved.mask[0, 0].tolist() == [0, 1, 1, 1]
    assert (moved.normals[0, :, 0] == 0).all() and (moved.normals[0, :, 1:] != 0).all()


def test_view_baselines_know_only_what_their_names_say():
    cameras = orbit(4, size=48)
    mask = discs(0.35, cameras)
    rgb = torch.where(mask[..., None] > 0, torch.tensor([0.2, 0.4, 0.6]), 1.0)
    ref = ViewSet(rgb, torch.zeros(4, 48, 48, 3), mask, cameras)
    floors = dict(view_baselines(ref, (1, 2), 24))
    assert list(floors) == [
        "all-white image",
        COPY,
        INFLATED,
        CUT_OUT,
        "silhouette oracle",
        "hull of input view, mean colour",
        "hull of all views, mean colour",
        "true views, 1 px off",
        "true views, 2 px off",
    ]
    assert [row_label(name).partition(":")[0] for name in floors] == [
        *["baseline"] * 4,
        "silhouette oracle",
        "baseline",
        *["oracle"] * 3,
    ]
    assert input_colour(ref).tolist() == pytest.approx([0.2, 0.4, 0.6])
    one, every = (floors[f"hull of {name}, mean colour"].mask for name in ("input view", "all views"))
    assert (one[0] - mask[0]).abs().mean() < 0.02 and one[1].sum() > 1.3 * mask[1].sum()
    assert (every - mask).abs().mean() < 0.02
    hull = floors["hull of all views, mean colour"]
    assert torch.allclose(hull.rgb[0, 24, 24], torch.tensor([0.2, 0.4, 0.6]), atol=1e-3)
    assert float(hull.normals[0, 24, 24, 2]) > 0.9  # faces the camera
    assert list(dict(view_baselines(ref, (), 0))) == ["all-white image", COPY, INFLATED, CUT_OUT, "silhouette oracle"]


def test_the_inflated_outline_shows_the_input_and_is_left_out_for_other_rigs(caplog: pytest.LogCaptureFixture):
    cameras = preset("ortho16", 48)
    mask = discs(0.35, cameras)
    rgb = torch.where(mask[..., None] > 0, torch.tensor([0.2, 0.4, 0.6]), 1.0)
    solid = inflated(ViewSet(rgb, torch.zeros(16, 48, 48, 3), mask, cameras))
    assert solid is not None and torch.allclose(solid.rgb[0], rgb[0], atol=1e-6)
    assert float((solid.mask - mask).abs().mean()) < 0.02  # a disc becomes a ball, whose outline is a disc
    tilted = orbit(4, elevation_deg=30.0, size=48)
    ref = ViewSet(torch.ones(4, 48, 48, 3), torch.zeros(4, 48, 48, 3), torch.zeros(4, 48, 48), tilted)
    _log_left_out.cache_clear()
    with caplog.at_level("INFO"):
        assert [{INFLATED, CUT_OUT} & dict(view_baselines(ref, (), 0)).keys() for _ in range(2)] == [set(), set()]
    assert sum("is left out" in record.message for record in caplog.records) == 2


def test_the_cut_out_is_the_picture_from_the_front_and_a_line_from_the_side():
    cameras = preset("ortho16", 96)
    mask = discs(0.35, cameras)
    rows = torch.arange(96)[None, :, None, None] / 96  # brighter downwards
    rgb = torch.where(mask[..., None] > 0, rows.expand(16, -1, 96, 3), 1.0)
    slab = cut_out(ViewSet(rgb, torch.zeros(16, 96, 96, 3), mask, cameras))
    assert slab is not None
    inside = (mask[0] > 0.5) & (slab.mask[0] > 0.99)
    assert float((slab.mask[0] - mask[0]).abs().mean()) < 0.01
    assert float((slab.rgb[0] - rgb[0])[inside].abs().max()) < 0.02
    assert float((slab.rgb[8] - rgb[0].flip(1))[inside.flip(1)].abs().max()) < 0.02  # through and through
    assert torch.allclose(slab.normals[0][inside], torch.tensor([0.0, 0, 1]), atol=1e-3)
    assert float(slab.mask[4].sum(dim=1).max()) == pytest.approx(THICKNESS / 1.5 * 96, abs=0.5)  # one sample
    assert torch.allclose(slab.normals[4][slab.mask[4] > 0.99], torch.tensor([1.0, 0, 0]), atol=1e-3)
    middle = slab.rgb[4][:, 48][slab.mask[4][:, 48] > 0.99]
    assert bool((middle.diff(dim=0) >= -1e-3).all())  # the sides have the outline's colours
    assert all_white(ViewSet(rgb, torch.zeros(16, 96, 96, 3), 0 * mask, cameras)).rgb.min() == 1


def test_the_cut_out_is_closed_where_no_pixels_meet_at_a_corner_alone():
    rgba = torch.zeros(20, 20, 4)
    rgba[4:16, 3:9] = rgba[10:14, 9:17] = 1.0
    mesh = cut_out_mesh(rgba, 0.05)
    assert is_closed(mesh) and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx((12 * 6 + 4 * 8) * 0.05**2 * THICKNESS)


def test_silhouette_oracle_has_one_colour_taken_from_the_input_view():
    cameras = orbit(3, size=32)
    mask = discs(0.35, cameras)
    noise = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    ref = ViewSet(torch.where(mask[..., None] > 0, noise, 1.0), torch.zeros(3, 32, 32, 3), mask, cameras)
    colours = silhouette_oracle(ref).rgb[mask > 0.5]
    assert torch.allclose(colours, noise[0][mask[0] > 0.5].mean(dim=0).expand_as(colours), atol=1e-5)


def test_mesh_baselines_are_ordered_by_what_they_know():
    ball = trimesh.creation.icosphere(3, 0.5)
    floors = dict(mesh_baselines(ball, CELLS))
    iou = {name: volume_iou(mesh, ball, 48) for name, mesh in floors.items()}
    box, blown, slab, one, every, itself = iou.values()
    assert list(iou) == [
        "bounding box",
        INFLATED,
        CUT_OUT,
        "hull of input silhouette",
        "hull of 16 silhouettes",
        "reference itself (sampling limit)",
    ]
    labels = [row_label(name).partition(":")[0] for name in iou]
    assert labels == ["oracle", *["baseline"] * 3, "oracle", "oracle"]
    assert box < one < every < itself == 1.0
    assert slab < box and floors[CUT_OUT].volume == pytest.approx(math.pi / 4 * THICKNESS, rel=0.02)
    assert every > 0.9 and blown > 0.93  # a ball is what its outline inflates to


def test_a_speck_is_a_closed_mesh_of_next_to_nothing():
    assert is_closed(speck()) and speck().volume < 1e-8
