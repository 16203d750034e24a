"""Evaluation: metrics on views and meshes, protocols, floors and tables. It knows nothing of how anything was made."""

from nova3d.evaluation.meshes import chamfer, f_score, load_mesh, normal_consistency, volume_iou
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.scoring import score
from nova3d.evaluation.tables import Table
from nova3d.evaluation.views import foreground_psnr, mask_iou, normal_angle, psnr, ssim

__all__ = [
    "Protocol",
    "Table",
    "chamfer",
    "f_score",
    "foreground_psnr",
    "load_mesh",
    "mask_iou",
    "normal_angle",
    "normal_consistency",
    "psnr",
    "score",
    "ssim",
    "volume_iou",
]
