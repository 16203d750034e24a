"""trimesh as the reader of PLY, STL and OFF, and its meshes as parts."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.resolvers import Resolver
from trimesh.visual import TextureVisuals

from nova3d.images import srgb_to_linear
from nova3d.rendering.file_access import LIMITS, Folder, Limits, decode_picture, read_regular, shorten
from nova3d.rendering.parts import FileFacts, Material, Part, Scene

_TEXTURE = re.compile(rb"^comment TextureFile\s+(.+?)\s*$", re.MULTILINE)


class _Beside(Resolver):
    """Gives trimesh the files of the mesh's folder, and none else."""

    def __init__(self, folder: Folder, limits: Limits):
        self.folder, self.limits = folder, limits

    def get(self, key: str) -> bytes:
        found = self.folder.find(key)
        if found is None:
            raise FileNotFoundError(key)
        content = read_regular(found, self.limits.file_bytes)
        decode_picture(content, self.limits)  # refuses what is too large before trimesh opens it
        return content

    def write(self, name: str, data: Any) -> None:
        raise NotImplementedError

    def namespaced(self, namespace: str) -> "_Beside":
        return self

    def keys(self) -> list[str]:
        return []


def read_with_trimesh(path: Path, limits: Limits = LIMITS) -> Scene:
    """Read a PLY, STL or OFF file.

    Args:
        path: the file.
        limits: what it may cost.

    Returns:
        Its parts.

    Raises:
        InputError: where the file or its picture cannot be read.
        Exception: of any kind, where trimesh cannot parse it.
    """
    content = read_regular(path, limits.file_bytes)
    resolver = _Beside(Folder(path), limits)
    # process=False: welding would merge vertices across UV seams and hard edges.
    loaded = trimesh.load_scene(
        io.BytesIO(content), file_type=path.suffix.lower()[1:], resolver=resolver, process=False
    )
    shapes = [shape for shape in loaded.geometry.values() if isinstance(shape, trimesh.Trimesh) and len(shape.faces)]
    triangles = sum(len(shape.faces) for shape in shapes)
    if triangles > limits.triangles:
        raise ValueError(f"it has {triangles} triangles; at most {limits.triangles} are read")
    # None of these formats has a material besides a picture; trimesh would put grey in its place.
    parts = [
        part_of(shape, Material(picture=material_of(getattr(shape.visual, "material", None)).picture))
        for shape in shapes
    ]
    missing: tuple[str, ...] = ()
    named = _TEXTURE.search(content[: content.find(b"end_header")]) if path.suffix.lower() == ".ply" else None
    if named and parts and all(part.material.picture is None for part in parts):
        name = shorten(named.group(1).decode(errors="replace"))
        missing = (f"'{name}': it cannot be read, or the mesh has no coordinates for it",)
    return Scene(parts, FileFacts(missing_textures=missing))


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
        colours = _linear(visual.vertex_colors)
    elif visual.kind == "face":
        corners = faces.reshape(-1)
        positions, normals = positions[corners], None if normals is None else normals[corners]
        colours = np.repeat(_linear(visual.face_colors), 3, axis=0)
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


def _linear(colours: Any) -> NDArray[np.float64]:
    """sRGB [n,4] uint8 as linear RGBA."""
    values = np.asarray(colours, np.float64) / 255
    values[:, :3] = srgb_to_linear(torch.from_numpy(values[:, :3])).numpy()
    return values
