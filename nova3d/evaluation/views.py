"""Metrics on views. Images are float [0,1], [n,h,w,3]; masks are coverage in [0,1], [n,h,w], foreground above 1/2.

Every function is a pure function of tensors; which views are scored and what is averaged is the protocol's affair.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.compat import ensure_torchvision
from nova3d.errors import InputError

MAX_PSNR = 100.0  # dB, what equal images score, so that means stay finite
NORMAL_WITHIN_DEG = (11.25, 22.5, 30.0)  # the customary thresholds of surface-normal benchmarks
SSIM_WINDOW = 11  # pixels


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


def ssim(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] SSIM (Wang et al. 2004) of [n,h,w,3]: Gaussian window of 11 pixels, sigma 1.5, data range 1, over channels.

    Raises InputError where torchmetrics is not installed or the images are smaller than the window.
    """
    _same_shape(pred, ref)
    if min(pred.shape[1:3]) < SSIM_WINDOW:
        size = f"{pred.shape[2]}x{pred.shape[1]}"
        raise InputError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {size}; render larger views")
    ensure_torchvision()  # torchmetrics imports it where it is installed
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise InputError("SSIM needs torchmetrics: install it with `pip install nova3d[eval]`") from error
    # In double: a flat patch's variance, a difference of two squares, would drown in float32 rounding beside C2 = 9e-4.
    values = structural_similarity_index_measure(
        pred.double().permute(0, 3, 1, 2),
        ref.double().permute(0, 3, 1, 2),
        gaussian_kernel=True,
        sigma=1.5,
        kernel_size=SSIM_WINDOW,
        data_range=1.0,
        reduction="none",
    )
    return torch.as_tensor(values).reshape(len(pred)).to(pred)


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


def _decibel(mse: Tensor) -> Tensor:
    return (-10 * torch.log10(mse)).clamp_max(MAX_PSNR)


def _same_shape(pred: Tensor, ref: Tensor) -> None:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and reference {tuple(ref.shape)} differ in shape")
