import copy
from dataclasses import replace

import pytest
import torch

from nova3d.cameras import orbit
from nova3d.experiments.fusion_inputs import auroc
from nova3d.fusion import maps, texture
from nova3d.fusion.maps import conflict_maps, consensus, surface_pixels
from nova3d.fusion.optimize import fit

PATCH = (slice(18, 30), slice(18, 30))
GREEN = torch.tensor([90.0, 160.0, 60.0]) / 255


@pytest.fixture(scope="module")
def ball(shapes):
    """A green sphere in 16 views, of which view 5 has a magenta patch."""
    views = shapes.draw(shapes.sphere(), orbit(16, size=48))
    rgb = views.rgb.clone()
    rgb[5][PATCH] = torch.tensor([1.0, 0.0, 1.0])
    return replace(views, rgb=rgb)


def seen_by(shapes, views):
    return texture.projector(
        views, views.cameras, shapes.sphere(), torch.zeros_like(views.mask), shapes.tiny_config().texture
    )


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_pixels_lie_on_the_surface_along_their_rays(shapes, model):
    views = shapes.draw(shapes.sphere(), orbit(6, size=48, model=model))
    pixels = surface_pixels(shapes.sphere(), views)
    solid = pixels.mask[:, 0] > 0.99
    assert solid.float().mean() > 0.8
    torch.testing.assert_close(pixels.points.norm(dim=-1)[solid], torch.full((int(solid.sum()),), 0.35), atol=3e-3,
                               rtol=0)  # fmt: skip
    assert (pixels.normals * pixels.points / 0.35).sum(dim=-1)[solid].min() > 0.98
    where, _ = views.cameras.project(pixels.points)
    own = where[pixels.view, torch.arange(len(pixels.view))]
    _, row, column = torch.nonzero(pixels.hit, as_tuple=True)
    torch.testing.assert_close(own, torch.stack([column, row], dim=-1) + 0.5, atol=1e-2, rtol=0)
    picture = pixels.picture(torch.arange(1.0, len(pixels.view) + 1))
    assert torch.equal(picture[pixels.hit], torch.arange(1.0, len(pixels.view) + 1))
    assert float(picture[~pixels.hit].abs().max()) == 0


def test_the_others_outvote_a_patch_and_nobody_vouches_for_himself(shapes, ball):
    pixels = surface_pixels(shapes.sphere(), ball)
    colours, others = consensus(pixels, seen_by(shapes, ball))
    sure = others >= 2
    assert sure.float().mean() > 0.8
    assert others.max() <= 7  # of 16 views around, those less than 81 degrees off, without the pixel's own
    assert (colours[sure] - GREEN).norm(dim=-1).quantile(0.9) < 0.03
    residual = pixels.picture(torch.where(sure, pixels.residual(colours), torch.tensor(0.0)))
    patch = torch.zeros_like(ball.mask, dtype=torch.bool)
    patch[5][PATCH] = True
    assert residual[patch].min() > 0.8
    assert residual[~patch].max() < 0.15


def test_a_median_not_a_mean(shapes, ball, monkeypatch):
    """Two of about six views wrong, in the same way."""
    rgb = ball.rgb.clone()
    rgb[6][PATCH] = torch.tensor([1.0, 0.0, 1.0])
    views = replace(ball, rgb=rgb)
    pixels = surface_pixels(shapes.sphere(), views)

    def wrong(view: int) -> float:
        colours, others = consensus(pixels, seen_by(shapes, views))
        asked = (pixels.view == view) & (others >= 5)
        return float(((colours[asked] - GREEN).norm(dim=-1) > 0.1).float().mean())

    median = {view: wrong(view) for view in (3, 8)}
    monkeypatch.setattr(maps, "_WEISZFELD", 0)
    for view, share in median.items():
        assert share < 0.3
        assert share < 0.75 * wrong(view)


def test_h_rests_on_the_others_where_the_fit_is_still_far_off(shapes, ball):
    config = shapes.tiny_config()
    config.optim.steps, config.pose.enabled, config.conflict.mode = 20, False, "mlp"
    config.conflict.polish_steps, config.conflict.polish_rays = 300, 512
    state, _ = fit(ball, config)
    alone = replace(copy.deepcopy(state), config=copy.deepcopy(state.config))
    alone.config.conflict.consensus = False
    patch = torch.zeros_like(ball.mask, dtype=torch.bool)
    patch[5][PATCH] = True
    clean = (ball.mask > 0.9) & ~patch
    (h, residual), (paper, same) = (conflict_maps(s, shapes.sphere(), ball) for s in (state, alone))
    torch.testing.assert_close(residual, same)
    assert residual[clean].mean() > 0.1  # far off
    assert h[patch].mean() > 0.7
    assert h[clean].mean() < 0.05
    assert auroc(h, patch, clean) > 0.99
    assert auroc(h, patch, clean) > auroc(paper, patch, clean)


def test_learning_on_is_the_same_every_time(shapes, ball):
    config = shapes.tiny_config()
    config.optim.steps, config.conflict.polish_steps = 12, 20
    state, _ = fit(ball, config)
    first, again = (conflict_maps(copy.deepcopy(state), shapes.sphere(), ball)[0] for _ in range(2))
    assert torch.equal(first, again)
