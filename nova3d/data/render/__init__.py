"""Render engines: a mesh file and cameras in, a ViewSet out."""

from pathlib import Path

import torch

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.data.meshes import load_mesh
from nova3d.data.render.raster import Light, rasterize
from nova3d.errors import InputError
from nova3d.views import ViewSet

ENGINES = ("raster",)


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

    `normalise` centres the mesh and scales its longest side to 1. Raises InputError where the mesh cannot be
    loaded or drawn, naming the file.
    """
    if engine not in ENGINES:
        raise InputError(f"render engine '{engine}' is not one of {', '.join(ENGINES)}")
    mesh = load_mesh(mesh_path)
    mesh = (mesh.normalised() if normalise else mesh).to(device)
    try:
        raster = rasterize(mesh, cameras, supersample, light)
    except InputError as error:
        raise InputError(f"'{mesh_path}': {error}") from error
    return ViewSet(
        images.composite(raster.rgba).cpu(), raster.normals.cpu(), raster.rgba[..., 3].cpu(), cameras.to("cpu")
    )
