"""Metrics on views. Images are float [0,1], [n,h,w,3]; masks are coverage in [0,1], [n,h,w], foreground above 1/2.

Every function is a pure function of tensors; which views are scored and what is averaged is the protocol's affair.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.errors import InputError

MAX_PSNR = 100.0  # dB, what equal images score, so that means stay finite
NORMAL_WITHIN_DEG = (11.25, 22.5, 30.0)  # the customary thresholds of surface-normal benchmarks
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels


def psnr(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] PSNR in dB of [n,h,w,3] over whole images, data range 1, in float (nothing is rounded to 8 bits).

    Equal images score MAX_PSNR.
    """
    _same_shape(pred, ref)
    return _decibel((pred - ref).square().flatten(1).mean(dim=1))


def foreground_psnr(pred: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """[n] PSNR in dB over the pixels where the REFERENCE's mask [n,h,w] exceeds 1/2; nan where there are none.

    What a prediction paints outside the reference's silhouette does not count here: read it beside `mask_iou`.
    """
    _same_shape(pred, ref)
    inside = (mask > 0.5).to(pred)
    error = ((pred - ref).square().mean(dim=-1) * inside).flatten(1).sum(dim=1)
    return _decibel(error / inside.flatten(1).sum(dim=1))


def registered_psnr(pred: Tensor, ref: Tensor, max_shift: int = 4, background: float = 1.0) -> Tensor:
    """[n] the best PSNR in dB of [n,h,w,3] over all whole-pixel shifts of the prediction, each view for itself.

    Shifts go up to `max_shift` pixels along both axes. Borders: what moves out of the frame is lost, what moves in is
    `background`, a grey level; so every shift is scored on all h*w pixels, and the best is never below `psnr`.
    Far above `psnr`, the prediction is right but misplaced: a crop, a camera or a half pixel is wrong.
    Raises ValueError where `max_shift` is negative or not below both sides.
    """
    _same_shape(pred, ref)
    h, w = pred.shape[1:3]
    if not 0 <= max_shift < min(h, w):
        raise ValueError(f"max_shift must be from 0 to the image's shorter side, got {max_shift} for {w}x{h}")
    padded = F.pad(pred, (0, 0, *(max_shift,) * 4), value=background)
    shifts = range(2 * max_shift + 1)
    errors = ((padded[:, y : y + h, x : x + w] - ref).square().flatten(1).mean(dim=1) for y in shifts for x in shifts)
    return _decibel(torch.stack(list(errors)).amin(dim=0))


def ssim(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] SSIM (Wang et al. 2004) of [n,h,w,3]: Gaussian window of 11 pixels, sigma 1.5, data range 1, over channels.

    Borders are reflected. Raises InputError where the images are smaller than the window.
    """
    return _local_ssim(pred, ref).flatten(1).mean(dim=1).to(pred)


def foreground_ssim(pred: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """[n] the local SSIM of `ssim`, averaged where the REFERENCE's mask [n,h,w] exceeds 1/2; nan where nowhere.

    The window of a pixel near the silhouette sees 5 pixels beyond it, so a wrong outline counts here, unlike in
    `foreground_psnr`. Raises as `ssim`.
    """
    local = _local_ssim(pred, ref).mean(dim=1)
    inside = (mask > 0.5).to(local)
    return ((local * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)).to(pred)


def mask_iou(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] intersection over union of two masks [n,h,w], each cut at 1/2; 1 where both are empty."""
    _same_shape(pred, ref)
    a, b = (pred > 0.5).flatten(1), (ref > 0.5).flatten(1)
    union = (a | b).sum(dim=1)
    return torch.where(union > 0, (a & b).sum(dim=1) / union.clamp_min(1), 1.0)


def normal_angle(pred: Tensor, ref: Tensor, mask: Tensor) -> dict[str, float]:
    """Angles between two normal maps [n,h,w,3] of one frame, pooled over all n views.

    Counted are the pixels where BOTH maps hold a normal (length above 1/2) and mask [n,h,w], the reference's, exceeds
    1/2; read it beside `mask_iou`, which says how much of the surface that was. Returns `mean` and `median` in degrees
    and `within_11.25`, `within_22.5`, `within_30`: shares in [0,1]; all nan where no pixel counts.
    """
    _same_shape(pred, ref)
    counted = (mask > 0.5) & (pred.norm(dim=-1) > 0.5) & (ref.norm(dim=-1) > 0.5)
    a, b = F.normalize(pred[counted].double(), dim=-1), F.normalize(ref[counted].double(), dim=-1)
    # atan2, not acos: acos of a rounded cosine loses small angles
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1)).rad2deg()
    if len(angle) == 0:
        return dict.fromkeys(("mean", "median", *(f"within_{limit:g}" for limit in NORMAL_WITHIN_DEG)), math.nan)
    shares = {f"within_{limit:g}": float((angle <= limit).double().mean()) for limit in NORMAL_WITHIN_DEG}
    return {"mean": float(angle.mean()), "median": float(np.median(angle.numpy(force=True)))} | shares


def _local_ssim(pred: Tensor, ref: Tensor) -> Tensor:
    """[n,3,h,w] in double: a flat patch's variance, a difference of two squares, would drown in float's rounding."""
    _same_shape(pred, ref)
    h, w = pred.shape[1:3]
    if min(h, w) < SSIM_WINDOW:
        raise InputError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {w}x{h}; render larger views")
    x, y = (image.double().permute(0, 3, 1, 2) for image in (pred, ref))
    rows, columns = _window(h).to(x.device), _window(w).to(x.device)

    def local_mean(image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = (local_mean(x * x) - mean_x**2).clamp_min(0)
    variance_y = (local_mean(y * y) - mean_y**2).clamp_min(0)
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with the data range L = 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _window(length: int) -> Tensor:
    """[length,length] the Gaussian window along one axis as a matrix, borders reflected.

    The window is separable, and two products with matrices are many times faster than a convolution in double.
    """
    reach = SSIM_WINDOW // 2
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.double) ** 2) / (2 * SSIM_SIGMA**2))
    sources = F.pad(torch.eye(length, dtype=torch.double), (reach, reach), mode="reflect")  # [pixel, place it fills]
    return (sources.unfold(1, SSIM_WINDOW, 1) @ (weights / weights.sum())).T


def _decibel(mse: Tensor) -> Tensor:
    return (-10 * torch.log10(mse)).clamp_max(MAX_PSNR)


def _same_shape(pred: Tensor, ref: Tensor) -> None:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and reference {tuple(ref.shape)} differ in shape")
