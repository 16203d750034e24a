"""Image metrics as other codebases compute them, for their protocols only. Pictures are float [0,1], [n,h,w,3]."""

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from nova3d.metrics import psnr, ssim


def psnr_u8(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] PSNR in dB after rounding both to 8 bits, as of 8-bit files (EscherNet, OpenCV's PSNR)."""
    return psnr(_rounded(pred), _rounded(ref))


def ssim_own_range(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] SSIM with the data range of each pair itself: the larger of the two spreads (SyncDreamer, HarmonyView).

    That is torchmetrics' choice where none is given. It is `ssim` where a picture has black and white; else, as SSIM
    with range r is SSIM with range 1 of pictures divided by r, it is stricter. Two flat pictures, where the original
    divides zero by zero, are taken at range 1.
    """
    spread = torch.maximum(_spread(pred), _spread(ref))
    spread = torch.where(spread > 0, spread, 1.0)
    return ssim(pred / spread, ref / spread)


def ssim_uniform7_u8(pred: Tensor, ref: Tensor) -> Tensor:
    """[n] scikit-image's default SSIM of 8-bit pictures: uniform 7x7 window, sample covariance (EscherNet)."""
    pairs = zip(_bytes(pred), _bytes(ref), strict=True)
    return torch.tensor([float(structural_similarity(a, b, channel_axis=2)) for a, b in pairs])


def _spread(pictures: Tensor) -> Tensor:
    flat = pictures.flatten(1)
    return (flat.amax(dim=1) - flat.amin(dim=1))[:, None, None, None]


def _rounded(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round() / 255


def _bytes(pictures: Tensor) -> NDArray[np.uint8]:
    return (pictures.clamp(0, 1) * 255).round().byte().numpy(force=True)
