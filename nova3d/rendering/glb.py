"""Writing GLB (glTF 2.0, binary): parts as one mesh, with base colour, vertex colours and normals."""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nova3d.rendering.parts import Material, Part, Wrap

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_FLOAT, _SHORT, _INT = 5126, 5123, 5125
_RESTART = 65535  # no index of 16 bits may have this value
_WRAPS: dict[Wrap, int] = {"repeat": 10497, "mirror": 33648, "clamp": 33071}
_NEAREST, _LINEAR = 9728, 9729


class _Writer:
    """The JSON and the binary chunk, growing together."""

    def __init__(self) -> None:
        self.tree: dict[str, list[dict[str, Any]]] = {}
        self.binary = bytearray()
        self.pictures: dict[tuple[int, bool], int] = {}  # of an array, with or without its alpha: the image

    def add(self, collection: str, entry: dict[str, Any]) -> int:
        """Append an entry to a list; return its index."""
        entries = self.tree.setdefault(collection, [])
        entries.append(entry)
        return len(entries) - 1

    def view(self, content: bytes, target: int | None = None) -> int:
        """Append bytes at a multiple of 4; return the index of their view."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content)}
        self.binary += content
        return self.add("bufferViews", view | ({} if target is None else {"target": target}))

    def attribute(self, values: NDArray[np.floating], bounds: bool = False) -> int:
        """Append vertex values [n,w] as float32; return the accessor."""
        data = np.ascontiguousarray(values, "<f4")
        accessor: dict[str, Any] = {
            "bufferView": self.view(data.tobytes(), _ARRAY_BUFFER),
            "componentType": _FLOAT,
            "count": len(data),
            "type": f"VEC{data.shape[1]}",
        }
        if bounds:
            accessor |= {"min": data.min(axis=0).tolist(), "max": data.max(axis=0).tolist()}
        return self.add("accessors", accessor)

    def indices(self, faces: NDArray[np.integer]) -> int:
        """Append triangles, 16 bits an index where they fit; return the accessor."""
        short = int(faces.max(initial=0)) < _RESTART
        data = np.ascontiguousarray(faces.reshape(-1), "<u2" if short else "<u4")
        view = self.view(data.tobytes(), _ELEMENT_ARRAY_BUFFER)
        kind = _SHORT if short else _INT
        return self.add("accessors", {"bufferView": view, "componentType": kind, "count": len(data), "type": "SCALAR"})


def glb_bytes(parts: list[Part], extras: Mapping[str, Any] | None = None) -> bytes:
    """Make the content of a GLB file.

    Args:
        parts: at least one with a triangle; parts that share a material object share it in the file.
        extras: JSON values for `asset.extras`.

    Returns:
        The file: one node and one mesh, both named "mesh", a primitive per part, materials "material", "material1"...
    """
    writer = _Writer()
    materials: dict[int, int] = {}
    primitives = []
    for part in parts:
        if not len(part.faces):
            continue
        attributes = {"POSITION": writer.attribute(part.positions, bounds=True)}
        if part.normals is not None:
            attributes["NORMAL"] = writer.attribute(part.normals)
        if part.uv is not None:
            attributes["TEXCOORD_0"] = writer.attribute(part.uv * [1, -1] + [0, 1])  # origin at the upper left
        if part.colours is not None:
            attributes["COLOR_0"] = writer.attribute(part.colours)
        primitive: dict[str, Any] = {"attributes": attributes, "indices": writer.indices(part.faces)}
        # Many readers drop vertex colours beside a material; those of a bare surface need none.
        if part.colours is None or not _is_plain(part.material):
            if id(part.material) not in materials:
                materials[id(part.material)] = _material(writer, part.material)
            primitive["material"] = materials[id(part.material)]
        primitives.append(primitive)
    writer.binary += b"\0" * (-len(writer.binary) % 4)
    asset = {"version": "2.0", "generator": "nova3d"} | ({"extras": dict(extras)} if extras else {})
    tree = {
        "asset": asset,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "mesh", "mesh": 0}],
        "meshes": [{"name": "mesh", "primitives": primitives}],
        "buffers": [{"byteLength": len(writer.binary)}],
    } | writer.tree
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(writer.binary), b"BIN\0") + bytes(writer.binary)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _is_plain(material: Material) -> bool:
    return material.picture is None and material.factor == (1.0, 1.0, 1.0, 1.0) and material.alpha_mode == "OPAQUE"


def _material(writer: _Writer, material: Material) -> int:
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    if material.factor != (1.0, 1.0, 1.0, 1.0):
        surface["baseColorFactor"] = list(material.factor)
    if material.picture is not None:
        surface["baseColorTexture"] = {"index": _texture(writer, material)}
    number = len(writer.tree.get("materials", []))
    entry: dict[str, Any] = {"name": f"material{number or ''}", "pbrMetallicRoughness": surface}
    if material.alpha_mode != "OPAQUE":
        entry["alphaMode"] = material.alpha_mode
        if material.alpha_mode == "MASK":
            entry["alphaCutoff"] = material.cutoff
    return writer.add("materials", entry | ({"doubleSided": True} if material.double_sided else {}))


def _texture(writer: _Writer, material: Material) -> int:
    assert material.picture is not None
    key = id(material.picture), material.alpha_mode != "OPAQUE"
    if key not in writer.pictures:
        content = io.BytesIO()
        Image.fromarray(material.picture[..., : 4 if key[1] else 3]).save(content, format="PNG")
        entry = {"bufferView": writer.view(content.getvalue()), "mimeType": "image/png"}
        writer.pictures[key] = writer.add("images", entry)
    image = writer.pictures[key]
    wrap_u, wrap_v = (_WRAPS[wrap] for wrap in material.sampler.wrap)
    look_up = {"magFilter": _NEAREST if material.sampler.nearest else _LINEAR, "wrapS": wrap_u, "wrapT": wrap_v}
    return writer.add("textures", {"source": image, "sampler": writer.add("samplers", look_up)})
