"""nova3d: one picture to 16 consistent views, 16 normal maps and a textured mesh.

The names below load their modules on first use, so that configs, `--help` and errors stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nova3d.cameras import Cameras as Cameras
    from nova3d.data import render_object as render_object
    from nova3d.fusion import reconstruct as reconstruct
    from nova3d.generation import generate as generate
    from nova3d.models.unet import NovaUNet as NovaUNet
    from nova3d.pipeline import Nova3DPipeline as Nova3DPipeline
    from nova3d.views import ViewSet as ViewSet

__version__ = "0.1.0"

_MODULES = {
    "Cameras": "nova3d.cameras",
    "Nova3DPipeline": "nova3d.pipeline",
    "NovaUNet": "nova3d.models.unet",
    "ViewSet": "nova3d.views",
    "generate": "nova3d.generation",
    "reconstruct": "nova3d.fusion",
    "render_object": "nova3d.data",
}
__all__ = [
    "Cameras",
    "Nova3DPipeline",
    "NovaUNet",
    "ViewSet",
    "__version__",
    "generate",
    "reconstruct",
    "render_object",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nova3d' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
