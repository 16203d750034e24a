"""Metrics on pictures: what training watches and evaluation tabulates.

Images are float [0,1], [n,h,w,3]; masks are coverage in [0,1], [n,h,w], foreground above 1/2. Every function is a pure
function of tensors; which views are scored and what is averaged is the protocol's affair.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images import MATTE_DISTANCE

Floats = NDArray[np.float64]

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
    # One view at a time: all its shifts are then read from the processor's cache.
    return torch.cat([_best_shift(padded[i : i + 1], ref[i : i + 1]) for i in range(len(ref))])


def _best_shift(padded: Tensor, ref: Tensor) -> Tensor:
    """[1] the best PSNR of the windows of `padded` [1,h+2s,w+2s,3] against `ref` [1,h,w,3]."""
    h, w = ref.shape[1:3]
    shifts = range(padded.shape[1] - h + 1)
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


def task_iou(rgb: Tensor, normals: Tensor) -> Tensor:
    """[n] how far the two tasks of one prediction show one object: intersection over union of their outlines.

    rgb [n,h,w,3] on white: its outline holds what differs from white by more than images.MATTE_DISTANCE in a channel;
    normals [n,h,w,3], zero on background: what is longer than 1/2. Holes are filled on both sides, for within the
    colours a hole and a white patch look alike. Give both as the network drew them, before one is cut out by the
    other. True views score below 1 where an object is white at its outline: read it beside theirs.
    """
    _same_shape(rgb, normals)
    return mask_iou(_outline((1 - rgb).amax(dim=-1) > MATTE_DISTANCE), _outline(normals.norm(dim=-1) > 0.5))


def _outline(inside: Tensor) -> Tensor:
    """The masks [n,h,w] with their holes filled, as float."""
    filled = [ndimage.binary_fill_holes(mask) for mask in inside.numpy(force=True)]
    return torch.from_numpy(np.stack(filled)).float()


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
    # One view at a time: all its maps then stay in the processor's cache.
    pairs = zip(pred.permute(0, 3, 1, 2), ref.permute(0, 3, 1, 2), strict=True)
    return torch.stack([torch.from_numpy(_ssim_map(*(v.double().numpy(force=True) for v in pair))) for pair in pairs])


def _ssim_map(x: Floats, y: Floats) -> Floats:
    """[3,h,w] of two pictures [3,h,w]."""
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x = np.maximum(_local_mean(x * x) - mean_x**2, 0)
    variance_y = np.maximum(_local_mean(y * y) - mean_y**2, 0)
    covariance = _local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with the data range L = 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _local_mean(image: Floats) -> Floats:
    """Under the Gaussian window, which is separable; borders reflected without repeating the outermost pixel."""
    reach = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-(reach**2) / (2 * SSIM_SIGMA**2))
    for axis in (-2, -1):
        image = ndimage.correlate1d(image, window / window.sum(), axis, mode="mirror")
    return image


def _decibel(mse: Tensor) -> Tensor:
    return (-10 * torch.log10(mse)).clamp_max(MAX_PSNR)


def _same_shape(pred: Tensor, ref: Tensor) -> None:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and reference {tuple(ref.shape)} differ in shape")
