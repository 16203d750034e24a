"""Textured meshes as pictures: prediction and reference are drawn in the same way for image metrics.

Flat light shows the base colour: shading, which depends on shape alone, is not scored twice. Highlights and shadows
that a prediction baked into its texture count as errors.
"""

from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from nova3d import images
from nova3d.cameras import ORTHO_SPAN, Cameras, look_from, preset
from nova3d.errors import InputError
from nova3d.evaluation.protocols import SPHERE, TextureRules
from nova3d.rendering.meshes import Mesh, from_trimesh, load_mesh, require_textures
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet


def cameras(rules: TextureRules) -> Cameras:
    """The rig of `rules`: a preset, or 26 orthographic views of the whole sphere."""
    return sphere(rules.size) if rules.cameras == SPHERE else preset(rules.cameras, rules.size)


def sphere(size: int) -> Cameras:
    """12 orthographic views at elevation 30, 12 at -30 turned by half a step, then from straight above and below."""
    ring = torch.arange(12, dtype=torch.float64) * np.radians(30.0)
    azimuth = torch.cat([ring, ring + np.radians(15.0), torch.zeros(2, dtype=torch.float64)])
    elevation = torch.tensor([30.0] * 12 + [-30.0] * 12 + [90.0, -90.0], dtype=torch.float64).deg2rad()
    focal = size / ORTHO_SPAN
    intrinsics = torch.tensor([focal, focal, size / 2, size / 2]).repeat(len(azimuth), 1)
    return Cameras(look_from(azimuth, elevation, 1.5).float(), intrinsics, size, size, "orthographic")


def rerender(
    path: Path,
    to_unit: NDArray[np.float64],
    rules: TextureRules,
    device: torch.device | str,
    turn: NDArray[np.float64] | None = None,
) -> ViewSet:
    """The mesh file's base colours, world normals and coverage from the rig of `rules`, on white.

    to_unit: [4,4] similarity of the REFERENCE (`mesh_metrics.to_unit`), a scale and a shift, for both sides.
    turn: [3,3] rotation of the file's axes into the reference's, before that; None for none.
    Raises InputError where the file cannot be read, lacks one of its textures, or is outside all pictures.
    """
    scale = float(to_unit[0, 0])
    mesh = require_textures(load_mesh(path), str(path))
    mesh = mesh if turn is None else mesh.rotated(torch.from_numpy(turn))
    mesh = mesh.placed(scale, torch.from_numpy(-to_unit[:3, 3] / scale))
    return draw(mesh, cameras(rules), rules.supersample, str(path), device)


def draw(mesh: Mesh, rig: Cameras, supersample: int, name: str, device: torch.device | str = "cpu") -> ViewSet:
    """`mesh` under flat light; raises InputError naming it where no camera sees it."""
    try:
        raster = rasterize(mesh.to(device), rig, supersample, light="flat")
    except InputError as error:
        raise InputError(f"'{name}': {error}") from error
    rgba = raster.rgba.cpu()
    return ViewSet(images.composite(rgba), raster.normals.cpu(), rgba[..., 3], rig)


def draw_plain(mesh: trimesh.Trimesh, rig: Cameras, colour: torch.Tensor, supersample: int = 2) -> ViewSet:
    """A bare surface in one sRGB colour [3], world normals and coverage, on white."""
    plain = draw(from_trimesh([mesh]), rig, supersample, "visual hull")
    coverage = plain.mask[..., None]
    return ViewSet(colour * coverage + (1 - coverage), plain.normals, plain.mask, rig)
