"""Textured meshes as flat tensors: loaded from GLB, OBJ or PLY, checked, centred and scaled."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from trimesh.visual import TextureVisuals

from nova3d.images import linear_to_srgb
from nova3d.rendering.mesh_files import NO_FACTS, FileFacts, inspect_file
from nova3d.rendering.reasons import Reason, RenderError

SPECK_AREA = 1e-4  # share of the surface below which a distant piece is not part of the object
SPECK_DISTANCE = 10.0  # in radii that hold 99 % of the surface


@dataclass(frozen=True)
class Alpha:
    """The opacity of a material.

    Attributes:
        values: [h,w,1] float32 in [0,1], over the material's texture.
        cutoff: the surface is a hole where the values are less; glTF's alphaCutoff of MASK, for BLEND 1/255.
        blended: whether the values are translucency (BLEND).
    """

    values: Tensor
    cutoff: float
    blended: bool


@dataclass(frozen=True)
class Mesh:
    """A triangle soup with per-face materials.

    Attributes:
        vertices: [n,3] float32.
        faces: [f,3] int64.
        normals: [n,3] float32, unit.
        uv: [n,2] float32, origin at the texture's lower left.
        colours: [n,3] float32 in [0,1], sRGB, multiplied onto the texture.
        face_material: [f] int64, index into `textures` and `alphas`.
        textures: each [h,w,3] float32 in [0,1], sRGB.
        alphas: None where the material is opaque.
        has_normals: whether the file carried vertex normals; otherwise they are the faces'.
        file: what the file's header says; empty for a mesh that was not read from a file.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    uv: Tensor
    colours: Tensor
    face_material: Tensor
    textures: tuple[Tensor, ...]
    alphas: tuple[Alpha | None, ...]
    has_normals: bool
    file: FileFacts = NO_FACTS

    def to(self, device: torch.device | str) -> "Mesh":
        """Return the same mesh on a device."""
        moved = {k: getattr(self, k).to(device) for k in _TENSORS}
        alphas = tuple(a and replace(a, values=a.values.to(device)) for a in self.alphas)
        return replace(self, **moved, textures=tuple(t.to(device) for t in self.textures), alphas=alphas)

    def normalisation(self) -> tuple[float, Tensor]:
        """Return scale and centre [3] of the object frame; see the function `normalisation`."""
        scale, centre = normalisation(self.vertices.double().cpu().numpy(), self.faces.cpu().numpy())
        return scale, torch.from_numpy(centre)

    def normalised(self) -> "Mesh":
        """Return the mesh in the object frame: centred, its longest side 1."""
        return self.placed(*self.normalisation())

    def placed(self, scale: float, centre: Tensor) -> "Mesh":
        """Return the mesh with its vertices at (vertices - centre) * scale; centre is [3]."""
        placed = (self.vertices.double() - centre.to(self.vertices.device)) * scale
        return replace(self, vertices=placed.to(self.vertices.dtype))


_TENSORS = ("vertices", "faces", "normals", "uv", "colours", "face_material")


def load_mesh(path: str | Path) -> Mesh:
    """Read a mesh file.

    glTF's frame (+Y up, +Z front) is taken as it is. Nothing is welded or repaired. A glTF's skins and animations are
    ignored: the mesh is as its nodes place it.

    Args:
        path: a file with one of MESH_SUFFIXES.

    Returns:
        The mesh on the CPU.

    Raises:
        RenderError: where the file is missing or unreadable, compressed by what cannot be decoded, or has NaN, no
            triangles or no extent.
    """
    path = Path(path)
    file = inspect_file(path)
    compression = file.compression
    decodable = compression == "KHR_draco_mesh_compression" and importlib.util.find_spec("DracoPy") is not None
    if compression and not decodable:  # trimesh would return zeros in place of the vertices
        hint = "; `pip install DracoPy`, or the blender engine, reads it" if "draco" in compression else ""
        raise RenderError(Reason.DRACO, f"mesh '{path}' is compressed with {compression}{hint}")
    try:
        # process=False: welding would merge vertices across UV seams and hard edges.
        scene = trimesh.load_scene(path, process=False)
        parts = _parts(scene)
    except MemoryError:
        raise
    except Exception as error:  # parsers of foreign files raise anything
        message = f"mesh '{path}' cannot be read: {type(error).__name__}: {error}"
        raise RenderError(Reason.PARSE_ERROR, message) from error
    if not parts:
        raise RenderError(Reason.EMPTY_SCENE, f"mesh '{path}' has no triangles")
    # glTF's COLOR_0 is linear light; every other format stores what a screen shows.
    mesh = from_trimesh(parts, linear_colours=path.suffix.lower() in (".glb", ".gltf"))
    check_geometry(mesh.vertices.numpy(), mesh.faces.numpy(), str(path))
    return replace(mesh, file=file)


def _parts(scene: trimesh.Scene) -> list[trimesh.Trimesh]:
    """The scene's meshes in its world frame. `Scene.dump` would drop the vertex normals that the file carries."""
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            placed = part.copy(include_cache=True).apply_transform(transform)
            if isinstance(part.visual, TextureVisuals) and isinstance(placed.visual, TextureVisuals):
                placed.visual.material = part.visual.material  # the copy has its own: 50 parts, 50 times the texture
            parts.append(placed)
    return parts


def from_trimesh(parts: list[trimesh.Trimesh], linear_colours: bool = False) -> Mesh:
    """Concatenate trimesh meshes of one frame into one Mesh.

    Args:
        parts: at least one mesh.
        linear_colours: whether vertex colours are linear light, as in glTF; otherwise they are sRGB.

    Returns:
        The mesh; parts that share a material object share its texture.
    """
    pieces: list[dict[str, Any]] = []
    materials: dict[int, int] = {}  # id of a material: its index in the two lists
    textures: list[Tensor] = []
    alphas: list[Alpha | None] = []
    offset = 0
    for part in parts:
        has_normals = "vertex_normals" in part._cache  # set by the loaders from the file, else computed on demand
        vertices, faces = np.asarray(part.vertices), np.asarray(part.faces)
        uv, colours = _appearance(part, linear_colours)
        material = getattr(part.visual, "material", None)
        if id(material) not in materials:
            materials[id(material)] = len(textures)
            texture, alpha = _pictures(material)
            textures.append(texture)
            alphas.append(alpha)
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
                "face_material": np.full(len(faces), materials[id(material)]),
                "has_normals": has_normals,
            }
        )
        offset += len(vertices)
    floats, ints = ("vertices", "normals", "uv", "colours"), ("faces", "face_material")
    stacked = {k: torch.from_numpy(np.concatenate([p[k] for p in pieces])).float() for k in floats}
    stacked |= {k: torch.from_numpy(np.concatenate([p[k] for p in pieces])).long() for k in ints}
    return Mesh(
        **stacked,
        file=NO_FACTS,
        textures=tuple(textures),
        alphas=tuple(alphas),
        has_normals=all(p["has_normals"] for p in pieces),
    )


def _appearance(part: trimesh.Trimesh, linear_colours: bool) -> tuple[np.ndarray, np.ndarray]:
    """uv [n,2] and colours [n,3] (vertex colour or the material's factor) of one part; zero and white without."""
    count = len(part.vertices)
    uv, colours = np.zeros((count, 2)), np.ones((count, 3))
    visual: Any = part.visual
    if isinstance(visual, TextureVisuals):
        if _base_picture(visual.material) is not None and visual.uv is not None:
            uv = np.asarray(visual.uv)[:, :2]
        factor = _factor(visual.material)
        if factor is not None:  # glTF's factor is linear, our colours are sRGB
            colours = np.broadcast_to(linear_to_srgb(torch.from_numpy(factor[:3])).numpy(), (count, 3)).copy()
    elif visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors)[:, :3] / 255
        colours = linear_to_srgb(torch.from_numpy(colours)).numpy() if linear_colours else colours
    elif visual.kind == "face":
        colours[np.asarray(part.faces).reshape(-1)] = np.repeat(np.asarray(visual.face_colors)[:, :3] / 255, 3, 0)
    return uv, colours


def _base_picture(material: Any) -> Image.Image | None:
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return picture if isinstance(picture, Image.Image) else None


def _factor(material: Any) -> np.ndarray | None:
    """The base colour's factor, RGB or RGBA in [0,1], where the material has one."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is None and _base_picture(material) is None:
        factor = getattr(material, "diffuse", None)
    if factor is None:
        return None
    values = np.asarray(factor, dtype=np.float64)
    # trimesh stores factors as uint8
    return values / 255 if values.max() > 1 or np.asarray(factor).dtype == np.uint8 else values


def _pictures(material: Any) -> tuple[Tensor, Alpha | None]:
    """A material's texture [h,w,3], one white texel without, and its opacity."""
    picture, factor = _base_picture(material), _factor(material)
    pixels = torch.ones(1, 1, 4)
    if picture is not None:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGBA")).copy()).float() / 255
    mode = getattr(material, "alphaMode", None)
    if mode not in ("MASK", "BLEND"):
        return pixels[..., :3], None
    values = pixels[..., 3:] * (float(factor[3]) if factor is not None and len(factor) == 4 else 1.0)
    cutoff = getattr(material, "alphaCutoff", None)
    threshold = 1 / 255 if mode == "BLEND" else 0.5 if cutoff is None else float(cutoff)
    return pixels[..., :3], Alpha(values, threshold, mode == "BLEND")


def _face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def check_geometry(vertices: np.ndarray, faces: np.ndarray, name: str) -> None:
    """Check that a mesh can be drawn.

    Args:
        vertices: [n,3].
        faces: [f,3].
        name: of the mesh, for the message.

    Raises:
        RenderError: where there are no triangles, a vertex is not finite or the mesh has no extent.
    """
    if len(faces) == 0:
        raise RenderError(Reason.EMPTY_SCENE, f"mesh '{name}' has no triangles")
    if not np.isfinite(vertices).all():
        raise RenderError(Reason.PARSE_ERROR, f"mesh '{name}' has vertices that are not finite numbers")
    if np.ptp(vertices[np.unique(faces)], axis=0).max() <= 1e-12:
        raise RenderError(Reason.EMPTY_SCENE, f"mesh '{name}' has no extent: all its vertices coincide")


def normalisation(vertices: np.ndarray, faces: np.ndarray) -> tuple[float, np.ndarray]:
    """Return scale and centre of the object frame, with object = (file - centre) * scale.

    The bounding box is that of the triangles (a stray vertex is not part of the object) without specks. A speck is a
    connected piece with less than SPECK_AREA of the surface that lies wholly beyond SPECK_DISTANCE radii. The radius
    is about the median of the surface and holds 99 % of it. One speck would otherwise shrink the object to a dot.

    Args:
        vertices: [n,3].
        faces: [f,3].

    Returns:
        The factor that makes the longest side of the box 1, and the centre [3] of the box.
    """
    used = np.unique(faces)
    kept = used[~_specks(vertices, faces)[used]]
    low, high = vertices[kept].min(axis=0), vertices[kept].max(axis=0)
    return float(1 / (high - low).max()), (low + high) / 2


def _specks(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return [n] bool: the vertices of specks; see `normalisation`."""
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    none = np.zeros(len(vertices), bool)
    if not area.sum() > 0:
        return none
    middles = corners.mean(axis=1)
    centre = np.array([_weighted_quantile(middles[:, axis], area, 0.5) for axis in range(3)])
    reach = np.linalg.norm(corners - centre, axis=2).max(axis=1)  # of each face's farthest corner
    far = np.linalg.norm(vertices - centre, axis=1) > SPECK_DISTANCE * _weighted_quantile(reach, area, 0.99)
    if not far[faces].any():  # nearly always: no need to look for pieces
        return none

    # Files repeat positions along seams and hard edges: a piece is connected by position, not by index.
    _, point = np.unique(vertices, axis=0, return_inverse=True)
    point = point.reshape(-1)
    joined = point[faces]
    rows, columns = joined[:, [0, 1]].ravel(), joined[:, [1, 2]].ravel()
    count = int(point.max()) + 1
    pieces, piece = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (count, count)))
    share = np.bincount(piece[joined[:, 0]], weights=area, minlength=pieces) / area.sum()
    near = np.zeros(pieces, bool)
    near[piece[point[~far]]] = True
    return (~near & (share < SPECK_AREA))[piece[point]]


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, level * share[-1])])
