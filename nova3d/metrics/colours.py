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
    sets = (views, inflated, truth)
    made, through, true = (torch.stack([s.straight_alpha(i)[..., :3] for i in range(len(s))]).double() for s in sets)
    inside = torch.stack([s.mask > 0.5 for s in sets]).all(dim=0)
    near = [1, len(views) - 1]
    if bool((views.mask[near] > 0.5).any()):
        made = made + true[0][truth.mask[0] > 0.5].mean(dim=0) - made[near][views.mask[near] > 0.5].mean(dim=0)
    made = made.clamp(0, 1)
    g, p = made - through, true - through
    products = torch.stack([p * g, g * g, (p - g) ** 2, p * p], dim=-1).sum(dim=3) * inside[..., None]
    azimuths = views.cameras.azimuth_elevation()[:, 0]
    shares = offset_shares(azimuths[1:] - azimuths[0])
    shares = (shares / shares.sum(dim=1, keepdim=True)).double()
    return shares.T @ products[1:].sum(dim=(1, 2))
