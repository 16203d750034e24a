from dataclasses import replace

import pytest
import torch
import trimesh
from scipy import ndimage

from nova3d.cameras import orbit, preset
from nova3d.errors import InputError
from nova3d.fusion import reconstruct
from nova3d.fusion.config import HullConfig
from nova3d.fusion.occupancy import visual_hull
from nova3d.hull import grid_points, picture_counts


def test_empty_views_are_refused_and_one_empty_view_is_left_out(shapes, f_views, caplog):
    empty = replace(f_views, mask=torch.zeros_like(f_views.mask))
    with pytest.raises(InputError, match="no object"):
        reconstruct(empty, shapes.short_config())
    mask = f_views.mask.clone()
    mask[3] = 0
    hull = visual_hull(replace(f_views, mask=mask), HullConfig(resolution=32), 0.6)
    assert "[3]" in caplog.text
    assert bool((hull.distance < 0).any())


def test_contradicting_masks_are_refused(shapes, f_views):
    half = f_views.mask.shape[1] // 2
    mask = torch.zeros_like(f_views.mask)
    mask[0, : half - 4], mask[1:, half + 4 :] = 1.0, 1.0
    with pytest.raises(InputError, match="no common object"):
        reconstruct(replace(f_views, mask=mask), shapes.short_config())


def test_hull_of_a_sphere_has_its_distance(shapes):
    views = shapes.draw(shapes.sphere(), orbit(16, size=64))
    hull = visual_hull(views, HullConfig(resolution=49), 0.6)
    x = torch.tensor([[0.0, 0, 0.5], [0.45, 0, 0], [0.0, 0, 0]])
    torch.testing.assert_close(hull.signed_distance(x), torch.tensor([0.15, 0.1, -0.35]), atol=0.03, rtol=0)


def test_outlines_are_dilated_only_where_nothing_were_left(shapes, caplog):
    """A needle seen by cameras that are off by more than its width."""
    needle = trimesh.creation.box((0.05, 0.9, 0.05))
    views = shapes.draw(needle, orbit(8, size=96))
    right = visual_hull(views, HullConfig(resolution=48), 0.6, slack=0.06)
    assert "dilated" not in caplog.text
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 3] += torch.tensor([-0.05, 0.05] * 4)[:, None] * c2w[:, :3, 0]
    wrong = replace(views, cameras=replace(views.cameras, c2w=c2w))
    with pytest.raises(InputError, match="no common object"):
        visual_hull(wrong, HullConfig(resolution=48), 0.6)
    hull = visual_hull(wrong, HullConfig(resolution=48), 0.6, slack=0.06)
    assert "dilated by 0.06" in caplog.text
    assert float(hull.signed_distance(torch.tensor([[0.0, 0.2, 0.0]]))) < 0.02
    assert (hull.distance < 0).sum() < 40 * (right.distance < 0).sum()  # a needle still, not the whole box


def test_carving_view_by_view_is_counting_all_misses(f_views):
    """The hull of the definition, node by node."""
    hull = visual_hull(f_views, HullConfig(resolution=24, tolerance=0.2), 0.6)
    points = grid_points(24, 0.6)
    pixels, _ = f_views.cameras.project(points)
    grid = (pixels / 48 * 2 - 1)[:, None]
    value = torch.nn.functional.grid_sample(f_views.mask[:, None], grid, padding_mode="border", align_corners=False)
    misses = (value[:, 0, 0] < 0.5).sum(dim=0)  # the box fits into every picture
    assert torch.equal((hull.distance < 0).flatten(), misses <= 0.2 * len(f_views))


def test_corners_that_few_pictures_hold_are_not_object(shapes):
    """The lens of SyncDreamer's rig leaves the upper corners of the box to one or two of its pictures."""
    cameras = preset("syncdreamer16", 64)
    views = shapes.draw(shapes.sphere(), cameras)
    hull = visual_hull(views, HullConfig(resolution=48), 0.6)
    assert ndimage.label((hull.distance < 0).numpy())[1] == 1
    points = grid_points(48, 0.6)
    held = picture_counts(points, views.mask, cameras)
    assert int(held.max()) == 16 and int(held.min()) < 4
    by_hand = (cameras.project(points[:500])[0] >= 0) & (cameras.project(points[:500])[0] < 64)
    assert torch.equal(held[:500], by_hand.all(dim=-1).sum(dim=0))
