"""From meshes to training samples."""

from nova3d.data.multiview import MultiViewDataset
from nova3d.rendering import render_object

__all__ = ["MultiViewDataset", "render_object"]
