from dataclasses import replace

import pytest
import torch

from nova3d.cameras import orbit
from nova3d.foreground import foreground_colours
from nova3d.views import ViewSet

SIZE = 32
GREY, BLACK, ORANGE = torch.tensor([[0.6] * 3, [0.05] * 3, [0.9, 0.4, 0.1]])


def block_views(elevation: float = 0.0) -> ViewSet:
    """Eight views of a block, grey above and black below; view 0 is the picture."""
    rgb, mask = torch.ones(8, SIZE, SIZE, 3), torch.zeros(8, SIZE, SIZE)
    mask[:, 4:28, 8:24] = 1
    rgb[:, 4:16, 8:24], rgb[:, 16:28, 8:24] = GREY, BLACK
    normals = torch.zeros_like(rgb)
    normals[..., 2] = mask
    return ViewSet(rgb, normals, mask, orbit(8, elevation, SIZE), (True, *[False] * 7))


def paled(views: ViewSet, share: torch.Tensor) -> ViewSet:
    """The views with colours of which 1 - share [v,h,w] is white, but for view 0."""
    rgb = views.rgb * share[..., None] + 1 - share[..., None]
    return replace(views, rgb=torch.cat([views.rgb[:1], rgb[1:]]))


def test_white_is_taken_out_of_what_the_model_doubts() -> None:
    truth = block_views()
    doubt = 0.45 + 0.55 * torch.rand(8, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    pale = paled(truth, doubt)
    found = foreground_colours(pale, 0)
    error, before = ((v.rgb - truth.rgb)[1:, 18:28, 8:24].abs().mean() for v in (found, pale))
    assert before > 0.25 and error < before / 4  # the black half, away from the grey one's rows
    for name in ("mask", "normals"):
        assert torch.equal(getattr(found, name), getattr(pale, name))
    assert torch.equal(found.rgb[0], pale.rgb[0])
    assert torch.allclose(found.rgb[:, :4], torch.ones(1), atol=1e-6)  # background


def test_one_colour_means_what_the_picture_shows_in_its_rows() -> None:
    """The same pale grey is the grey above, and black mixed with white below."""
    views = block_views()
    views.rgb[1:, 4:28, 8:24] = 0.62
    found = foreground_colours(views, 0).rgb[1:, :, 8:24, 0]
    assert found[:, 4:13].mean() > 0.55
    assert found[:, 19:28].mean() < 0.4


def test_a_colour_that_the_picture_does_not_show_stays() -> None:
    views = block_views()
    views.rgb[4, 4:16, 8:24] = ORANGE
    found = foreground_colours(views, 0).rgb[4, 5:15, 9:23]
    assert (found - ORANGE).abs().max() < 0.05


def test_a_white_object_stays_white() -> None:
    views = block_views()
    views.rgb[:] = 1.0
    assert torch.allclose(foreground_colours(views, 0).rgb, views.rgb, atol=1e-5)


def test_a_soft_mask_stays_a_composite_on_white() -> None:
    views = block_views()
    views.mask[1:, 4:28, 8] = 0.5
    views.rgb[1:, 4:28, 8] = (views.rgb[1:, 4:28, 8] + 1) / 2
    found = foreground_colours(views, 0)
    assert (found.straight_alpha(1)[20:26, 8, :3] - BLACK).abs().max() < 0.15
    assert (found.rgb[1, 20:26, 8] - (BLACK + 1) / 2).abs().max() < 0.08


def test_where_rows_do_not_agree_all_of_them_count() -> None:
    """From above, a point has another row in every view."""
    level, tilted = (block_views(elevation) for elevation in (0.0, 20.0))
    for views in (level, tilted):
        views.rgb[1:, 4:28, 8:24] = 0.62
    rows = [foreground_colours(views, 0).rgb[1:, 4:28, 8:24, 0].mean(dim=(0, 2)) for views in (level, tilted)]
    assert rows[0][:8].mean() - rows[0][-8:].mean() > 0.15
    assert (rows[1] - rows[1][0]).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [slice(0, SIZE), slice(5, SIZE)])
def test_rows_beyond_the_picture_use_its_nearest(rows: slice) -> None:
    """The picture may lack rows that a generated view has, or show nothing at all."""
    views = block_views()
    views.rgb[1:, 4:28, 8:24] = 0.62  # the grey, a little paled
    views.mask[0, rows] = 0
    views.rgb[0, rows] = 1
    found = foreground_colours(views, 0)
    assert torch.isfinite(found.rgb).all()
    assert torch.equal(found.rgb, views.rgb) == (rows.start == 0)
