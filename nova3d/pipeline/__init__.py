"""The sampling pipeline: one picture to 16 RGB views and 16 normal maps."""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.pipeline.outputs import Nova3DOutput
    from nova3d.pipeline.pipeline import Nova3DPipeline

__all__ = ["Nova3DOutput", "Nova3DPipeline"]
__getattr__, __dir__ = lazy.exports(__name__, {"outputs": ["Nova3DOutput"], "pipeline": ["Nova3DPipeline"]})
