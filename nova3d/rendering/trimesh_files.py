"""Reads STL by trimesh, and converts its meshes to parts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals

from nova3d.rendering.file_access import LIMITS, Limits, read_regular
from nova3d.rendering.parts import Material, Part, Scene, srgb_colours


def read_stl(path: Path, limits: Limits = LIMITS) -> Scene:
    """Read an STL file, whose colours are of no standard and left out.

    Args:
        path: the file.
        limits: what it may cost.

    Returns:
        Its solids, a part each.

    Raises:
        InputError: where the file cannot be read.
        Exception: of any kind, where trimesh cannot parse it.
    """
    content = io.BytesIO(read_regular(path, limits.file_bytes))
    # process=False: what is doubled in the file stays doubled.
    loaded = trimesh.load_scene(content, file_type="stl", process=False)
    shapes = [shape for shape in loaded.geometry.values() if isinstance(shape, trimesh.Trimesh) and len(shape.faces)]
    triangles = sum(len(shape.faces) for shape in shapes)
    if triangles > limits.triangles:
        raise ValueError(f"it has {triangles} triangles; at most {limits.triangles} are read")
    # Normals of STL are those of its faces.
    return Scene([Part(np.asarray(s.vertices), np.asarray(s.faces), Material()) for s in shapes])


def part_of(mesh: trimesh.Trimesh, material: Material | None = None) -> Part:
    """A trimesh mesh as a part. Its colours are taken to be sRGB.

    Args:
        mesh: the mesh, in the frame of the scene.
        material: its material where another part shares it; None makes one.

    Returns:
        The part.
    """
    positions, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    # Set where the file or the maker of the mesh gave normals; otherwise trimesh computes them on demand.
    normals = np.asarray(mesh.vertex_normals) if "vertex_normals" in mesh._cache else None
    visual: Any = mesh.visual
    uv, colours = None, None
    if isinstance(visual, TextureVisuals):
        material = material or material_of(visual.material)
        if material.picture is not None:
            uv = np.zeros((len(positions), 2)) if visual.uv is None else np.asarray(visual.uv)[:, :2]
    elif visual.kind == "vertex":
        colours = srgb_colours(np.asarray(visual.vertex_colors) / 255)
    elif visual.kind == "face":
        corners = faces.reshape(-1)
        positions, normals = positions[corners], None if normals is None else normals[corners]
        colours = np.repeat(srgb_colours(np.asarray(visual.face_colors) / 255), 3, axis=0)
        faces = np.arange(len(corners)).reshape(-1, 3)
    return Part(positions, faces, material or Material(), normals, uv, colours)


def material_of(given: Any) -> Material:
    """A trimesh material, PBR or simple."""
    picture = getattr(given, "baseColorTexture", None) or getattr(given, "image", None)
    pixels = np.asarray(picture.convert("RGBA")) if isinstance(picture, Image.Image) else None
    factor = getattr(given, "baseColorFactor", None)
    if factor is None and pixels is None:
        factor = getattr(given, "diffuse", None)
    values = np.ones(4)
    if factor is not None:
        given_values = np.asarray(factor, np.float64)
        # trimesh stores factors as uint8
        scaled = given_values / 255 if given_values.max() > 1 or np.asarray(factor).dtype == np.uint8 else given_values
        values[: len(scaled)] = scaled
    mode = getattr(given, "alphaMode", None)
    cutoff = getattr(given, "alphaCutoff", None)
    return Material(
        factor=(float(values[0]), float(values[1]), float(values[2]), float(values[3])),
        picture=pixels,
        alpha_mode=mode if mode in ("MASK", "BLEND") else "OPAQUE",
        cutoff=0.5 if cutoff is None else float(cutoff),
    )
