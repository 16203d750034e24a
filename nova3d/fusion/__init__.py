"""De-conflicting geometry fusion (paper III): views with normals in, a textured mesh out."""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.fusion.config import FusionConfig
    from nova3d.fusion.reconstruction import FusionResult, reconstruct

__all__ = ["FusionConfig", "FusionResult", "reconstruct"]
__getattr__, __dir__ = lazy.exports(
    __name__, {"config": ["FusionConfig"], "reconstruction": ["FusionResult", "reconstruct"]}
)
