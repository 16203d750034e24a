"""`render_object`: draws one mesh file with an engine that is made for the call."""

from contextlib import closing
from pathlib import Path

import torch

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.choices import Light
from nova3d.rendering.engine import EngineConfig, make_engine
from nova3d.rendering.meshes import require_textures
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
    """Render a mesh file into a ViewSet.

    Args:
        mesh_path: a .glb, .gltf, .obj or .ply file.
        cameras: v cameras.
        engine: a name that `make_engine` accepts. "blender" starts Blender for this one object.
        supersample: samples per pixel and axis (raster).
        light: "studio", or "flat" for the base colour.
        normalise: centre the mesh and scale its longest side to 1.
        device: where the engine renders.

    Returns:
        v views on the CPU: RGB on white, world normals, coverage.

    Raises:
        InputError: naming the file, where the mesh cannot be loaded or drawn, or lacks one of its textures.
    """
    config = EngineConfig(engine, str(device), light, supersample, threads=None)
    with closing(make_engine(config, normalise)) as renderer:
        rendered = renderer.render(Path(mesh_path), cameras, lambda views: None)
    if rendered.mesh is not None:
        require_textures(rendered.mesh, str(mesh_path))
    rgb, mask, rig = images.composite(rendered.rgba), rendered.rgba[..., 3], cameras.to("cpu")
    return ViewSet(rgb, rendered.normals, mask, rig, trusted=(True,) * len(rig))
