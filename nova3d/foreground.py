"""Colours of generated views without the white of a background that the model was not sure of.

Where a model doubts whether a pixel shows the object, it answers with the mean of both: the object's colour mixed with
white. On a mesh there is no such doubt, and its sides would be pale. So each colour is taken for a mixture, of which
the object's part is estimated, as in alpha matting. The trusted picture shows what colours there can be. In a rig of
level orthographic cameras a point has the same row in every view, and the rows around it show the materials of its
height.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.views import ViewSet

_OBJECT = 0.95  # least mask of a pixel of the picture that is a candidate
_CANDIDATES = 256  # of a row, at most
_ROWS = 0.02  # of the picture's height, standard deviation of how far candidates' rows count
_LEAST_SHARE = 0.3  # of the object in a mixture
# Chosen on held-out training objects and scans (docs/results/mini.md).
_WHITE_COST = 0.1  # cost of a mixture of white alone, in squared colour differences
_OWN_COST = 0.1  # cost of the generated colour as it is: the picture need not show all materials
_SPREAD = 0.14  # standard deviation of colour differences


def foreground_colours(views: ViewSet, trusted: int) -> ViewSet:
    """Estimate the object's own colours in generated views.

    A generated colour c is the mixture a o + (1 - a) of an object's colour o and white, 1. Every pixel of the trusted
    picture near the same row is a candidate o with its best share a, and costs
    |c - a o - (1 - a)|^2 + w (1 - a)^2. That c is the object's colour itself costs a constant. The estimate is the mean
    of all candidates, weighted by exp(-cost / (2 s^2)) and by the distance of their rows.

    Args:
        views: v views on white. Where their cameras are not level and orthographic, all rows count alike.
        trusted: index of the view that shows the picture.

    Returns:
        The views with new colours where other views, those not trusted, show the object. Masks and normals stay.
    """
    rows, columns = torch.nonzero(views.mask[trusted] > _OBJECT, as_tuple=True)
    if not len(rows):
        return views
    colours = views.rgba[..., :3]
    picture = colours[trusted, rows, columns]
    deviation = _ROWS * views.cameras.height if _shares_rows(views.cameras) else math.inf
    true = views.trusted or (False,) * len(views)
    others = [not true[view] and view != trusted for view in range(len(views))]
    generated = torch.tensor(others, device=views.mask.device)
    shown = (views.mask > 0) & generated[:, None, None]
    for row in torch.nonzero(shown.any(dim=2).any(dim=0))[:, 0].tolist():
        apart = (rows - row).abs()
        near = torch.nonzero(apart <= max(3 * deviation, int(apart.min())))[:, 0]
        near = near[:: math.ceil(len(near) / _CANDIDATES)]
        prior = torch.log_softmax(-(apart[near] / deviation).square() / 2, dim=0)
        inside = shown[:, row]
        colours[:, row][inside] = _unmix(colours[:, row][inside], picture[near], prior)
    rgb = images.composite(torch.cat([colours, views.mask[..., None]], dim=-1))
    return replace(views, rgb=torch.where(generated[:, None, None, None], rgb, views.rgb))


def _unmix(colours: Tensor, candidates: Tensor, prior: Tensor) -> Tensor:
    """The estimates for colours [n,3] from candidates [m,3] whose weights have the logarithms `prior` [m]."""
    from_white = candidates - 1
    share = (colours - 1) @ from_white.T / from_white.square().sum(dim=1).clamp_min(1e-4)
    share = share.clamp(_LEAST_SHARE, 1)
    cost = ((colours - 1)[:, None] - share[..., None] * from_white).square().sum(dim=-1)
    cost = cost + _WHITE_COST * (1 - share).square()
    own = torch.full_like(cost[:, :1], _OWN_COST)
    likely = torch.cat([prior, prior.new_zeros(1)]) - torch.cat([cost, own], dim=1) / (2 * _SPREAD**2)
    chance = torch.softmax(likely, dim=1)
    return chance[:, :-1] @ candidates + chance[:, -1:] * colours


def _shares_rows(cameras: Cameras) -> bool:
    """Whether a point has the same row in every view."""
    level = cameras.azimuth_elevation()[:, 1].abs().max() < 1e-3
    scale = cameras.intrinsics[:, 1]
    return cameras.model == "orthographic" and bool(level) and bool((scale == scale[0]).all())
