"""From meshes to training samples."""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.data.multiview import MultiViewDataset
    from nova3d.rendering import render_object

__all__ = ["MultiViewDataset", "render_object"]
__getattr__, __dir__ = lazy.exports(
    __name__, {"multiview": ["MultiViewDataset"], "nova3d.rendering": ["render_object"]}
)
