"""nova3d: one picture to 16 consistent views, 16 normal maps and a textured mesh.

The heavy rooms load on first use, so that configs, `--help` and errors stay fast.
"""

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Nova3DPipeline": "nova3d.pipeline",
    "NovaUNet": "nova3d.models.unet",
    "ViewSet": "nova3d.views",
    "Cameras": "nova3d.cameras",
}
__all__ = ["Cameras", "Nova3DPipeline", "NovaUNet", "ViewSet", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nova3d' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
