"""From meshes to training samples."""

from nova3d.data.render import render_object

__all__ = ["render_object"]
