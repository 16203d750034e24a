"""The terms of the paper's loss (its eq. 6) as pure functions of r rays or n points.

Every loss is a scalar tensor, finite for empty batches. The weights stand in `LossConfig`; the paper prints none.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.fusion.config import ConflictConfig


def colour_residual(rendered: Tensor, target: Tensor) -> Tensor:
    """||C - C^||_2 per ray. 1e-6 under the root gives the norm a gradient at zero.

    Args:
        rendered: [r,3] float32 in [0,1].
        target: [r,3] float32 in [0,1].

    Returns:
        [r] float32.
    """
    return ((rendered - target).square().sum(dim=-1) + 1e-6).sqrt()


def colour_loss(residual: Tensor, conflict: Tensor, lambda_0: Tensor | float, weight: Tensor) -> Tensor:
    """(1 - H) ||C - C^||_2 + lambda_0 H^2, weighted mean over rays (paper eq. 5). The norm is not squared.

    Args:
        residual: [r] float32, `colour_residual`.
        conflict: [r] float32 H in [0,1].
        lambda_0: the penalty, see `conflict_penalty`.
        weight: [r] float32, at least 0.

    Returns:
        A scalar.
    """
    return _mean((1 - conflict) * residual + lambda_0 * conflict.square(), weight)


def closed_form_conflict(residual: Tensor, lambda_0: float) -> Tensor:
    """H* = min(1, r / (2 lambda_0)), the minimum of eq. 5 over H where nothing ties pixels together.

    With it the colour term is r - r^2 / (4 lambda_0) below r = 2 lambda_0 and lambda_0 beyond (a line process, Black
    and Rangarajan 1996). The gradient of H* does not matter, because it is zero at the minimum.

    Args:
        residual: [r] float32, `colour_residual`.
        lambda_0: the penalty.

    Returns:
        [r] float32 in [0,1].
    """
    return (residual / (2 * lambda_0)).clamp(0, 1)


def conflict_penalty(progress: float, mean_residual: float, config: ConflictConfig) -> float:
    """lambda_0 of eq. 5: geometric from lambda_start (at `start`) to lambda_end (at 1), and never below the floor.

    The floor `floor * mean_residual` keeps H from becoming the cheapest answer to an ordinary residual.

    Args:
        progress: share of the run in [0,1].
        mean_residual: running mean of the colour residual on the object.
        config: lambda_start, lambda_end, start, floor.

    Returns:
        The penalty.
    """
    share = min(1.0, max(0.0, (progress - config.start) / max(1e-9, 1 - config.start)))
    annealed = float(config.lambda_start * (config.lambda_end / config.lambda_start) ** share)
    return max(annealed, config.floor * mean_residual)


def normal_loss(
    rendered: Tensor, target: Tensor, directions: Tensor, foreground: Tensor, weight: Tensor, keep: float = 1.0
) -> Tensor:
    """1 - cos(rendered, target), weighted by exp(|c|), c = cos(ray, target): Wonder3D (2310.15008, section 3.4).

    Rays with c > -0.1 are left out, because a normal that does not face the camera cannot be seen. The mean is over
    the rays that count, so the share of background in the batch does not change the term.

    Args:
        rendered: [r,3] float32, any length.
        target: [r,3] float32 unit vectors.
        directions: [r,3] float32 unit vectors.
        foreground: [r] bool.
        weight: [r] float32, at least 0.
        keep: share of the rays, lowest error first, that count.

    Returns:
        A scalar.
    """
    c = (directions * target).sum(dim=-1)
    used = foreground & (c < -0.1)
    error = 1 - F.cosine_similarity(rendered, target, dim=-1, eps=1e-6)
    if keep < 1 and bool(used.any()):
        used = used & (error.detach() <= torch.quantile(error.detach()[used], keep))
    return _mean(error, torch.exp(c.abs()) * weight * used)


def mask_loss(opacity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """(O - M)^2, weighted mean over rays; opacity, target and weight [r] float32, the first two in [0,1]."""
    return _mean((opacity - target).square(), weight)


def eikonal_loss(gradient: Tensor) -> Tensor:
    """Mean (|grad f| - 1)^2 over points; gradient [n,3] float32 (IGR, as in NeuS)."""
    if len(gradient) == 0:
        return gradient.sum()
    return ((gradient.square().sum(dim=-1) + 1e-12).sqrt() - 1).square().mean()


def sparse_loss(sdf: Tensor, tau: float) -> Tensor:
    """Mean exp(-tau |f|) over random points; sdf [n] float32 (SparseNeuS eq. 10): few points are near a surface."""
    return torch.exp(-tau * sdf.abs()).mean() if len(sdf) else sdf.sum()


def smooth_loss(gradient: Tensor, neighbour: Tensor) -> Tensor:
    """Mean |grad f(x) - grad f(x + delta)|_1 over points; both [n,3] float32 (Wonder3D's smoothness)."""
    return (gradient - neighbour).abs().sum(dim=-1).mean() if len(gradient) else gradient.sum()


def solid_loss(sdf: Tensor, distance: Tensor, reach: float) -> Tensor:
    """How far a field strays from a solid: mean max(0, |f - d| - reach) over points.

    Args:
        sdf: [n] float32 field f.
        distance: [n] float32 signed distance d to the solid.
        reach: difference that is free.

    Returns:
        A scalar.
    """
    return ((sdf - distance).abs() - reach).clamp_min(0).mean() if len(sdf) else sdf.sum()


def weight_at(weight: Any, progress: float) -> float:
    """A loss weight at a share of the run.

    Args:
        weight: a number, or a schedule [start, a, b, stop]: a until `start`, b from `stop` on, linear between.
        progress: share of the run in [0,1].

    Returns:
        The weight.
    """
    if not isinstance(weight, list | tuple):
        return float(weight)
    start, first, last, stop = weight
    share = min(1.0, max(0.0, (progress - start) / (stop - start)))
    return float(first + share * (last - first))


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / weight.sum().clamp_min(1e-6)
