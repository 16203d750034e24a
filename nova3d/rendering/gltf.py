"""glTF 2.0 files (Khronos specification 2.0.1): the JSON, buffers, accessors and pictures, each checked before use.

Sizes that the file states are checked before memory is allocated: a view must lie in its buffer, an accessor in its
view, an index in its list.
"""

import base64
import binascii
import codecs
import math
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.rendering.file_access import Folder, Limits, PictureError, Pictures, read_regular
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import JSON_BYTES, parse_json
from nova3d.utils.text import shorten

# Extensions that may be required: what is read, and what changes neither the triangles nor their base colour.
READ_EXTENSIONS = frozenset(
    {
        "EXT_mesh_gpu_instancing",
        "EXT_texture_webp",
        "KHR_materials_emissive_strength",
        "KHR_materials_pbrSpecularGlossiness",
        "KHR_materials_transmission",
        "KHR_materials_unlit",
        "KHR_mesh_quantization",
        "KHR_node_visibility",
        "KHR_texture_transform",
    }
)

HARMLESS_EXTENSIONS = frozenset(
    {
        "EXT_lights_image_based",
        "KHR_lights_punctual",
        "KHR_materials_anisotropy",
        "KHR_materials_clearcoat",
        "KHR_materials_diffuse_transmission",
        "KHR_materials_dispersion",
        "KHR_materials_ior",
        "KHR_materials_iridescence",
        "KHR_materials_sheen",
        "KHR_materials_specular",
        "KHR_materials_variants",
        "KHR_materials_volume",
        "KHR_xmp_json_ld",
        "MSFT_lod",
    }
)
COMPRESSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")

_GLB_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = b"glTF", 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_INDEX_COMPONENTS = (5121, 5123, 5125)


class Document:
    """A glTF file whose version and required extensions are read.

    Args:
        path: a .glb or .gltf file.
        limits: what it may cost.

    Raises:
        RenderError: PARSE_ERROR for a broken file; DRACO for compressed geometry.
    """

    def __init__(self, path: Path, limits: Limits):
        self.path, self.limits, self.folder = path, limits, Folder(path)
        self.tree, self._binary = _read(path, limits)
        self._pictures = Pictures(limits)
        self._buffers: dict[int, bytes] = {}
        self._files: dict[str, bytes] = {}
        self._check_version()
        self._check_extensions()

    def entries(self, collection: str) -> list[Any]:
        """The list that the file has under a name; empty without."""
        found = self.tree.get(collection, [])
        if not isinstance(found, list):
            raise ValueError(f"'{collection}' is not a list")
        return found

    def entry(self, collection: str, index: Any) -> dict[str, Any]:
        """One object of a list; raises ValueError where `index` is not a number in the list."""
        entries = self.entries(collection)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(entries):
            raise ValueError(f"{collection}[{shorten(repr(index), 20)}] is not in the file, which has {len(entries)}")
        if not isinstance(entries[index], dict):
            raise ValueError(f"{collection}[{index}] is not an object")
        found: dict[str, Any] = entries[index]
        return found

    def count(self, index: Any) -> int:
        """The number of elements that an accessor states."""
        return _count(self.entry("accessors", index).get("count"), f"accessors[{index}].count")

    def numbers(
        self, index: Any, widths: tuple[int, ...], normalised: bool = False, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Read an accessor as numbers.

        Args:
            index: of the accessor.
            widths: the numbers per element that are allowed.
            normalised: take unsigned integers as fractions even where the accessor does not say so.
            rows: [n] the elements to read; None for all.

        Returns:
            [n,w] float32; normalised integers are in [-1,1] or [0,1].
        """
        accessor = self.entry("accessors", index)
        values = self._elements(accessor, index, rows)
        if values.shape[1] not in widths:
            raise ValueError(f"accessors[{index}] has {values.shape[1]} numbers per element, not {widths}")
        if values.dtype.kind == "f":
            return values.astype(np.float32, copy=False)
        largest = float(np.iinfo(values.dtype).max)
        if accessor.get("normalized") is True or (normalised and values.dtype.kind == "u"):
            return np.maximum(values.astype(np.float32) / np.float32(largest), np.float32(-1))
        return values.astype(np.float32)

    def integers(self, index: Any, width: int = 1, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Read an accessor of unsigned integers, or `rows` of it, as [n,w] int64."""
        accessor = self.entry("accessors", index)
        if accessor.get("componentType") not in _INDEX_COMPONENTS:
            raise ValueError(f"accessors[{index}] does not hold unsigned integers")
        values = self._elements(accessor, index, rows)
        if values.shape[1] != width:
            raise ValueError(f"accessors[{index}] has {values.shape[1]} numbers per element, not {width}")
        return values.astype(np.int64)

    def picture(self, texture: Any) -> NDArray[np.uint8]:
        """Decode the picture of a texture, [h,w,4] uint8; raises PictureError that names it."""
        found = self.entry("textures", texture)
        extensions = found.get("extensions", {})
        sources = [extensions.get("EXT_texture_webp", {}).get("source"), found.get("source")]
        sources = [source for source in sources if source is not None]
        if not sources:
            raise PictureError(f"textures[{texture}] has no picture that is read ({', '.join(sorted(extensions))})")
        problem = PictureError("")
        for source in sources:
            try:
                return self._image(source)
            except PictureError as error:
                problem = error
        raise problem

    def _image(self, index: Any) -> NDArray[np.uint8]:
        image = self.entry("images", index)
        name = f"images[{index}]"
        try:
            if "uri" in image:
                uri = _text(image["uri"], "an image's uri")
                name = name if uri.startswith("data:") else f"'{shorten(uri)}'"
                return self._pictures.decode(self._resource(uri))
            return self._pictures.decode(bytes(self._view(image["bufferView"])))
        except (InputError, KeyError) as error:
            raise PictureError(f"{name}: {error}") from error

    def _resource(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            header, _, data = uri.partition(",")
            try:
                return base64.b64decode(data) if header.endswith(";base64") else unquote_to_bytes(data)
            except binascii.Error as error:
                raise ValueError(f"a data URI is broken: {error}") from error
        if uri not in self._files:
            left = self.limits.file_bytes - sum(map(len, self._files.values()))
            self._files[uri] = self.folder.read_uri(uri, left)
        return self._files[uri]

    def _buffer(self, index: Any) -> bytes:
        if index not in self._buffers:
            buffer = self.entry("buffers", index)
            length = _count(buffer.get("byteLength"), f"buffers[{index}].byteLength")
            if "uri" in buffer:
                content = self._resource(_text(buffer["uri"], "a buffer's uri"))
            elif index == 0:
                content = self._binary
            else:
                raise ValueError(f"buffers[{index}] has no content")
            if len(content) < length:
                raise ValueError(f"buffers[{index}] has {len(content)} of its {length} bytes")
            self._buffers[index] = content[:length]
        return self._buffers[index]

    def _view(self, index: Any) -> memoryview:
        view = self.entry("bufferViews", index)
        content = self._buffer(view.get("buffer"))
        start = _count(view.get("byteOffset", 0), f"bufferViews[{index}].byteOffset")
        length = _count(view.get("byteLength"), f"bufferViews[{index}].byteLength")
        if start + length > len(content):
            raise ValueError(f"bufferViews[{index}] ends at byte {start + length} of a buffer of {len(content)}")
        return memoryview(content)[start : start + length]

    def _elements(self, accessor: dict[str, Any], index: Any, rows: NDArray[np.int64] | None) -> NDArray[Any]:
        """An accessor's elements [n,w], all or `rows`, as they are stored, sparse ones put in."""
        name = f"accessors[{index}]"
        count = _count(accessor.get("count"), f"{name}.count")
        kind, width = accessor.get("componentType"), _WIDTHS.get(accessor.get("type", ""))
        if kind not in _COMPONENTS or width is None:
            raise ValueError(f"{name} is of no type that is read")
        dtype = np.dtype(_COMPONENTS[kind])
        if "bufferView" in accessor:
            offset = _count(accessor.get("byteOffset", 0), f"{name}.byteOffset")
            step = self.entry("bufferViews", accessor["bufferView"]).get("byteStride")
            values = _strided_view(self._view(accessor["bufferView"]), offset, step, dtype, count, width, name)
        else:
            if count > 3 * self.limits.triangles:
                raise ValueError(f"{name} has {count} elements and no data; at most {3 * self.limits.triangles}")
            values = np.zeros((count, width), dtype)
        values = self._with_sparse(values, accessor["sparse"], name) if "sparse" in accessor else values
        return values if rows is None else values[rows]

    def _with_sparse(self, values: NDArray[Any], sparse: dict[str, Any], name: str) -> NDArray[Any]:
        count = _count(sparse.get("count"), f"{name}.sparse.count")
        if count > len(values):
            raise ValueError(f"{name} replaces {count} of its {len(values)} elements")
        indices, replacement = sparse["indices"], sparse["values"]
        if indices.get("componentType") not in _INDEX_COMPONENTS:
            raise ValueError(f"{name}.sparse.indices are not unsigned integers")
        places, replaced = (
            _strided_view(
                self._view(part["bufferView"]),
                _count(part.get("byteOffset", 0), f"{name}.sparse"),
                None,
                dtype,
                count,
                width,
                f"{name}.sparse",
            )
            for part, dtype, width in (
                (indices, np.dtype(_COMPONENTS[indices["componentType"]]), 1),
                (replacement, values.dtype, values.shape[1]),
            )
        )
        if count and int(places.max()) >= len(values):
            raise ValueError(f"{name}.sparse replaces element {int(places.max())} of {len(values)}")
        changed = values.copy()
        changed[places[:, 0].astype(np.int64)] = replaced
        return changed

    def _check_version(self) -> None:
        asset = self.tree.get("asset", {})
        version = str(asset.get("minVersion", asset.get("version", "2.0"))) if isinstance(asset, dict) else ""
        if not version.startswith("2."):
            raise RenderError(
                Reason.PARSE_ERROR, f"mesh '{self.path}' is glTF {shorten(version, 10)}; convert it to glTF 2.0"
            )

    def _check_extensions(self) -> None:
        required = self.entries("extensionsRequired")
        for name in [*required, *self.entries("extensionsUsed")]:
            if name in COMPRESSIONS and (name in required or not name.startswith("KHR_draco")):
                raise RenderError(
                    Reason.DRACO, f"mesh '{self.path}' is compressed with {name}, which is not read: decompress it"
                )
        for name in required:
            if name not in READ_EXTENSIONS | HARMLESS_EXTENSIONS and not self._textures_have_fallback(name):
                raise RenderError(
                    Reason.PARSE_ERROR,
                    f"mesh '{self.path}' requires the extension {shorten(str(name))}, which is not read",
                )

    def _textures_have_fallback(self, name: Any) -> bool:
        """Whether a texture extension is required, yet every texture has a picture of another kind as well."""
        textures = [t for t in self.entries("textures") if isinstance(t, dict) and name in t.get("extensions", {})]
        return bool(textures) and all("source" in texture for texture in textures)


def _read(path: Path, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Return the JSON, and the binary chunk of a GLB."""
    content, binary = read_regular(path, limits.file_bytes), b""
    name = f"mesh '{path}'"
    if path.suffix.lower() == ".glb" or content[:4] == _GLB_MAGIC:
        if len(content) < 20 or content[:4] != _GLB_MAGIC:
            raise InputError(f"{name} cannot be read: it is not a GLB file")
        version, length, chunk, kind = struct.unpack_from("<4I", content, 4)
        if version != 2:
            raise InputError(f"{name} is a GLB file of version {version}; convert it to glTF 2.0")
        if length > len(content):
            raise InputError(f"{name} cannot be read: truncated, {len(content)} of {length} bytes")
        if kind != _JSON_CHUNK or 20 + chunk > length:
            raise InputError(f"{name} cannot be read: its first chunk is not JSON")
        content, binary = content[20 : 20 + chunk], _binary_chunk(content, 20 + chunk, length, name)
    if len(content) > JSON_BYTES:
        raise InputError(f"{name} cannot be read: its JSON has {len(content)} bytes")
    return parse_json(content.removeprefix(codecs.BOM_UTF8).rstrip(b"\0"), dict, name), binary


def _binary_chunk(content: bytes, start: int, end: int, name: str) -> bytes:
    """The GLB's binary chunk; chunks of other kinds are skipped."""
    while start + 8 <= end:
        length, kind = struct.unpack_from("<2I", content, start)
        if start + 8 + length > end:
            raise InputError(f"{name} cannot be read: a chunk of {length} bytes goes past its end")
        if kind == _BINARY_CHUNK:
            return content[start + 8 : start + 8 + length]
        start += 8 + length
    return b""


def _strided_view(
    view: memoryview, offset: int, step: Any, dtype: np.dtype[Any], count: int, width: int, name: str
) -> NDArray[Any]:
    """`count` elements of `width` numbers from a view, `step` bytes apart (None: without gaps)."""
    size = dtype.itemsize * width
    stride = size if step is None else _count(step, f"the byteStride of {name}")
    if stride < size:
        raise ValueError(f"{name} has elements of {size} bytes, {stride} apart")
    if count and offset + stride * (count - 1) + size > len(view):
        raise ValueError(f"{name} goes past its view: {count} elements of {size} bytes in {len(view)}")
    if count == 0:
        return np.zeros((0, width), dtype)
    return np.ndarray((count, width), dtype, view, offset, (stride, dtype.itemsize))


def _count(value: Any, name: str) -> int:
    if isinstance(value, float) and value.is_integer():  # some writers put 12.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is not a count: {shorten(repr(value), 20)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def vector(value: Any, default: tuple[float, ...], name: str) -> NDArray[np.float64]:
    """A list of finite numbers of the JSON; `default`, of the same length, where it is absent."""
    if value is None:
        return np.array(default, np.float64)
    numbers = [number(item, 0.0, name) for item in value] if isinstance(value, list) else []
    if len(numbers) != len(default):
        raise ValueError(f"{name} is not a list of {len(default)} numbers")
    return np.array(numbers, np.float64)


def number(value: Any, default: float, name: str) -> float:
    """A finite number of the JSON; `default` where it is absent."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name} is not finite")
    return result
