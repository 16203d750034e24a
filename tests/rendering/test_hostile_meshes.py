"""Mesh files that lie: sizes, indices and names are checked before memory is taken or a file is opened."""

import json
import os
import re
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nova3d.rendering.file_access import Limits, PictureError, Pictures, read_regular
from nova3d.rendering.glb import glb_bytes
from nova3d.rendering.mesh_files import read_scene
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError


def refused(path: Path, message: str | None, reason: Reason = Reason.PARSE_ERROR, **limits: int) -> None:
    """Reading ends soon, in one line that names the file, with a reason that no second try can change."""
    began = time.process_time()
    with pytest.raises(RenderError, match=message) as caught:
        load_mesh(path, Limits(**limits))
    assert caught.value.reason == reason and not reason.transient
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400
    assert time.process_time() - began < 5


@pytest.fixture
def square(gltf: Callable[[], Any]) -> Any:
    file = gltf()
    file.node(mesh=file.quad())
    return file


@pytest.mark.parametrize(
    "uri",
    [
        "/dev/zero",
        "..%2F..%2F..%2F..%2F..%2F..%2F..%2F..%2Fdev%2Fzero",
        "pipe",
        "folder",
        "link",
        "../outside.bin",
        "gone.bin",
        "file:///etc/passwd",
        "https://example.org/a.bin",
        "a\0b",
        "x" * 3000,
    ],
)
def test_buffers_are_regular_files_of_the_meshes_folder(tmp_path: Path, square: Any, uri: str) -> None:
    folder = tmp_path / "models"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(square.blob)
    (folder / "link").symlink_to(tmp_path / "outside.bin")
    os.mkfifo(folder / "pipe")
    path = folder / "a.gltf"
    path.write_text(json.dumps(square.json | {"buffers": [{"byteLength": len(square.blob), "uri": uri}]}))
    refused(path, "regular file")
    with pytest.raises(RenderError):
        read_scene(path)


def test_the_mesh_itself_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.glb")
    refused(tmp_path / "a.glb", "no regular file")
    with pytest.raises(Exception, match="no regular file"):
        read_regular(tmp_path / "a.glb", 10)


@pytest.mark.parametrize("where", ["POSITION", "TEXCOORD_0", "indices"])
@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 5000])
@pytest.mark.parametrize("view", [True, False])
def test_accessors_do_not_exceed_their_data(tmp_path: Path, square: Any, where: str, count: int, view: bool) -> None:
    primitive = square.primitive()
    index = primitive["indices"] if where == "indices" else primitive["attributes"][where]
    square.json["accessors"][index]["count"] = count
    if where == "TEXCOORD_0":
        primitive["material"] = square.material(texture=square.texture(np.zeros((2, 2, 3))))
    if not view:
        del square.json["accessors"][index]["bufferView"]
    refused(square.save(tmp_path / "a.gltf"), r"accessors\[|positions|vertex", triangles=1000)


@pytest.mark.parametrize(
    ("collection", "key", "value"),
    [
        ("bufferViews", "byteLength", 10**6),
        ("bufferViews", "byteOffset", 10**6),
        ("bufferViews", "byteOffset", -4),
        ("bufferViews", "byteStride", 1),
        ("bufferViews", "buffer", 3),
        ("bufferViews", "buffer", -1),
        ("accessors", "byteOffset", 10**6),
        ("accessors", "componentType", 5124),
        ("accessors", "type", "MAT9"),
        ("accessors", "count", "12"),
        ("accessors", "count", 1e300),
        ("accessors", "count", None),
        ("accessors", "bufferView", 10**9),
        ("accessors", "sparse", {"count": 1, "indices": {"bufferView": 0, "componentType": 5123}, "values": {}}),
        ("accessors", "sparse", {"count": 10**9, "indices": {}, "values": {}}),
        ("nodes", "mesh", 7),
        ("nodes", "mesh", -1),
        ("nodes", "children", [0]),
        ("nodes", "children", "abc"),
        ("nodes", "matrix", [1, 2, 3]),
        ("nodes", "scale", ["a", "b", "c"]),
        ("nodes", "skin", 0),
        ("scenes", "nodes", [5]),
        ("meshes", "primitives", {}),
        ("meshes", "primitives", [3]),
    ],
)
def test_broken_structure_is_refused(tmp_path: Path, square: Any, collection: str, key: str, value: Any) -> None:
    if key == "skin":
        square.primitive()["attributes"]["JOINTS_0"] = square.typed(np.zeros((4, 4), np.uint8))
        square.primitive()["attributes"]["WEIGHTS_0"] = square.accessor(np.ones((4, 4)))
    square.json[collection][0][key] = value
    reason = Reason.EMPTY_SCENE if value == {} else Reason.PARSE_ERROR
    refused(square.save(tmp_path / "a.gltf"), None, reason)


def test_indices_past_the_vertices_are_a_parse_error(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.mesh(np.eye(3), [0, 1, 1002]))
    refused(file.save(tmp_path / "a.gltf"), "vertex 1002 of its 3")
    ply = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    ply += b"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 77\n"
    (tmp_path / "a.ply").write_bytes(ply)
    refused(tmp_path / "a.ply", None)
    (tmp_path / "a.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 77\n")
    refused(tmp_path / "a.off", None)


def test_nodes_are_a_tree(tmp_path: Path, square: Any) -> None:
    nodes = square.json["nodes"]
    for k in range(24):  # two parents each: 2^24 paths
        nodes += [{"children": [2 * k + 3, 2 * k + 4]}, {"children": [2 * k + 3, 2 * k + 4]}]
    nodes += [{"mesh": 0}, {"mesh": 0}]
    square.json["scenes"][0]["nodes"] = [1]
    refused(square.save(tmp_path / "dag.gltf"), r"nodes\[3\] has two parents")
    square.json["nodes"] = [{"children": [1]}, {"children": [0], "mesh": 0}]
    refused(square.save(tmp_path / "cycle.gltf"), "below itself")


def test_deep_nodes_and_many_nodes_are_read_soon(tmp_path: Path, square: Any) -> None:
    count = 3000
    square.json["nodes"] = [{"children": [k + 1], "translation": [0.001, 0, 0]} for k in range(count)] + [{"mesh": 0}]
    assert float(load_mesh(square.save(tmp_path / "deep.gltf")).vertices[:, 0].max()) == pytest.approx(3.5)
    square.json["nodes"] = [{"mesh": 0, "translation": [k, 0, 0]} for k in range(count)]
    square.json["scenes"][0]["nodes"] = list(range(count))
    path = square.save(tmp_path / "many.gltf")
    assert len(load_mesh(path).faces) == 2 * count
    refused(path, "more than 100 triangles", triangles=100)


@pytest.mark.parametrize("head", ["ascii", "binary_little_endian"])
def test_headers_that_promise_too_much(tmp_path: Path, head: str) -> None:
    text = f"ply\nformat {head} 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\nproperty float z\n"
    text += "element face 4000000000\nproperty list uchar int vertex_indices\nend_header\n"
    path = tmp_path / "a.ply"
    path.write_bytes(text.encode() + bytes(60))
    with pytest.raises(RenderError) as caught:
        load_mesh(path)
    assert not caught.value.reason.transient
    (tmp_path / "a.stl").write_bytes(bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(100))
    with pytest.raises(RenderError):
        load_mesh(tmp_path / "a.stl")


def png(side: int) -> bytes:
    """A black picture of side x side pixels, in a few kB."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures_that_unfold_are_refused_by_their_size(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    bomb = png(1200)
    with pytest.raises(PictureError, match="1200 x 1200 pixels are more than 1000000"):
        Pictures(Limits(texture_pixels=10**6)).decode(bomb)
    assert Pictures().decode(bomb).shape == (1200, 1200, 4)
    (tmp_path / "t.png").write_bytes(bomb)
    file = gltf()
    texture = file.add("textures", {"source": file.add("images", {"uri": "t.png"})})
    file.node(mesh=file.quad(file.material(texture=texture)))
    missing = load_mesh(file.save(tmp_path / "a.gltf"), Limits(texture_pixels=10**6)).file.missing_textures
    assert len(missing) == 1 and re.search("t.png.*more than 1000000", missing[0])


def test_files_beyond_the_limit_are_not_read(tmp_path: Path, square: Any) -> None:
    path = square.save(tmp_path / "a.gltf")
    refused(path, "bytes; at most 100 are read", file_bytes=100)


@pytest.mark.parametrize(
    "content",
    [
        b'{"asset": {"version": "2.0"}, "extras": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"asset": {"version": "2.0"}, "extras": ' + b"1" * 5000 + b"}",
        b'{"asset": {"version": "2.0"}, "nodes": 3}',
        b'{"asset": [], "nodes": {}}',
        b'{"asset": {"version": "2.0"}, "extensionsRequired": "KHR_texture_transform"}',
        b'{"asset": {"version": "2.0", "minVersion": "3.0"}}',
        b'{"asset": {"version": "1.0"}}',
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"asset": {"version": "2.0"}, "x": NaN}',
    ],
)
def test_json_that_is_no_gltf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gltf").write_bytes(content)
    refused(tmp_path / "a.gltf", None)


def test_other_kinds_of_files_are_refused_with_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.fbx").write_bytes(b"Kaydara")
    refused(tmp_path / "a.fbx", r"not read; give one of \.glb, \.gltf, \.obj")


def test_pictures_together_are_refused_by_their_size(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(300 + k))
        texture = file.add("textures", {"source": file.add("images", {"uri": f"{k}.png"})})
        file.node(mesh=file.quad(file.material(texture=texture)))
    path = file.save(tmp_path / "a.gltf")
    missing = load_mesh(path, Limits(texture_pixels=100_000)).file.missing_textures
    assert [name.split(":")[0] for name in missing] == ["'4.png'", "'5.png'"]
    assert "more than 400000 pixels together" in missing[0]
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(300))
    assert not load_mesh(path, Limits(texture_pixels=100_000)).file.missing_textures  # one picture of six names


def test_materials_share_their_picture(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    (tmp_path / "t.png").write_bytes(png(64))
    for k in range(5):
        image = {"uri": "./" * k + "t.png"}
        texture = file.add("textures", {"source": file.add("images", image)})
        file.node(mesh=file.quad(file.material((1, k / 5, 1, 1), texture)))
    path = file.save(tmp_path / "a.gltf")
    mesh = load_mesh(path)
    assert len(mesh.textures) == 5 and len({texture.data_ptr() for texture in mesh.textures}) == 1
    assert mesh.colours[:, 1].unique().numel() == 5  # the factors stay their own
    content = glb_bytes(read_scene(path).parts)
    assert content.count(b"\x89PNG") == 1 and content.count(b'"baseColorTexture"') == 5


def test_primitives_read_their_own_of_a_shared_list_of_vertices(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    count = 30_000
    points = np.random.default_rng(0).random((count, 3), np.float32)
    file = gltf()
    shared = {"POSITION": file.accessor(points), "NORMAL": file.accessor(np.tile([0, 0, 1], (count, 1)))}
    corners = [[7, 20_000, 3], [29_999, 7, 0], [5, 6, 5_000]]
    primitives = [{"attributes": shared, "indices": file.accessor(np.array(c), indices=True)} for c in corners]
    file.node(mesh=file.add("meshes", {"primitives": primitives}))
    scene = read_scene(file.save(tmp_path / "a.gltf"))
    assert [len(part.positions) for part in scene.parts] == [3, 3, 3]
    for part, expected in zip(scene.parts, corners, strict=True):
        assert part.normals is not None and len(part.normals) == 3
        np.testing.assert_array_equal(part.positions[part.faces[0]], points[expected].astype(float))


def test_instances_are_counted_before_they_are_placed(tmp_path: Path, square: Any) -> None:
    instances = {"TRANSLATION": square.accessor(np.zeros((2, 3)))}
    square.json["accessors"][instances["TRANSLATION"]] = {"componentType": 5126, "count": 50_000_000, "type": "VEC3"}
    square.json["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": instances}}
    refused(square.save(tmp_path / "a.gltf"), "more than 20000000 triangles")


def test_leaves_below_deep_nodes_are_read_soon(tmp_path: Path, square: Any) -> None:
    count = 3000
    chain = [{"children": [k + 1]} for k in range(count)]
    chain[-1]["children"] = list(range(count, 2 * count))
    square.json["nodes"] = chain + [{"mesh": 0}] * count
    square.json["scenes"][0]["nodes"] = [*range(count, 2 * count), 0]
    began = time.process_time()
    assert len(load_mesh(square.save(tmp_path / "a.gltf")).faces) == 2 * count  # each once, though listed twice
    assert time.process_time() - began < 2


def test_buffers_of_one_file_are_read_once(tmp_path: Path, square: Any) -> None:
    square.blob += bytes(20_000)
    (tmp_path / "a.bin").write_bytes(square.blob)
    accessors = list(square.json["accessors"])
    for k in range(1, 6):  # the square again, five times, from buffers of their own
        for accessor in accessors:
            view = square.json["bufferViews"][accessor["bufferView"]] | {"buffer": k}
            square.json["accessors"].append(accessor | {"bufferView": square.add("bufferViews", view)})
        primitive = json.loads(json.dumps(square.primitive()))
        offset = k * len(accessors)
        primitive["attributes"] = {name: index + offset for name, index in primitive["attributes"].items()}
        primitive["indices"] += offset
        square.node(mesh=square.add("meshes", {"primitives": [primitive]}))
    path = tmp_path / "a.gltf"
    for prefix, most in (("", 30_000), ("./", 130_000)):
        names = [prefix * k + "a.bin" for k in range(6)]
        buffers = [{"byteLength": len(square.blob), "uri": name} for name in names]
        path.write_text(json.dumps(square.json | {"buffers": buffers}))
        assert len(load_mesh(path, Limits(file_bytes=most)).faces) == 12
    refused(path, "has 20.* bytes; at most .* are read", file_bytes=100_000)


def test_polygons_that_cross_themselves_end_soon(tmp_path: Path) -> None:
    count = 1500
    path = tmp_path / "a.obj"
    points = np.random.default_rng(0).random((count, 2))
    corners = " ".join(str(k + 1) for k in range(count))
    path.write_text("".join(f"v {x} {y} 0\n" for x, y in points) + f"f {corners}\n")
    began = time.process_time()
    assert len(load_mesh(path).faces) == count - 2
    assert time.process_time() - began < 5
    path.write_text("".join(f"v {x} {y} 0\n" for x, y in points) + f"f {corners}\n" * 500)
    refused(path, "polygons with inner corners have too many corners")


def test_textures_of_ply_have_their_own_vertices(tmp_path: Path) -> None:
    text = "ply\nformat ascii 1.0\ncomment TextureFile a.png\ncomment TextureFile b.png\nelement vertex 5\n"
    text += "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    text += "element face 2\nproperty list uchar int vertex_indices\nproperty int texnumber\nend_header\n"
    text += "0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n1 1 0 1 1\n2 1 0 .5 1\n3 0 1 2 0\n3 1 4 3 1\n"
    (tmp_path / "a.ply").write_text(text)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(8))
    first, second = read_scene(tmp_path / "a.ply").parts
    assert first.positions.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]] and first.faces.tolist() == [[0, 1, 2]]
    assert second.positions[second.faces[0]].tolist() == [[1, 0, 0], [2, 1, 0], [1, 1, 0]]
    assert second.uv is not None and second.uv[second.faces[0]].tolist() == [[1, 0], [0.5, 1], [1, 1]]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["v 0 0 0"] * 3, Reason.EMPTY_SCENE),
        (["v 1 1 1"] * 3 + ["f 1 2 3"], Reason.EMPTY_SCENE),
        (["v 0 0 0", "v 1 0 0", "v 0 inf 0", "f 1 2 3"], Reason.PARSE_ERROR),
    ],
)
def test_geometry_that_cannot_be_drawn_has_a_reason(tmp_path: Path, lines: list[str], reason: Reason) -> None:
    (tmp_path / "a.obj").write_text("\n".join(lines))
    with pytest.raises(RenderError, match=r"a\.obj") as caught:
        read_scene(tmp_path / "a.obj")
    assert caught.value.reason == reason
