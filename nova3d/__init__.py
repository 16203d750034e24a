"""nova3d: one picture to 16 consistent views, 16 normal maps and a textured mesh.

The names below load their modules on first use, so that configs, `--help` and errors stay fast.
"""

from typing import TYPE_CHECKING

from nova3d.utils import lazy

if TYPE_CHECKING:
    from nova3d.cameras import Cameras as Cameras
    from nova3d.data import render_object as render_object
    from nova3d.errors import InputError as InputError
    from nova3d.fusion import reconstruct as reconstruct
    from nova3d.generation import generate as generate
    from nova3d.models.unet import NovaUNet as NovaUNet
    from nova3d.pipeline import Nova3DPipeline as Nova3DPipeline
    from nova3d.views import ViewSet as ViewSet

__version__ = "0.1.0"

__all__ = [
    "Cameras",
    "InputError",
    "Nova3DPipeline",
    "NovaUNet",
    "ViewSet",
    "__version__",
    "generate",
    "reconstruct",
    "render_object",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "cameras": ["Cameras"],
        "data": ["render_object"],
        "errors": ["InputError"],
        "fusion": ["reconstruct"],
        "generation": ["generate"],
        "models.unet": ["NovaUNet"],
        "pipeline": ["Nova3DPipeline"],
        "views": ["ViewSet"],
    },
)
