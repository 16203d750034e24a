"""Evaluation of views and meshes of any method under protocols.

docs/reference/protocols.md describes the protocols one by one.
"""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.evaluation.comparison import Comparison, compare
    from nova3d.evaluation.mesh_metrics import chamfer, f_score, load_mesh, normal_consistency, read_surface, volume_iou
    from nova3d.evaluation.protocols import Protocol
    from nova3d.evaluation.published import Published
    from nova3d.evaluation.scorer import score, score_methods
    from nova3d.evaluation.tables import Table
    from nova3d.metrics import (
        foreground_psnr,
        foreground_ssim,
        mask_iou,
        normal_angle,
        psnr,
        psnr_union,
        registered_psnr,
        ssim,
        task_iou,
    )
    from nova3d.metrics.perceptual import ClipSimilarity, Lpips, WeightsUnavailable

__all__ = [
    "ClipSimilarity",
    "Comparison",
    "Lpips",
    "Protocol",
    "Published",
    "Table",
    "WeightsUnavailable",
    "chamfer",
    "compare",
    "f_score",
    "foreground_psnr",
    "foreground_ssim",
    "load_mesh",
    "mask_iou",
    "normal_angle",
    "normal_consistency",
    "psnr",
    "psnr_union",
    "read_surface",
    "registered_psnr",
    "score",
    "score_methods",
    "ssim",
    "task_iou",
    "volume_iou",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "comparison": ["Comparison", "compare"],
        "mesh_metrics": ["chamfer", "f_score", "load_mesh", "normal_consistency", "read_surface", "volume_iou"],
        "protocols": ["Protocol"],
        "published": ["Published"],
        "scorer": ["score", "score_methods"],
        "tables": ["Table"],
        "nova3d.metrics": [
            "foreground_psnr",
            "foreground_ssim",
            "mask_iou",
            "normal_angle",
            "psnr",
            "psnr_union",
            "registered_psnr",
            "ssim",
            "task_iou",
        ],
        "nova3d.metrics.perceptual": ["ClipSimilarity", "Lpips", "WeightsUnavailable"],
    },
)
