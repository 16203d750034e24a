"""Colours of generated views against the truth, by the azimuth from the input view."""

import torch
from torch import Tensor

from nova3d.calibration import offset_shares
from nova3d.views import ViewSet


def colour_moments(views: ViewSet, inflated: ViewSet, truth: ViewSet) -> Tensor:
    """Second moments of the colour errors of a model's views and of the inflated outline's.

    The model's colours are shifted first: the mean of the two views nearest to the picture becomes the picture's.
    Fusion levels colours likewise.

    Args:
        views: generated ones, whose view 0 shows the true picture.
        inflated: the views of the picture's inflated outline.
        truth: the true views, of the same cameras.

    Returns:
        [8,4] float64 sums for each of OFFSETS_DEG over the pixels that all three show, with g, p and t for the three
        colours: of (t - p) (g - p), (g - p)^2, (t - g)^2 and (t - p)^2.
    """
    made, through, true = shifted_colours(views, truth), straight_colours(inflated), straight_colours(truth)
    inside = torch.stack([s.mask > 0.5 for s in (views, inflated, truth)]).all(dim=0)
    g, p = made - through, true - through
    products = torch.stack([p * g, g * g, (p - g) ** 2, p * p], dim=-1).sum(dim=3) * inside[..., None]
    azimuths = views.cameras.azimuth_elevation()[:, 0]
    shares = offset_shares(azimuths[1:] - azimuths[0])
    shares = (shares / shares.sum(dim=1, keepdim=True)).double()
    return shares.T @ products[1:].sum(dim=(1, 2))


def straight_colours(views: ViewSet) -> Tensor:
    """The colours [v,h,w,3] float64 of views without the white that they were composited on; 0 where nothing is."""
    return views.rgba[..., :3].double()


def shifted_colours(views: ViewSet, truth: ViewSet) -> Tensor:
    """The colours of a model's views, shifted so that the mean of the two nearest to the picture is the picture's.

    Args:
        views: generated ones.
        truth: the true views, whose view 0 is the picture.

    Returns:
        [v,h,w,3] float64 in [0,1].
    """
    made, near = straight_colours(views), [1, len(views) - 1]
    shown = views.mask[near] > 0.5
    if bool(shown.any()):
        made = made + straight_colours(truth)[0][truth.mask[0] > 0.5].mean(dim=0) - made[near][shown].mean(dim=0)
    return made.clamp(0, 1)
