"""Metrics on pictures: for validation during training and for evaluation.

Images are float [0,1], [n,h,w,3]; masks are coverage in [0,1], [n,h,w], foreground above 1/2. Every function is a pure
function of tensors. A protocol decides which views are scored and what is averaged.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images import MATTE_DISTANCE, composite

Floats = NDArray[np.float64]

MAX_PSNR = 100.0  # dB, what equal images score, so that means stay finite
NORMAL_WITHIN_DEG = (11.25, 22.5, 30.0)  # the usual thresholds of surface-normal benchmarks
_SHORT_NORMAL = 0.2  # up to it a generated normal is background; chosen on held-out training objects
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels
INPUT_SIZE = 512  # pixels of a side, at which a mesh is compared with the picture that it was made from


def psnr(pred: Tensor, ref: Tensor) -> Tensor:
    """PSNR over whole images, data range 1. Nothing is rounded to 8 bits.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].

    Returns:
        float [n], dB; equal images score MAX_PSNR.

    Raises:
        ValueError: where the shapes differ. All metrics here do so.
    """
    _same_shape(pred, ref)
    return _decibel((pred - ref).square().flatten(1).mean(dim=1))


def foreground_psnr(pred: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """PSNR over the pixels of the reference's silhouette.

    Pixels outside that silhouette do not count, so masks that are too large are rewarded. Read it beside
    `mask_iou` and `psnr_union`.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].
        mask: the reference's coverage [n,h,w] in [0,1]; pixels above 1/2 count.

    Returns:
        float [n], dB; nan where no pixel counts.
    """
    return _psnr_among(pred, ref, mask > 0.5)


def psnr_union(pred: Tensor, ref: Tensor, pred_mask: Tensor, ref_mask: Tensor) -> Tensor:
    """PSNR over the union of both silhouettes.

    The mean squared error runs over the pixels where either mask exceeds 1/2. So the white background, which both
    sides share, does not raise the score, and a pixel outside the reference's silhouette is an error like one inside
    it. `foreground_psnr` ignores the latter: a prediction that spills over the true outline loses nothing there.

    Args:
        pred: predicted images [n,h,w,3] on white, float in [0,1].
        ref: reference images [n,h,w,3] on white, float in [0,1].
        pred_mask: the prediction's coverage [n,h,w] in [0,1].
        ref_mask: the reference's coverage [n,h,w] in [0,1].

    Returns:
        float [n], dB; nan where both masks are empty.
    """
    return _psnr_among(pred, ref, (pred_mask > 0.5) | (ref_mask > 0.5))


def _psnr_among(pred: Tensor, ref: Tensor, counted: Tensor) -> Tensor:
    """PSNR [n] of images [n,h,w,3] over the pixels that `counted` [n,h,w] bool marks; nan where there are none."""
    _same_shape(pred, ref)
    weight = counted.to(pred)
    error = ((pred - ref).square().mean(dim=-1) * weight).flatten(1).sum(dim=1)
    return _decibel(error / weight.flatten(1).sum(dim=1))


def pooled_psnr_union(pred: Tensor, ref: Tensor, pred_mask: Tensor, ref_mask: Tensor) -> float:
    """`psnr_union` with one mean squared error over the pixels of all n views together, and without a bound.

    Args:
        pred: predicted images [n,h,w,3] on white, float in [0,1].
        ref: reference images [n,h,w,3] on white, float in [0,1].
        pred_mask: the prediction's coverage [n,h,w] in [0,1].
        ref_mask: the reference's coverage [n,h,w] in [0,1].

    Returns:
        dB; nan where both masks are empty in every view.
    """
    _same_shape(pred, ref)
    union = (pred_mask > 0.5) | (ref_mask > 0.5)
    return float(-10 * torch.log10((pred - ref)[union].square().mean()))


def psnr_u8(pred: Tensor, ref: Tensor) -> Tensor:
    """PSNR after rounding both to 8 bits, as of 8-bit files (EscherNet, OpenCV's PSNR); dB [n] of [n,h,w,3]."""
    return psnr(_round_to_8_bit(pred), _round_to_8_bit(ref))


def registered_psnr(pred: Tensor, ref: Tensor, max_shift: int = 4, background: float = 1.0) -> Tensor:
    """The best PSNR over all whole-pixel shifts of the prediction, for each view separately.

    Where it is far above `psnr`, the prediction is right but misplaced, as by a wrong crop, camera or half pixel.
    Every shift is scored on all h*w pixels, so the best is never below `psnr`.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].
        max_shift: the largest shift along either axis, in pixels.
        background: the grey level in [0,1] that moves in where the prediction moves out of the frame.

    Returns:
        float [n], dB.

    Raises:
        ValueError: where `max_shift` is negative or not below both sides.
    """
    _same_shape(pred, ref)
    h, w = pred.shape[1:3]
    if not 0 <= max_shift < min(h, w):
        raise ValueError(f"max_shift must be from 0 to the image's shorter side, got {max_shift} for {w}x{h}")
    padded = F.pad(pred, (0, 0, *(max_shift,) * 4), value=background)
    # One view at a time, so that all its shifts fit the processor's cache.
    return torch.cat([_best_shift(padded[i : i + 1], ref[i : i + 1]) for i in range(len(ref))])


def _best_shift(padded: Tensor, ref: Tensor) -> Tensor:
    """[1] the best PSNR of the windows of `padded` [1,h+2s,w+2s,3] against `ref` [1,h,w,3]."""
    h, w = ref.shape[1:3]
    shifts = range(padded.shape[1] - h + 1)
    errors = ((padded[:, y : y + h, x : x + w] - ref).square().flatten(1).mean(dim=1) for y in shifts for x in shifts)
    return _decibel(torch.stack(list(errors)).amin(dim=0))


def ssim(pred: Tensor, ref: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, data range 1, borders reflected.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].

    Returns:
        float [n], SSIM, averaged over pixels and channels; at most 1.

    Raises:
        InputError: where the images are smaller than the window.
    """
    return _local_ssim(pred, ref).flatten(1).mean(dim=1).to(pred)


def foreground_ssim(pred: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """The local SSIM of `ssim`, averaged over the pixels of the reference's silhouette.

    The window of a pixel near the silhouette reaches 5 pixels beyond it. So a wrong outline counts here, unlike in
    `foreground_psnr`.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].
        mask: the reference's coverage [n,h,w] in [0,1]; pixels above 1/2 count.

    Returns:
        float [n], SSIM; nan where no pixel counts.

    Raises:
        InputError: where the images are smaller than the window.
    """
    local = _local_ssim(pred, ref).mean(dim=1)
    inside = (mask > 0.5).to(local)
    return ((local * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)).to(pred)


def ssim_own_range(pred: Tensor, ref: Tensor) -> Tensor:
    """SSIM with the data range of each pair (SyncDreamer, HarmonyView): [n] of [n,h,w,3] in [0,1].

    The range is the larger of the two spreads, torchmetrics' choice where none is given. It equals `ssim` where a
    picture holds black and white, and is stricter elsewhere: SSIM with range r is SSIM with range 1 of the pictures
    divided by r. Two flat pictures, where the original divides zero by zero, are taken at range 1.
    """
    return ssim(*_on_own_range(pred, ref))


def ssim_own_range_cropped(pred: Tensor, ref: Tensor) -> Tensor:
    """`ssim_own_range` without the 5 pixels along the border, as torchmetrics averaged before its version 1.5.0.

    Published rows of SyncDreamer's script were computed so. On pictures with a white border, where every local SSIM is
    1, the uncropped mean is higher.

    Args:
        pred: predicted images [n,h,w,3], float in [0,1].
        ref: reference images [n,h,w,3], float in [0,1].

    Returns:
        float [n], SSIM.

    Raises:
        InputError: where the images are smaller than the window.
    """
    reach = SSIM_WINDOW // 2
    local = _local_ssim(*_on_own_range(pred, ref))[..., reach:-reach, reach:-reach]
    return local.flatten(1).mean(dim=1).to(pred)


def ssim_uniform7_u8(pred: Tensor, ref: Tensor) -> Tensor:
    """scikit-image's default SSIM of 8-bit pictures (EscherNet): [n] of [n,h,w,3] in [0,1].

    Its window is uniform, 7x7, with the sample covariance.
    """
    from skimage.metrics import structural_similarity  # slow to import, and training needs the other metrics only

    pairs = zip(_bytes(pred), _bytes(ref), strict=True)
    return torch.tensor([float(structural_similarity(a, b, channel_axis=2)) for a, b in pairs])


def mask_iou(pred: Tensor, ref: Tensor) -> Tensor:
    """Intersection over union of masks of pictures, or of solids on a voxel grid, each cut at 1/2.

    Args:
        pred: [n,h,w] or [n,z,y,x], float in [0,1] or bool.
        ref: [n,h,w] or [n,z,y,x], float in [0,1] or bool.

    Returns:
        [n] in [0,1], 1 where both are empty.
    """
    _same_shape(pred, ref)
    a, b = (pred > 0.5).flatten(1), (ref > 0.5).flatten(1)
    union = (a | b).sum(dim=1)
    return torch.where(union > 0, (a & b).sum(dim=1) / union.clamp_min(1), 1.0)


def input_iou(drawn: Tensor, picture: Tensor) -> float:
    """How well a mesh has the outline of the picture that it was made from.

    Args:
        drawn: [h,w,4] float in [0,1], straight alpha; the mesh as the picture's own camera sees it, INPUT_SIZE pixels a
            side.
        picture: the framed picture, [h,w,4] float in [0,1], straight alpha.

    Returns:
        `mask_iou` of the two alphas, in [0,1].
    """
    return float(mask_iou(drawn[None, ..., 3], picture[None, ..., 3]))


def input_psnr(drawn: Tensor, picture: Tensor) -> float:
    """How well a mesh has the colours of the picture that it was made from.

    Args:
        drawn: [h,w,4] float in [0,1], straight alpha; the mesh as the picture's own camera sees it under flat light,
            INPUT_SIZE pixels a side.
        picture: the framed picture, [h,w,4] float in [0,1], straight alpha.

    Returns:
        `foreground_psnr` of the two on white, over the picture's object, in dB. Where the mesh is missing, white is
        compared with the picture.
    """
    return float(foreground_psnr(composite(drawn)[None], composite(picture)[None], picture[None, ..., 3]))


def count_parts(mask: Tensor) -> int:
    """Number of connected parts of a mask, without specks.

    Args:
        mask: [h,w] coverage in [0,1], cut at 1/2.

    Returns:
        The number of its parts, joined along sides and corners. Parts below a thousandth of the mask do not count.
    """
    inside = (mask > 0.5).numpy(force=True)
    labels, _ = ndimage.label(inside, structure=np.ones((3, 3)))
    areas = np.bincount(labels[inside])
    return int((areas > inside.sum() / 1000).sum())


def task_iou(rgb: Tensor, normals: Tensor) -> Tensor:
    """Agreement of the colours and the normals of one prediction: IoU of their outlines.

    Holes are filled on both sides, since a hole and a white patch look alike in colours. Give both maps as the network
    drew them, before one is cut out by the other. True views score below 1 where an object is white at its outline,
    so read the value beside theirs.

    Args:
        rgb: images [n,h,w,3] in [0,1] on white. A pixel is inside where a channel differs from white by more than
            `images.MATTE_DISTANCE`.
        normals: normal maps [n,h,w,3], float, zero on background. A pixel is inside where the normal is longer than
            1/5: a network's normals are short where it is uncertain, and at 1/2 their outline is too small.

    Returns:
        IoU [n] in [0,1].
    """
    _same_shape(rgb, normals)
    return mask_iou(_outline((1 - rgb).amax(dim=-1) > MATTE_DISTANCE), _outline(normals.norm(dim=-1) > _SHORT_NORMAL))


def _outline(inside: Tensor) -> Tensor:
    """The masks [n,h,w] with their holes filled, as float."""
    filled = [ndimage.binary_fill_holes(mask) for mask in inside.numpy(force=True)]
    return torch.from_numpy(np.stack(filled)).float()


def normal_angle(pred: Tensor, ref: Tensor, mask: Tensor) -> dict[str, float]:
    """Angles between two normal maps of one frame, pooled over all n views.

    A pixel counts where both maps hold a normal (length above 1/2) and the reference's mask exceeds 1/2. Read it beside
    `mask_iou`, which measures how much of the surface that was.

    Args:
        pred: predicted normals [n,h,w,3], float, unit vectors, zero on background.
        ref: reference normals [n,h,w,3], float, unit vectors, zero on background, in the same frame.
        mask: the reference's coverage [n,h,w] in [0,1].

    Returns:
        `mean` and `median` in degrees, and `within_11.25`, `within_22.5`, `within_30` as shares in [0,1]. All are nan
        where no pixel counts.
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
    """[n,3,h,w] in double: a flat patch's variance, a difference of two squares, is lost to float's rounding."""
    _same_shape(pred, ref)
    h, w = pred.shape[1:3]
    if min(h, w) < SSIM_WINDOW:
        raise InputError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {w}x{h}; render larger views")
    # One view at a time, so that all its maps fit the processor's cache.
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


def _on_own_range(pred: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair divided by the larger of its two spreads; two flat pictures stay as they are."""
    spread = torch.maximum(_spread(pred), _spread(ref))
    spread = torch.where(spread > 0, spread, 1.0)
    return pred / spread, ref / spread


def _spread(pictures: Tensor) -> Tensor:
    flat = pictures.flatten(1)
    return (flat.amax(dim=1) - flat.amin(dim=1))[:, None, None, None]


def _round_to_8_bit(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round() / 255


def _bytes(pictures: Tensor) -> NDArray[np.uint8]:
    return (pictures.clamp(0, 1) * 255).round().byte().numpy(force=True)


def _decibel(mse: Tensor) -> Tensor:
    return (-10 * torch.log10(mse)).clamp_max(MAX_PSNR)


def _same_shape(pred: Tensor, ref: Tensor) -> None:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and reference {tuple(ref.shape)} differ in shape")
