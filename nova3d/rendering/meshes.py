"""Textured meshes as flat tensors: loaded from files, centred and scaled."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from nova3d.images import linear_to_srgb
from nova3d.rendering.file_access import LIMITS, Limits
from nova3d.rendering.mesh_files import read_scene
from nova3d.rendering.outlines import inverted_hulls
from nova3d.rendering.parts import BLEND_CUTOFF, NO_FACTS, FileFacts, Finish, Material, Part, Sampler
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.rendering.trimesh_files import material_of, part_of

log = logging.getLogger(__name__)

SPECK_AREA = 1e-4  # share of the surface below which a distant piece is not part of the object
SPECK_DISTANCE = 10.0  # in radii that hold 99 % of the surface
# Farther from the origin than so many of its sizes, float32 would lose more than 1e-5 of a mesh.
FAR = 64.0


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
        vertices: [n,3] float32, relative to `origin`.
        faces: [f,3] int64.
        normals: [n,3] float32, unit.
        uv: [n,2] float32, origin at the texture's lower left.
        colours: [n,3] float32 in [0,1], sRGB, multiplied onto the texture: vertex colour x material's factor. They are
            interpolated in linear light.
        face_material: [f] int64, index into `textures`, `alphas`, `samplers` and `finishes`.
        textures: each [h,w,3] float32 in [0,1], sRGB; the same tensor where materials share a picture.
        alphas: None where the material is opaque.
        samplers: how each texture is looked up.
        has_normals: whether the file carried vertex normals; otherwise they are the faces'.
        opacity: [n] float32 in [0,1], the vertex colours' alpha, multiplied onto `alphas`; None where all is 1.
        one_sided: [f] bool: faces of an outline (a shell turned inside out around the rest), whose backs are not
            drawn; None where there are none. All others are drawn from both sides, as many files have their faces
            turned wrongly.
        finishes: what a path tracer adds; None for a matt surface, and where it was not asked for.
        origin: [3] float64, where the frame of `vertices` lies in the file's: 0 unless the mesh is far away.
        file: what else the file holds; empty for a mesh that was not read from a file.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    uv: Tensor
    colours: Tensor
    face_material: Tensor
    textures: tuple[Tensor, ...]
    alphas: tuple[Alpha | None, ...]
    samplers: tuple[Sampler, ...]
    has_normals: bool
    opacity: Tensor | None = None
    one_sided: Tensor | None = None
    finishes: tuple[Finish | None, ...] = ()
    origin: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    file: FileFacts = NO_FACTS

    def to(self, device: torch.device | str) -> "Mesh":
        """Return the same mesh on a device."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS if getattr(self, name) is not None}
        shared = {id(t): t.to(device) for t in self.textures}
        alphas = tuple(a and replace(a, values=a.values.to(device)) for a in self.alphas)
        return replace(self, **moved, textures=tuple(shared[id(t)] for t in self.textures), alphas=alphas)

    def normalisation(self) -> tuple[float, Tensor]:
        """Return scale and centre [3] of the object frame; see the function `normalisation`."""
        scale, centre = normalisation(self.vertices.double().cpu().numpy(), self.faces.cpu().numpy())
        return scale, torch.from_numpy(centre) + self.origin

    def normalised(self) -> "Mesh":
        """Return the mesh in the object frame: centred, its longest side 1."""
        return self.placed(*self.normalisation())

    def rotated(self, rotation: Tensor) -> "Mesh":
        """Return the mesh turned about the origin of its file; rotation is [3,3] float64."""
        turn = rotation.to(self.vertices)
        vertices, normals = self.vertices @ turn.mT, self.normals @ turn.mT
        return replace(self, vertices=vertices, normals=normals, origin=rotation.to(self.origin) @ self.origin)

    def placed(self, scale: float, centre: Tensor) -> "Mesh":
        """Return the mesh with its vertices at (file - centre) * scale; centre is [3], in the file's frame."""
        shift = (self.origin - centre.double().cpu()).to(self.vertices.device)
        placed = (self.vertices.double() + shift) * scale
        return replace(self, vertices=placed.to(self.vertices.dtype), origin=torch.zeros_like(self.origin))


_TENSORS = ("vertices", "faces", "normals", "uv", "colours", "face_material", "opacity", "one_sided")


def load_mesh(path: str | Path, limits: Limits = LIMITS, finish: bool = False) -> Mesh:
    """Read a mesh file through `read_scene`, whose docstring lists what is read and what is refused.

    A glTF file is posed as at time 0 of its first animation; without one, as its nodes and joints stand.

    Args:
        path: a file with one of MESH_SUFFIXES.
        limits: what it may cost.
        finish: whether to read what only a path tracer draws.

    Returns:
        The mesh on the CPU.

    Raises:
        RenderError: where the file cannot be read or has nothing to draw.
    """
    scene = read_scene(path, limits, finish)
    if scene.facts.missing_textures:
        log.warning("mesh '%s' lacks a texture: %s", path, "; ".join(scene.facts.missing_textures)[:300])
    return replace(assemble(scene.parts), file=scene.facts)


def require_textures(mesh: Mesh, name: str) -> Mesh:
    """Return the mesh; raises RenderError MISSING_TEXTURE where a picture that its materials name is not there."""
    if mesh.file.missing_textures:
        missing = "; ".join(mesh.file.missing_textures)[:300]
        raise RenderError(Reason.MISSING_TEXTURE, f"mesh '{name}' lacks a texture: {missing}")
    return mesh


def from_trimesh(parts: list[trimesh.Trimesh]) -> Mesh:
    """Concatenate trimesh meshes of one frame into one Mesh.

    Args:
        parts: at least one mesh; colours are sRGB.

    Returns:
        The mesh; parts that share a material object share its texture.
    """
    materials: dict[int, Material] = {}
    converted = []
    for part in parts:
        given = getattr(part.visual, "material", None)
        if given is not None and id(given) not in materials:
            materials[id(given)] = material_of(given)
        converted.append(part_of(part, materials.get(id(given))))
    return assemble(converted)


def assemble(parts: list[Part]) -> Mesh:
    """Concatenate parts into one Mesh.

    Args:
        parts: at least one with a triangle, in one frame.

    Returns:
        The mesh. Faces without usable normals have their own corners, with the face's normal.
    """
    parts = [part for part in parts if len(part.faces)]
    materials: dict[int, int] = {}
    textures: list[Tensor] = []
    alphas: list[Alpha | None] = []
    shared: list[Material] = []
    decoded: dict[int, tuple[Tensor, Tensor]] = {}  # colours and alpha of a picture, which many materials may share
    pieces: list[dict[str, NDArray[np.generic]]] = []
    offset = 0
    origin = _origin(parts)
    for part, hull in zip(parts, inverted_hulls(parts), strict=True):
        if id(part.material) not in materials:
            materials[id(part.material)] = len(shared)
            shared.append(part.material)
            if id(part.material.picture) not in decoded:
                decoded[id(part.material.picture)] = _levels(part.material.picture)
            texture, alpha = _textures(part.material, *decoded[id(part.material.picture)])
            textures.append(texture)
            alphas.append(alpha)
        piece = _piece(part, origin)
        faces = piece["faces"]
        piece["faces"] = faces + offset
        piece["face_material"] = np.full(len(faces), materials[id(part.material)])
        piece["one_sided"] = np.full(len(faces), hull)
        pieces.append(piece)
        offset += len(piece["vertices"])
    stacked = {key: torch.from_numpy(np.concatenate([piece[key] for piece in pieces])) for key in pieces[0]}
    opacity, one_sided = stacked["opacity"], stacked["one_sided"]
    return Mesh(
        vertices=stacked["vertices"].float(),
        faces=stacked["faces"].long(),
        normals=stacked["normals"].float(),
        uv=stacked["uv"].float(),
        colours=linear_to_srgb(stacked["colours"]).float(),
        face_material=stacked["face_material"].long(),
        textures=tuple(textures),
        alphas=tuple(alphas),
        samplers=tuple(material.sampler for material in shared),
        has_normals=all(part.normals is not None for part in parts),
        opacity=opacity.float() if bool((opacity < 1).any()) else None,
        one_sided=one_sided if bool(one_sided.any()) else None,
        finishes=tuple(material.finish for material in shared),
        origin=torch.from_numpy(origin),
    )


def _piece(part: Part, origin: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
    """A part's arrays of vertices and faces, unit normals at every corner."""
    count = len(part.positions)
    columns = {
        "vertices": part.positions - origin,
        "uv": np.zeros((count, 2)) if part.uv is None else np.nan_to_num(part.uv, nan=0, posinf=0, neginf=0),
    }
    colours = np.ones((count, 4)) if part.colours is None else np.nan_to_num(part.colours, nan=1.0)
    columns["colours"] = (colours[:, :3] * part.material.factor[:3]).clip(0, 1)
    columns["opacity"] = colours[:, 3] if part.material.alpha_mode != "OPAQUE" else np.ones(count)
    normals = np.full((count, 3), np.nan) if part.normals is None else part.normals.astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = np.isfinite(length[:, 0]) & (length[:, 0] > 1e-20)
    columns["normals"] = np.where(usable[:, None], normals / np.where(usable[:, None], length, 1), 0)
    faces = np.ascontiguousarray(part.faces)
    bad = ~usable[faces]  # corners without a normal get a vertex of their own: f 3
    if not bad.any():
        return {**columns, "faces": faces}
    sources = faces[bad]
    extended = {name: np.concatenate([values, values[sources]]) for name, values in columns.items()}
    flat = np.broadcast_to(_face_normals(part.positions, faces)[:, None], (len(faces), 3, 3))
    extended["normals"][count:] = flat[bad]
    faces = faces.copy()
    faces[bad] = count + np.arange(len(sources))
    if bad.all():  # none of the file's own vertices is left in use
        extended = {name: values[count:] for name, values in extended.items()}
        faces = faces - count
    return {**extended, "faces": faces}


def _origin(parts: list[Part]) -> NDArray[np.float64]:
    """The middle of the parts where they are so far away that float32 would distort them; otherwise 0."""
    corners = [part.positions[part.faces.reshape(-1)] for part in parts]
    low = np.min([c.min(axis=0) for c in corners], axis=0)
    high = np.max([c.max(axis=0) for c in corners], axis=0)
    middle: NDArray[np.float64] = (low + high) / 2
    return middle if np.abs(middle).max() > FAR * (high - low).max() else np.zeros(3)


def _levels(picture: NDArray[np.uint8] | None) -> tuple[Tensor, Tensor]:
    """Colours [h,w,3] and alpha [h,w,1] of a picture, float32 in [0,1]; one white texel without."""
    if picture is None:
        return torch.ones(1, 1, 3), torch.ones(1, 1, 1)
    colours, alpha = picture[..., :3].astype(np.float32), picture[..., 3:].astype(np.float32)
    return torch.from_numpy(colours).div_(255), torch.from_numpy(alpha).div_(255)


def _textures(material: Material, colours: Tensor, alpha: Tensor) -> tuple[Tensor, Alpha | None]:
    """A material's texture [h,w,3] and its opacity."""
    if material.alpha_mode == "OPAQUE":
        return colours, None
    blended = material.alpha_mode == "BLEND"
    values = alpha if material.factor[3] == 1 else alpha * material.factor[3]
    return colours, Alpha(values, BLEND_CUTOFF if blended else material.cutoff, blended)


def _face_normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])


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
