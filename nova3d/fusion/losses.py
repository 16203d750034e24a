"""The terms of the paper's loss (its eq. 6) as pure functions; all return scalars, finite for empty batches."""

import torch
import torch.nn.functional as F
from torch import Tensor


def residual(rendered: Tensor, target: Tensor) -> Tensor:
    """||C - C^||_2 [r] of colours [r,3]; 1e-6 under the root gives the norm a gradient at zero."""
    return ((rendered - target).square().sum(dim=-1) + 1e-6).sqrt()


def colour_loss(residual: Tensor, conflict: Tensor, lambda_0: Tensor | float, weight: Tensor) -> Tensor:
    """(1 - H) ||C - C^||_2 + lambda_0 H^2, weighted mean over rays (paper eq. 5).

    residual, conflict H, weight [r]. The norm is not squared. Minimising over H gives H* = min(1, r / (2 lambda_0)).
    """
    return _mean((1 - conflict) * residual + lambda_0 * conflict.square(), weight)


def normal_loss(
    rendered: Tensor, target: Tensor, directions: Tensor, foreground: Tensor, weight: Tensor, keep: float = 1.0
) -> Tensor:
    """Wonder3D's geometry-aware normal loss (arXiv 2310.15008, section 3.4).

    1 - cos(rendered, target), weighted by exp(|c|), c = cos(ray, target), rays with c > -0.1 left out (a normal that
    does not face the camera cannot be seen). Normalised over the rays that count, so that the share of background in
    the batch does not change the term. Only the `keep` share of rays with the lowest error counts.

    rendered, target, directions [r,3]; foreground bool [r]; weight [r].
    """
    c = (directions * target).sum(dim=-1)
    used = foreground & (c < -0.1)
    error = 1 - F.cosine_similarity(rendered, target, dim=-1, eps=1e-6)
    if keep < 1 and bool(used.any()):
        used = used & (error.detach() <= torch.quantile(error.detach()[used], keep))
    return _mean(error, torch.exp(c.abs()) * weight * used)


def mask_loss(opacity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the opacity [r] against the soft mask [r]."""
    return _mean((opacity - target).square(), weight)


def eikonal_loss(gradient: Tensor) -> Tensor:
    """Mean (|grad f| - 1)^2 over points [n,3]."""
    if len(gradient) == 0:
        return gradient.sum()
    return ((gradient.square().sum(dim=-1) + 1e-12).sqrt() - 1).square().mean()


def sparse_loss(sdf: Tensor, tau: float) -> Tensor:
    """Mean exp(-tau |f|) over random points [n] (SparseNeuS eq. 10): few points may be near a surface."""
    return torch.exp(-tau * sdf.abs()).mean() if len(sdf) else sdf.sum()


def smooth_loss(gradient: Tensor, neighbour: Tensor) -> Tensor:
    """Mean |grad f(x) - grad f(x + delta)|_1 over points [n,3] (Wonder3D's smoothness)."""
    return (gradient - neighbour).abs().sum(dim=-1).mean() if len(gradient) else gradient.sum()


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / weight.sum().clamp_min(1e-6)
