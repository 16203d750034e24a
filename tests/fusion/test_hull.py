from dataclasses import replace

import pytest
import torch

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.fusion import reconstruct
from nova3d.fusion.config import HullConfig
from nova3d.fusion.sampling import visual_hull


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
    torch.testing.assert_close(hull.signed(x), torch.tensor([0.15, 0.1, -0.35]), atol=0.03, rtol=0)
