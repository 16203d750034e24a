"""Made-up household objects with printed surfaces, drawn by number."""

from nova3d.data.procedural.objects import KINDS, make_object

__all__ = ["KINDS", "make_object"]
