"""The sampling pipeline: one picture to 16 RGB views and 16 normal maps."""

from nova3d.pipeline.outputs import Nova3DOutput
from nova3d.pipeline.pipeline import Nova3DPipeline

__all__ = ["Nova3DOutput", "Nova3DPipeline"]
