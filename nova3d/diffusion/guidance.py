"""Classifier-free guidance whose scale depends on the view."""

import math
from typing import Literal

import torch
from torch import Tensor

Guidance = Literal["triangle", "linear", "constant"]
GUIDANCE: tuple[Guidance, ...] = ("triangle", "linear", "constant")


def view_scales(kind: Guidance, low: float, high: float, azimuths: Tensor) -> Tensor:
    """[v] guidance scale of each view at azimuths [v] radians relative to the input view.

    `triangle`: grows with the angular distance from the input view, `low` there and `high` behind (SV3D's, stated
    on the angle). `linear`: from `low` at the first to `high` at the last view (SVD's). `constant`: `high`.
    """
    match kind:
        case "triangle":
            distance = torch.remainder(azimuths + math.pi, 2 * math.pi) - math.pi
            return low + (high - low) * distance.abs() / math.pi
        case "linear":
            return torch.linspace(low, high, len(azimuths), device=azimuths.device)
        case "constant":
            return torch.full_like(azimuths, high)
    raise ValueError(f"guidance '{kind}' is not one of {', '.join(GUIDANCE)}")


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """u + s (c - u) for [b,t,v,c,h,w] outputs and [v] scales.

    On the network's output or on the denoised estimate alike: the map between them is affine.
    """
    return unconditional + scales.reshape(1, 1, -1, 1, 1, 1) * (conditional - unconditional)
