"""Render engines: a mesh file and cameras in, a ViewSet out."""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.rendering.objects import render_object

__all__ = ["render_object"]
__getattr__, __dir__ = lazy.exports(__name__, {"objects": ["render_object"]})
