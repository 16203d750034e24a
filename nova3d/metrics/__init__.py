"""Metrics on pictures, normal maps and masks."""

from nova3d.metrics.registry import VIEW_METRICS, Style, ViewMetric, register
from nova3d.metrics.views import (
    INPUT_SIZE,
    MAX_PSNR,
    NORMAL_WITHIN_DEG,
    count_parts,
    foreground_psnr,
    foreground_ssim,
    input_iou,
    input_psnr,
    mask_iou,
    normal_angle,
    psnr,
    psnr_union,
    registered_psnr,
    ssim,
    task_iou,
)

__all__ = [
    "INPUT_SIZE",
    "MAX_PSNR",
    "NORMAL_WITHIN_DEG",
    "VIEW_METRICS",
    "Style",
    "ViewMetric",
    "count_parts",
    "foreground_psnr",
    "foreground_ssim",
    "input_iou",
    "input_psnr",
    "mask_iou",
    "normal_angle",
    "psnr",
    "psnr_union",
    "register",
    "registered_psnr",
    "ssim",
    "task_iou",
]
