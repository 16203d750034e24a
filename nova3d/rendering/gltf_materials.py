"""Materials of a glTF file: base colour, alpha, where a texture lies, and what a path tracer adds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nova3d.rendering.file_access import PictureError
from nova3d.rendering.gltf import Document, number, vector
from nova3d.rendering.parts import Finish, Material, Sampler, Wrap

_WRAPS: dict[int, Wrap] = {10497: "repeat", 33648: "mirror", 33071: "clamp"}
_NEAREST = 9728
_GLOSSY = "KHR_materials_pbrSpecularGlossiness"


@dataclass(frozen=True)
class Coordinates:
    """Which coordinates a texture takes: set `number`, then u' = matrix (u, v, 1), origin at the upper left."""

    number: int
    matrix: tuple[tuple[float, ...], ...]

    def apply(self, uv: NDArray[np.floating]) -> NDArray[np.float64]:
        """Move coordinates [n,2]; the result has its origin at the lower left."""
        moved = uv @ np.array(self.matrix)[:, :2].T + np.array(self.matrix)[:, 2]
        return moved * [1, -1] + [0, 1]


class Materials:
    """The materials of a document, each read once.

    Args:
        document: the file.
        finish: whether to read what only a path tracer draws.
    """

    def __init__(self, document: Document, finish: bool):
        self.document, self.finish = document, finish
        self._read: dict[Any, tuple[Material, Coordinates]] = {}
        self._pictures: dict[Any, NDArray[np.uint8]] = {}

    def get(self, index: Any) -> tuple[Material, Coordinates]:
        """A material and its coordinates; the default material for None."""
        if index not in self._read:
            entry = {} if index is None else self.document.entry("materials", index)
            self._read[index] = self._material(entry, plain=index is None)
        return self._read[index]

    def _material(self, entry: dict[str, Any], plain: bool) -> tuple[Material, Coordinates]:
        extensions = entry.get("extensions", {})
        surface = entry.get("pbrMetallicRoughness", {})
        factor, base = surface.get("baseColorFactor"), surface.get("baseColorTexture")
        if _GLOSSY in extensions:
            factor, base = extensions[_GLOSSY].get("diffuseFactor"), extensions[_GLOSSY].get("diffuseTexture")
        picture, missing, sampler = self._texture(base)
        mode = entry.get("alphaMode", "OPAQUE")
        finish = None
        coordinates = _coordinates(base)
        if self.finish and not plain:
            finish, coordinates = self._finish(entry, coordinates if base is not None else None)
        material = Material(
            factor=_rgba(factor),
            picture=picture,
            sampler=sampler,
            alpha_mode=mode if mode in ("MASK", "BLEND") else "OPAQUE",
            cutoff=number(entry.get("alphaCutoff"), 0.5, "alphaCutoff"),
            double_sided=bool(entry.get("doubleSided", False)),
            missing=missing,
            finish=finish,
        )
        return material, coordinates

    def _texture(self, info: Any) -> tuple[NDArray[np.uint8] | None, str, Sampler]:
        """The picture of a textureInfo, or why there is none, and its sampler."""
        if info is None:
            return None, "", Sampler()
        index = info.get("index")
        texture = self.document.entry("textures", index)
        sampler = self.document.entry("samplers", texture["sampler"]) if "sampler" in texture else {}
        wraps = _WRAPS.get(sampler.get("wrapS", 10497)), _WRAPS.get(sampler.get("wrapT", 10497))
        looked_up = Sampler((wraps[0] or "repeat", wraps[1] or "repeat"), sampler.get("magFilter") == _NEAREST)
        try:
            if index not in self._pictures:
                self._pictures[index] = self.document.picture(index)
            return self._pictures[index], "", looked_up
        except PictureError as error:
            return None, str(error), looked_up

    def _finish(self, entry: dict[str, Any], base: Coordinates | None) -> tuple[Finish, Coordinates]:
        """What a path tracer adds; maps on other coordinates than the base colour's are left out."""
        extensions, surface = entry.get("extensions", {}), entry.get("pbrMetallicRoughness", {})
        chosen = base
        maps: dict[str, NDArray[np.uint8] | None] = {}
        for name, info in (
            ("normal_map", entry.get("normalTexture")),
            ("metallic_roughness_map", surface.get("metallicRoughnessTexture")),
            ("emission_map", entry.get("emissiveTexture")),
        ):
            own = _coordinates(info)
            picture = None
            if info is not None and (chosen is None or own == chosen):
                chosen, picture = own, self._texture(info)[0]
            maps[name] = None if picture is None else picture[..., :3]
        strength = number(
            extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength"), 1.0, "emissiveStrength"
        )
        emission = vector(entry.get("emissiveFactor"), (0.0, 0.0, 0.0), "emissiveFactor") * strength
        glossy = extensions.get(_GLOSSY)
        roughness = surface.get("roughnessFactor")
        if glossy is not None:
            roughness = 1 - number(glossy.get("glossinessFactor"), 1.0, "glossinessFactor")
        transmission = extensions.get("KHR_materials_transmission", {}).get("transmissionFactor")
        finish = Finish(
            metallic=0.0 if glossy is not None else number(surface.get("metallicFactor"), 1.0, "metallicFactor"),
            roughness=number(roughness, 1.0, "roughnessFactor"),
            emission=(float(emission[0]), float(emission[1]), float(emission[2])),
            transmission=number(transmission, 0.0, "transmissionFactor"),
            unlit="KHR_materials_unlit" in extensions,
            normal_scale=number((entry.get("normalTexture") or {}).get("scale"), 1.0, "the normal map's scale"),
            **maps,
        )
        return finish, chosen or _coordinates(None)


def _rgba(factor: Any) -> tuple[float, float, float, float]:
    red, green, blue, alpha = vector(factor, (1.0, 1.0, 1.0, 1.0), "the base colour's factor").clip(0, 1).tolist()
    return red, green, blue, alpha


def _coordinates(info: Any) -> Coordinates:
    """The coordinates of a textureInfo, with KHR_texture_transform: offset x rotation x scale."""
    info = info or {}
    moved = info.get("extensions", {}).get("KHR_texture_transform", {})
    offset = vector(moved.get("offset"), (0.0, 0.0), "the texture's offset")
    scale = vector(moved.get("scale"), (1.0, 1.0), "the texture's scale")
    angle = number(moved.get("rotation"), 0.0, "the texture's rotation")
    c, s = float(np.cos(angle)), float(np.sin(angle))
    matrix = (
        (c * float(scale[0]), s * float(scale[1]), float(offset[0])),
        (-s * float(scale[0]), c * float(scale[1]), float(offset[1])),
    )
    chosen = moved.get("texCoord", info.get("texCoord", 0))
    if isinstance(chosen, bool) or not isinstance(chosen, int) or chosen < 0:
        raise ValueError("texCoord is not the number of a set")
    return Coordinates(chosen, matrix)
