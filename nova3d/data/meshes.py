"""Loading a textured mesh from GLB, OBJ or PLY into flat tensors, or refusing it with the reason."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images import linear_to_srgb


@dataclass(frozen=True)
class Mesh:
    """A triangle soup with per-face materials.

    vertices [n,3] float32; faces [f,3] int64; normals [n,3] unit; uv [n,2] (origin at the texture's lower left);
    colours [n,3] sRGB [0,1] multiplied onto the texture; face_material [f] int64 into textures, each [h,w,3] sRGB
    [0,1]; has_normals: whether the file carried vertex normals (otherwise they are the faces').
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    uv: Tensor
    colours: Tensor
    face_material: Tensor
    textures: tuple[Tensor, ...]
    has_normals: bool

    def to(self, device: torch.device | str) -> "Mesh":
        moved = {k: getattr(self, k).to(device) for k in _TENSORS}
        return replace(self, **moved, textures=tuple(t.to(device) for t in self.textures))

    def normalised(self) -> "Mesh":
        """The same mesh centred by its faces' bounding box, longest side 1 (DESIGN: the object frame)."""
        used = self.vertices[self.faces.flatten().unique()]  # a stray vertex is not part of the object
        low, high = used.min(dim=0).values, used.max(dim=0).values
        return replace(self, vertices=(self.vertices - (low + high) / 2) / (high - low).max())


_TENSORS = ("vertices", "faces", "normals", "uv", "colours", "face_material")


def load_mesh(path: str | Path) -> Mesh:
    """Read a mesh file. glTF's frame (+Y up, +Z front) is taken as it is; nothing is welded or repaired.

    Raises InputError where the file is missing, unreadable, has no triangles, has NaN or has no extent.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"mesh '{path}' does not exist")
    try:
        # process=False: welding would merge vertices across UV seams and hard edges.
        scene = trimesh.load_scene(path, process=False)
        parts = _parts(scene)
    except Exception as error:  # parsers of foreign files raise anything
        raise InputError(f"mesh '{path}' cannot be read: {type(error).__name__}: {error}") from error
    if not parts:
        raise InputError(f"mesh '{path}' has no triangles")
    # glTF's COLOR_0 is linear light; every other format stores what a screen shows.
    mesh = from_trimesh(parts, linear_colours=path.suffix.lower() in (".glb", ".gltf"))
    if not torch.isfinite(mesh.vertices).all():
        raise InputError(f"mesh '{path}' has vertices that are not finite numbers")
    used = mesh.vertices[mesh.faces.flatten().unique()]
    if (used.max(dim=0).values - used.min(dim=0).values).max() <= 1e-12:
        raise InputError(f"mesh '{path}' has no extent: all its vertices coincide")
    return mesh


def _parts(scene: trimesh.Scene) -> list[trimesh.Trimesh]:
    """The scene's meshes in its world frame. `Scene.dump` would drop the vertex normals that the file carries."""
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            parts.append(part.copy(include_cache=True).apply_transform(transform))
    return parts


def from_trimesh(parts: list[trimesh.Trimesh], linear_colours: bool = False) -> Mesh:
    """Concatenate trimesh parts (same frame) into one Mesh; `linear_colours`: vertex colours are linear light."""
    pieces: list[dict[str, Any]] = []
    textures: list[Tensor] = []
    offset = 0
    for part in parts:
        has_normals = "vertex_normals" in part._cache  # set by the loaders from the file, else computed on demand
        vertices, faces = np.asarray(part.vertices), np.asarray(part.faces)
        uv, texture, colours = _appearance(part, linear_colours)
        if has_normals:
            normals = np.asarray(part.vertex_normals)
        else:  # glTF: without normals, flat shading; every face gets its own vertices
            corners = faces.reshape(-1)
            vertices, uv, colours = vertices[corners], uv[corners], colours[corners]
            faces = np.arange(len(corners)).reshape(-1, 3)
            normals = np.repeat(_face_normals(vertices, faces), 3, axis=0)
        pieces.append(
            {
                "vertices": vertices,
                "faces": faces + offset,
                "normals": normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12),
                "uv": uv,
                "colours": colours,
                "face_material": np.full(len(faces), len(textures)),
                "has_normals": has_normals,
            }
        )
        textures.append(texture)
        offset += len(vertices)
    floats, ints = ("vertices", "normals", "uv", "colours"), ("faces", "face_material")
    stacked = {k: torch.from_numpy(np.concatenate([p[k] for p in pieces])).float() for k in floats}
    stacked |= {k: torch.from_numpy(np.concatenate([p[k] for p in pieces])).long() for k in ints}
    return Mesh(**stacked, textures=tuple(textures), has_normals=all(p["has_normals"] for p in pieces))


def _appearance(part: trimesh.Trimesh, linear_colours: bool) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """uv [n,2], texture [h,w,3] and vertex colours [n,3] of one part; white where it has none."""
    count = len(part.vertices)
    uv, colours = np.zeros((count, 2)), np.ones((count, 3))
    texture = torch.ones(1, 1, 3)
    visual: Any = part.visual
    if isinstance(visual, trimesh.visual.TextureVisuals):
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        factor = getattr(material, "baseColorFactor", None)
        if factor is None and image is None:
            factor = getattr(material, "diffuse", None)
        if isinstance(image, Image.Image) and visual.uv is not None:
            texture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255
            uv = np.asarray(visual.uv)[:, :2]
        if factor is not None:
            tint = np.asarray(factor, dtype=np.float64)[:3]
            # trimesh stores factors as uint8; glTF's factor is linear, our colours are sRGB.
            linear = tint / 255 if tint.max() > 1 or np.asarray(factor).dtype == np.uint8 else tint
            colours = np.broadcast_to(linear_to_srgb(torch.from_numpy(linear)).numpy(), (count, 3)).copy()
    elif visual.kind in ("vertex", "face"):
        if visual.kind == "vertex":
            colours = np.asarray(visual.vertex_colors)[:, :3] / 255
            colours = linear_to_srgb(torch.from_numpy(colours)).numpy() if linear_colours else colours
        else:
            colours = np.ones((count, 3))
            colours[np.asarray(part.faces).reshape(-1)] = np.repeat(np.asarray(visual.face_colors)[:, :3] / 255, 3, 0)
    return uv, texture, colours


def _face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
