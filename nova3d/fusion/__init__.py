"""De-conflicting geometry fusion (paper III): views with normals in, a textured mesh out."""

from nova3d.fusion.config import FusionConfig
from nova3d.fusion.reconstruction import FusionResult, reconstruct

__all__ = ["FusionConfig", "FusionResult", "reconstruct"]
