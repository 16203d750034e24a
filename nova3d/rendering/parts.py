"""What the readers of mesh files give: triangles with their material, in double precision and the file's own frame."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nova3d.images import srgb_to_linear

Wrap = Literal["repeat", "mirror", "clamp"]
AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]
BLEND_CUTOFF = 1 / 255  # a translucent surface that is fainter is a hole


@dataclass(frozen=True)
class Sampler:
    """How a texture is looked up.

    Attributes:
        wrap: what happens beyond [0,1], along u and v.
        nearest: whether texels stay square when they are magnified; otherwise lookups are bilinear.
    """

    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    nearest: bool = False


@dataclass(frozen=True)
class Finish:
    """What a path tracer adds to the base colour, in glTF's terms. Maps lie on the coordinates of the base colour.

    Attributes:
        metallic: in [0,1].
        roughness: in [0,1].
        emission: linear RGB, times its strength.
        transmission: in [0,1].
        unlit: whether the base colour is shown without light.
        metallic_roughness_map: [h,w,3] uint8, roughness in green, metalness in blue; None without.
        emission_map: [h,w,3] uint8 sRGB; None without.
        normal_map: [h,w,3] uint8, tangent space; None without.
        normal_scale: strength of the normal map.
    """

    metallic: float = 0.0
    roughness: float = 1.0
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    transmission: float = 0.0
    unlit: bool = False
    metallic_roughness_map: NDArray[np.uint8] | None = None
    emission_map: NDArray[np.uint8] | None = None
    normal_map: NDArray[np.uint8] | None = None
    normal_scale: float = 1.0


@dataclass(frozen=True)
class Material:
    """A material, as far as it is read.

    Attributes:
        factor: linear RGBA that multiplies texture and vertex colours.
        picture: [h,w,4] uint8, sRGB with straight alpha; None without.
        sampler: of the picture.
        alpha_mode: whether alpha is ignored, cuts holes, or is translucency.
        cutoff: alpha below which a MASK material has a hole.
        double_sided: False where back faces are not drawn.
        missing: the name of the picture that the file gives and that could not be read; "" without.
        finish: None for a matt surface.
    """

    factor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    picture: NDArray[np.uint8] | None = None
    sampler: Sampler = Sampler()
    alpha_mode: AlphaMode = "OPAQUE"
    cutoff: float = 0.5
    double_sided: bool = True
    missing: str = ""
    finish: Finish | None = None


@dataclass(frozen=True)
class Part:
    """Triangles of one material.

    Attributes:
        positions: [n,3] float64.
        faces: [f,3] int64, counter-clockwise seen from the front.
        material: the material; parts share the object where the file does.
        normals: [n,3], not necessarily unit or finite; None without.
        uv: [n,2], origin at the picture's lower left; None without.
        colours: [n,4] linear RGBA, one per vertex; None without.
    """

    positions: NDArray[np.float64]
    faces: NDArray[np.int64]
    material: Material
    normals: NDArray[np.floating] | None = None
    uv: NDArray[np.floating] | None = None
    colours: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class FileFacts:
    """What a mesh file holds besides its triangles.

    Attributes:
        animations: how many.
        skins: how many.
        missing_textures: the pictures that materials of the mesh name and that could not be read, with the reason.
    """

    animations: int = 0
    skins: int = 0
    missing_textures: tuple[str, ...] = ()


NO_FACTS = FileFacts()


@dataclass(frozen=True)
class Scene:
    """A mesh file: its parts in the world frame of the file, in the file's order, and its facts."""

    parts: list[Part]
    facts: FileFacts = NO_FACTS


def srgb_colours(colours: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB [n,3] or [n,4] in [0,1] as linear RGBA [n,4]; a NaN is white, a missing alpha 1."""
    values = np.ones((len(colours), 4))
    values[:, : colours.shape[1]] = np.nan_to_num(colours, nan=1.0).clip(0, 1)
    values[:, :3] = srgb_to_linear(torch.from_numpy(values[:, :3])).numpy()
    return values
