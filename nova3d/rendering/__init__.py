"""Render engines: a mesh file and cameras in, a ViewSet out."""

from contextlib import closing
from pathlib import Path

import torch

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.rendering.engine import EngineConfig, make_engine
from nova3d.rendering.raster import Light
from nova3d.views import ViewSet


def render_object(
    mesh_path: str | Path,
    cameras: Cameras,
    engine: str = "raster",
    *,
    supersample: int = 3,
    light: Light = "studio",
    normalise: bool = True,
    device: torch.device | str = "cpu",
) -> ViewSet:
    """Render a mesh file into a ViewSet on the CPU: RGB on white, world normals, coverage.

    `engine`: a name that `make_engine` knows; "blender" starts Blender for this one object, at its default samples.
    `normalise` centres the mesh and scales its longest side to 1. Raises InputError where the mesh cannot be loaded or
    drawn, naming the file.
    """
    config = EngineConfig(engine, str(device), light, supersample, threads=0)
    with closing(make_engine(config, normalise)) as made:
        rendered = made.render(Path(mesh_path), cameras, lambda done: None)
    return ViewSet(images.composite(rendered.rgba), rendered.normals, rendered.rgba[..., 3], cameras.to("cpu"))
