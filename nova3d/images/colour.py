"""Colour: alpha compositing, and sRGB to linear light. All functions are elementwise; alpha is the last channel."""

import torch
from torch import Tensor

_LEAST_ALPHA = 1e-4  # premultiplied colours are not divided by less


def composite(rgba: Tensor, background: float = 1.0) -> Tensor:
    """Composite a picture over a grey level.

    Args:
        rgba: [...,4] float in [0,1], straight alpha.
        background: the level in [0,1]; white by default.

    Returns:
        [...,3] float in [0,1].
    """
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)


def uncomposite(rgb: Tensor, alpha: Tensor) -> Tensor:
    """The inverse of `composite` over white, for a known alpha.

    Args:
        rgb: [...,3] float in [0,1], composited on white.
        alpha: [...,1] float in [0,1].

    Returns:
        [...,4] float in [0,1], straight alpha; the colour is 0 where alpha is 0.
    """
    straight = (rgb - (1 - alpha)) / alpha.clamp_min(1 / 255)
    return torch.cat([torch.where(alpha > 0, straight, 0.0).clamp(0, 1), alpha], dim=-1)


def premultiply(rgba: Tensor) -> Tensor:
    """Straight alpha [...,4] float in [0,1] to premultiplied alpha, as linear filters need it; same shape."""
    return torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)


def unpremultiply(rgba: Tensor) -> Tensor:
    """Premultiplied alpha [...,4] float to straight alpha in [0,1]; the colour is 0 where alpha is (almost) 0."""
    alpha = rgba[..., 3:].clamp(0, 1)
    rgb = torch.where(alpha > _LEAST_ALPHA, rgba[..., :3] / alpha.clamp_min(_LEAST_ALPHA), 0.0)
    return torch.cat([rgb.clamp(0, 1), alpha], dim=-1)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """sRGB to linear light (IEC 61966-2-1); float in [0,1], any shape."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB, the inverse of `srgb_to_linear`; float, any shape, clipped to [0,1]."""
    low = linear * 12.92
    return torch.where(linear <= 0.0031308, low, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055).clamp(0, 1)
