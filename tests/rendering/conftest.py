"""Small glTF files made by hand: the parts of the format that a mesh exporter never writes."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

FLOAT, UINT = 5126, 5125
QUAD = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])
QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])  # glTF: the origin is the upper left


class Gltf:
    """Collects meshes, nodes and materials; `save` writes one .gltf with everything inside."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.blob = b""

    def add(self, key: str, entry: dict[str, Any]) -> int:
        self.json.setdefault(key, []).append(entry)
        return len(self.json[key]) - 1

    def accessor(self, array: np.ndarray, indices: bool = False) -> int:
        data = np.ascontiguousarray(array, "<u4" if indices else "<f4")
        flat = data.reshape(len(data), -1)
        view = self.add("bufferViews", {"buffer": 0, "byteOffset": len(self.blob), "byteLength": data.nbytes})
        self.blob += data.tobytes()
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[flat.shape[1]]
        entry = {"bufferView": view, "componentType": UINT if indices else FLOAT, "count": len(flat), "type": kind}
        bounds = {"min": flat.min(0).tolist(), "max": flat.max(0).tolist()} if np.isfinite(flat).all() else {}
        return self.add("accessors", entry | bounds)

    def typed(self, array: Any, **keys: Any) -> int:
        """An accessor of the array's own type: integers of 8, 16 or 32 bits, or float32; `keys` go into it."""
        data = np.ascontiguousarray(array)
        flat = data.reshape(len(data), -1)
        self.blob += b"\0" * (-len(self.blob) % 4)
        view = self.add("bufferViews", {"buffer": 0, "byteOffset": len(self.blob), "byteLength": data.nbytes})
        self.blob += data.tobytes()
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[flat.shape[1]]
        component = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": UINT, "f4": FLOAT}[data.dtype.str[1:]]
        entry = {"bufferView": view, "componentType": component, "count": len(flat), "type": kind}
        return self.add("accessors", entry | keys)

    def primitive(self, mesh: int = 0) -> dict[str, Any]:
        """The only primitive of a mesh, to be changed."""
        found: dict[str, Any] = self.json["meshes"][mesh]["primitives"][0]
        return found

    def mesh(self, positions: Any, faces: Any, material: int | None = None, mode: int = 4, **attributes: Any) -> int:
        names = {"POSITION": positions} | attributes
        primitive = {"attributes": {k: self.accessor(np.asarray(v)) for k, v in names.items()}, "mode": mode}
        primitive["indices"] = self.accessor(np.asarray(faces).reshape(-1), indices=True)
        return self.add("meshes", {"primitives": [primitive | ({} if material is None else {"material": material})]})

    def solid(self, solid: trimesh.Trimesh, material: int | None = None) -> int:
        return self.mesh(solid.vertices, solid.faces, material)

    def quad(self, material: int | None = None) -> int:
        return self.mesh(QUAD, QUAD_FACES, material, TEXCOORD_0=QUAD_UV, NORMAL=[[0, 0, 1]] * 4)

    def node(self, root: bool = True, **keys: Any) -> int:
        index = self.add("nodes", keys)
        if root:
            self.json["scenes"][0]["nodes"].append(index)
        return index

    def texture(self, pixels: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self.add("textures", {"source": self.add("images", {"uri": uri})})

    def material(self, colour: tuple[float, ...] = (1, 1, 1, 1), texture: int | None = None, **keys: Any) -> int:
        surface: dict[str, Any] = {"baseColorFactor": list(colour), "metallicFactor": 0, "roughnessFactor": 1}
        if texture is not None:
            surface["baseColorTexture"] = {"index": texture}
        return self.add("materials", {"pbrMetallicRoughness": surface, "doubleSided": True} | keys)

    def save(self, path: Path) -> Path:
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
        path.write_text(json.dumps(self.json | {"buffers": [{"byteLength": len(self.blob), "uri": uri}]}))
        return path


@pytest.fixture
def gltf() -> Callable[[], Gltf]:
    return Gltf


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    """Files that no engine can draw, by what is wrong with them; their reasons are in BROKEN of the tests."""
    points = Gltf()
    points.node(mesh=points.mesh(QUAD, [0, 1, 2, 3], mode=0))
    empty = Gltf()
    empty.node(name="nothing")
    hollow = Gltf()
    hollow.node(mesh=hollow.mesh(QUAD * [1, 1, np.nan], QUAD_FACES))
    dot = Gltf()
    dot.node(mesh=dot.mesh(QUAD * 0 + 1, QUAD_FACES))
    whole = trimesh.creation.box().export(file_type="glb")
    html, cut, zero = (tmp_path / f"{n}.glb" for n in ("html", "cut", "zero"))
    square = Gltf()
    square.node(mesh=square.quad())
    constant = square.save(tmp_path / "constant.gltf")
    constant.write_text(constant.read_text().replace('"asset": {', '"asset": {"extras": NaN, '))
    html.write_text("<!DOCTYPE html><html><body>404 not found</body></html>")
    cut.write_bytes(whole[: len(whole) // 2])
    zero.write_bytes(b"")
    return {
        "points": points.save(tmp_path / "points.gltf"),
        "empty": empty.save(tmp_path / "empty.gltf"),
        "nan": hollow.save(tmp_path / "nan.gltf"),
        "dot": dot.save(tmp_path / "dot.gltf"),
        "html": html,
        "cut": cut,
        "zero": zero,
        "constant": constant,
        "absent": tmp_path / "absent.glb",
    }
