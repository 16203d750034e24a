"""glTF files: the colour and the place of every surface, by hand-made files and values worked out from the standard."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nova3d import cameras
from nova3d.rendering.engine import EngineConfig, Rendered, make_engine
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError

SIZE = 48
QUAD = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
FACES = np.array([0, 1, 2, 0, 2, 3])
UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
FOUR = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8).repeat(8, 0).repeat(8, 1)
CORNERS = [(-0.25, 0.25), (0.25, 0.25), (-0.25, -0.25), (0.25, -0.25)]  # as FOUR is read
UPRIGHT = [RED, GREEN, BLUE, YELLOW]


def draw(path: Path, normalise: bool = True, **settings: Any) -> Rendered:
    config = EngineConfig(light="flat", supersample=1, **settings)
    return make_engine(config, normalise).render(path, cameras.orbit(1, size=SIZE), lambda done: None)


def colours(path: Path) -> list[tuple[int, ...]]:
    """The colours in the four quarters of a square of side 1, as 0...255."""
    rgba = draw(path).rgba[0]
    places = [(int((0.5 - y / 1.5) * SIZE), int((x / 1.5 + 0.5) * SIZE)) for x, y in CORNERS]
    return [tuple((rgba[row, column, :3] * 255).round().int().tolist()) for row, column in places]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int = 4) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= tolerance)


def textured(gltf: Callable[[], Any], *, sampler: dict[str, Any] | None = None, **info: Any) -> tuple[Any, int]:
    """A file with the four colours as a texture; `info` goes into the textureInfo."""
    file = gltf()
    texture = file.texture(FOUR)
    if sampler is not None:
        file.json["textures"][texture]["sampler"] = file.add("samplers", sampler)
    material = file.material(texture=texture)
    file.json["materials"][material]["pbrMetallicRoughness"]["baseColorTexture"] |= info
    return file, material


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(None, (255, 0, 0)), ((1, 1, 1, 1), (255, 0, 0)), ((0.5, 0.5, 0.5, 1), (188, 0, 0))],  # sRGB of 0.5 is 188
    ids=["no material", "white", "half"],
)
@pytest.mark.parametrize("kind", ["f4", "u1", "u2", "rgba"])
def test_vertex_colours_times_the_factor(
    tmp_path: Path, gltf: Callable[[], Any], factor: tuple[float, ...] | None, expected: Any, kind: str
) -> None:
    file = gltf()
    mesh = file.mesh(QUAD, FACES, None if factor is None else file.material(factor))
    red = np.tile(np.array([1, 0, 0, 1] if kind == "rgba" else [1, 0, 0]), (4, 1))
    colour = {"u1": red * 255, "u2": red * 65535}.get(kind, red).astype("f4" if kind == "rgba" else kind)
    padded = np.concatenate([colour, colour[:, :1]], axis=1) if kind == "u1" else colour  # rows at multiples of 4
    index = file.typed(padded, normalized=True)
    if kind == "u1":
        entry = file.json["accessors"][index]
        file.json["bufferViews"][entry["bufferView"]]["byteStride"] = 4
        entry["type"] = "VEC3"
    file.primitive(mesh)["attributes"]["COLOR_0"] = index
    file.node(mesh=mesh)
    assert close(colours(file.save(tmp_path / "a.gltf")), [expected] * 4)


def test_colours_are_interpolated_in_linear_light(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.mesh(QUAD, FACES, COLOR_0=[[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]))
    row = draw(file.save(tmp_path / "a.gltf")).rgba[0, SIZE // 2]
    middle = (float(row[23, 0]) + float(row[24, 0])) / 2
    assert middle == pytest.approx(188 / 255, abs=0.02)


def test_texture_times_vertex_colours(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file, material = textured(gltf)
    file.node(mesh=file.mesh(QUAD, FACES, material, TEXCOORD_0=UV, COLOR_0=[[1, 0, 1]] * 4))
    assert close(colours(file.save(tmp_path / "a.gltf")), [RED, (0, 0, 0), BLUE, RED])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normalised_coordinates(tmp_path: Path, gltf: Callable[[], Any], dtype: Any) -> None:
    file, material = textured(gltf)
    mesh = file.mesh(QUAD, FACES, material)
    largest = np.iinfo(dtype).max
    padded = np.zeros((4, 4 // np.dtype(dtype).itemsize), dtype)
    padded[:, :2] = (UV * largest).round()
    index = file.typed(padded, normalized=True)
    entry = file.json["accessors"][index]
    file.json["bufferViews"][entry["bufferView"]]["byteStride"] = 4
    entry["type"] = "VEC2"
    file.primitive(mesh)["attributes"]["TEXCOORD_0"] = index
    file.node(mesh=mesh)
    assert close(colours(file.save(tmp_path / "a.gltf")), UPRIGHT)


@pytest.mark.parametrize(("dtype", "normalized"), [("i1", True), ("i2", True), ("u1", True), ("i2", False)])
def test_quantised_positions_and_normals(tmp_path: Path, gltf: Callable[[], Any], dtype: str, normalized: bool) -> None:
    file = gltf()
    mesh = file.mesh(QUAD, FACES)
    largest = np.iinfo(dtype).max
    positions = ((QUAD + (0.5 if dtype == "u1" else 0)) * largest).round().astype(dtype)
    padded = np.zeros((4, 4), dtype)
    padded[:, :3] = positions
    normals = np.zeros((4, 4), "i1")
    normals[:, 2] = 127
    attributes = file.primitive(mesh)["attributes"]
    for name, values, step in (("POSITION", padded, padded.strides[0]), ("NORMAL", normals, 4)):
        attributes[name] = file.typed(values, normalized=normalized or name == "NORMAL")
        entry = file.json["accessors"][attributes[name]]
        entry["type"] = "VEC3"
        file.json["bufferViews"][entry["bufferView"]]["byteStride"] = step
    file.node(mesh=mesh)
    file.json["extensionsRequired"] = file.json["extensionsUsed"] = ["KHR_mesh_quantization"]
    loaded = load_mesh(file.save(tmp_path / "a.gltf"))
    side = 1 if normalized else largest
    extent = loaded.vertices.amax(0) - loaded.vertices.amin(0)
    assert extent.tolist() == pytest.approx([side, side, 0], rel=0.01)
    assert loaded.normals.tolist() == [[0, 0, 1]] * 4 and loaded.has_normals


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"offset": [0.5, 0]}, [GREEN, RED, YELLOW, BLUE]),
        ({"offset": [0, 0.5]}, [BLUE, YELLOW, RED, GREEN]),
        ({"scale": [0.5, 0.5], "offset": [0.5, 0.5]}, [YELLOW] * 4),
        # (u, v) -> (v, -u), repeated: the upper left quarter (0.25, 0.25) shows (0.25, 0.75)
        ({"rotation": np.pi / 2}, [BLUE, RED, YELLOW, GREEN]),
        ({"texCoord": 1}, [YELLOW, BLUE, GREEN, RED]),
    ],
)
def test_texture_transforms(
    tmp_path: Path, gltf: Callable[[], Any], transform: dict[str, Any], expected: list[Any]
) -> None:
    file, material = textured(gltf, extensions={"KHR_texture_transform": transform})
    file.json["extensionsUsed"] = file.json["extensionsRequired"] = ["KHR_texture_transform"]
    file.node(mesh=file.mesh(QUAD, FACES, material, TEXCOORD_0=UV, TEXCOORD_1=1 - UV))
    assert close(colours(file.save(tmp_path / "a.gltf")), expected)


def test_the_second_set_of_coordinates(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file, material = textured(gltf, texCoord=1)
    file.node(mesh=file.mesh(QUAD, FACES, material, TEXCOORD_0=UV, TEXCOORD_1=1 - UV))
    assert close(colours(file.save(tmp_path / "a.gltf")), [YELLOW, BLUE, GREEN, RED])


@pytest.mark.parametrize(
    ("wraps", "uv", "expected"),
    [
        ((33071, 33071), UV * 2 + 1, [YELLOW] * 4),
        ((33648, 33648), UV + np.array([1, 0]), [GREEN, RED, YELLOW, BLUE]),
        ((33648, 10497), UV + np.array([-1, 1]), [GREEN, RED, YELLOW, BLUE]),
        ((10497, 33648), UV + np.array([1, 1]), [BLUE, YELLOW, RED, GREEN]),
        ((10497, 10497), UV + 7, UPRIGHT),
    ],
)
def test_wrap_modes(tmp_path: Path, gltf: Callable[[], Any], wraps: Any, uv: Any, expected: list[Any]) -> None:
    file, material = textured(gltf, sampler={"wrapS": wraps[0], "wrapT": wraps[1]})
    file.node(mesh=file.mesh(QUAD, FACES, material, TEXCOORD_0=uv))
    assert close(colours(file.save(tmp_path / "a.gltf")), expected)


def test_nearest_lookups_keep_texels_square(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    for name, sampler, kinds in (("a", {"magFilter": 9728}, 2), ("b", {"magFilter": 9729}, 8)):
        file = gltf()
        texture = file.texture(np.array([[[0, 0, 0], [255, 255, 255]]]))
        file.json["textures"][texture]["sampler"] = file.add("samplers", sampler)
        file.node(mesh=file.quad(file.material(texture=texture)))
        row = draw(file.save(tmp_path / f"{name}.gltf")).rgba[0, SIZE // 2, 9:39, 0]
        found = len(row.unique())
        assert found == kinds if kinds == 2 else found >= kinds


@pytest.mark.parametrize(("mode", "holes"), [("OPAQUE", False), ("MASK", True), ("BLEND", False)])
def test_the_alpha_of_vertex_colours(tmp_path: Path, gltf: Callable[[], Any], mode: str, holes: bool) -> None:
    file = gltf()
    material = file.material(alphaMode=mode)
    alpha = [0.1, 0.9, 0.9, 0.1]  # less than 0.5 on the left half
    file.node(mesh=file.mesh(QUAD, FACES, material, COLOR_0=[[1, 1, 1, a] for a in alpha]))
    rendered = draw(file.save(tmp_path / "a.gltf"))
    left, right = rendered.rgba[0, SIZE // 2, [14, 34], 3].tolist()
    assert (left == 0) is holes and right == 1
    assert rendered.facts["opacity"] == pytest.approx(0.5 if mode == "BLEND" else 1.0, abs=0.02)


@pytest.mark.parametrize("mode", [5, 6])
@pytest.mark.parametrize("indexed", [True, False])
def test_strips_and_fans(tmp_path: Path, gltf: Callable[[], Any], mode: int, indexed: bool) -> None:
    file = gltf()
    order = [0, 1, 3, 2] if mode == 5 else [0, 1, 2, 3]
    fan = file.mesh(QUAD[order] * [0.5, 1, 1] - [0.25, 0, 0], [0, 1, 2, 3], file.material((1, 0, 0, 1)), mode)
    if not indexed:
        del file.primitive(fan)["indices"]
    green = file.mesh(QUAD * [0.5, 1, 1] + [0.25, 0, 0], FACES, file.material((0, 1, 0, 1)))
    file.node(mesh=fan)
    file.node(mesh=green)
    path = file.save(tmp_path / "a.gltf")
    assert close(colours(path), [RED, GREEN, RED, GREEN])
    assert (load_mesh(path).normals[:, 2] > 0.99).all()  # both triangles turn the same way


def test_instances(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    turn = [0, 0, float(np.sqrt(0.5)), float(np.sqrt(0.5))]
    attributes = {
        "TRANSLATION": file.accessor(np.array([[0, 0, 0], [2, 0, 0]])),
        "ROTATION": file.accessor(np.array([[0, 0, 0, 1], turn])),
        "SCALE": file.accessor(np.array([[1, 1, 1], [1, 3, 1]])),
    }
    file.node(
        mesh=file.mesh(QUAD, FACES),
        translation=[0, 10, 0],
        extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}},
    )
    file.json["extensionsUsed"] = file.json["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    mesh = load_mesh(file.save(tmp_path / "a.gltf"))
    assert len(mesh.faces) == 4
    vertices = mesh.vertices.double() + mesh.origin
    low, high = vertices.amin(0).tolist(), vertices.amax(0).tolist()
    # The second is 1 x 3 turned by 90 degrees: 3 wide about x = 2.
    assert low == pytest.approx([-0.5, 9.5, 0]) and high == pytest.approx([3.5, 10.5, 0])


def test_sparse_accessors(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    mesh = file.mesh(QUAD, FACES)
    corner = file.typed(np.array([[0.5, 1.5, 0]], np.float32))
    at = file.typed(np.array([2], np.uint16))
    views = [file.json["accessors"][k]["bufferView"] for k in (at, corner)]
    sparse = {
        "count": 1,
        "indices": {"bufferView": views[0], "componentType": 5123},
        "values": {"bufferView": views[1]},
    }
    position = file.primitive(mesh)["attributes"]["POSITION"]
    file.json["accessors"][position]["sparse"] = sparse
    file.node(mesh=mesh)
    assert load_mesh(file.save(tmp_path / "a.gltf")).vertices.amax(0).tolist() == [0.5, 1.5, 0]
    del file.json["accessors"][position]["bufferView"]  # all else is 0
    assert load_mesh(file.save(tmp_path / "b.gltf")).vertices.unique().tolist() == [0, 0.5, 1.5]


def bar(file: Any, node: dict[str, Any], joint: dict[str, Any]) -> int:
    """A bar along X, bound to one joint."""
    solid = trimesh.creation.box((1, 0.2, 0.2))
    mesh = file.solid(solid)
    count = len(solid.vertices)
    attributes = file.primitive(mesh)["attributes"]
    attributes["JOINTS_0"] = file.typed(np.zeros((count, 4), np.uint8))
    attributes["WEIGHTS_0"] = file.accessor(np.tile([1, 0, 0, 0], (count, 1)))
    bind = file.typed(np.eye(4, dtype=np.float32).reshape(1, 16))
    bone = file.node(**joint)
    file.add("skins", {"joints": [bone], "inverseBindMatrices": bind})
    file.node(mesh=mesh, skin=0, **node)
    return bone


TURN = {"rotation": [0, 0, 0.7071067811865476, 0.7071067811865476]}


@pytest.mark.parametrize(("node", "joint", "tall"), [(TURN, {}, False), ({}, TURN, True), (TURN, TURN, True)])
def test_skins_follow_their_joints_and_not_their_node(
    tmp_path: Path, gltf: Callable[[], Any], node: Any, joint: Any, tall: bool
) -> None:
    file = gltf()
    bar(file, node, joint)
    mesh = load_mesh(file.save(tmp_path / "a.gltf"))
    width, height, _ = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist()
    assert (width, height) == pytest.approx((0.2, 1) if tall else (1, 0.2), abs=1e-6)
    assert mesh.file.skins == 1


def test_an_animation_stands_as_at_time_0(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    bone = bar(file, {}, {})
    half = float(np.sqrt(0.5))
    keys = file.accessor(np.array([[0, 0, half, half], [0, 0, 0, 1]]))
    sampler = {"input": file.accessor(np.array([0.0, 1.0])), "output": keys}
    channel = {"sampler": 0, "target": {"node": bone, "path": "rotation"}}
    file.add("animations", {"samplers": [sampler], "channels": [channel]})
    rendered = draw(file.save(tmp_path / "a.gltf"))
    assert rendered.facts["pose"] == "frame 0" and rendered.facts["animations"] == 1
    assert rendered.mesh is not None
    extent = rendered.mesh.vertices.amax(0) - rendered.mesh.vertices.amin(0)
    assert extent[:2].tolist() == pytest.approx([0.2, 1], abs=1e-6)


@pytest.mark.parametrize(("mesh_weight", "node_weight", "height"), [(1.0, None, 2), (1.0, 0.5, 1.5), (None, None, 1)])
def test_morph_weights(
    tmp_path: Path, gltf: Callable[[], Any], mesh_weight: float | None, node_weight: float | None, height: float
) -> None:
    file = gltf()
    mesh = file.mesh(QUAD, FACES)
    file.primitive(mesh)["targets"] = [{"POSITION": file.accessor(QUAD * [0, 1, 0])}]
    if mesh_weight is not None:
        file.json["meshes"][mesh]["weights"] = [mesh_weight]
    file.node(mesh=mesh, **({} if node_weight is None else {"weights": [node_weight]}))
    loaded = load_mesh(file.save(tmp_path / "a.gltf"))
    assert float(loaded.vertices[:, 1].max() - loaded.vertices[:, 1].min()) == pytest.approx(height)


def test_meshes_below_cameras_and_hidden_nodes(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    child = file.node(False, mesh=file.quad())
    file.json["cameras"] = [{"type": "perspective", "perspective": {"yfov": 0.7, "znear": 0.1}}]
    file.node(camera=0, children=[child])
    file.node(mesh=file.quad(), translation=[5, 0, 0], extensions={"KHR_node_visibility": {"visible": False}})
    mesh = load_mesh(file.save(tmp_path / "a.gltf"))
    assert len(mesh.faces) == 2 and float(mesh.vertices.max()) == 0.5


def test_far_from_the_origin_nothing_is_lost(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file, far = gltf(), gltf()
    ball = trimesh.creation.icosphere(2, 0.5)
    for target, place in ((file, [0, 0, 0]), (far, [500000, 30, 4500000])):
        target.node(mesh=target.solid(ball), translation=place)
    near, away = draw(file.save(tmp_path / "a.gltf")), draw(far.save(tmp_path / "b.gltf"))
    assert (near.rgba - away.rgba).abs().max() < 1e-3 and (near.normals - away.normals).abs().max() < 1e-3
    assert away.facts["centre"] == pytest.approx([500000, 30, 4500000])


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_normals_that_are_none_fall_back_to_the_face(tmp_path: Path, gltf: Callable[[], Any], bad: float) -> None:
    file = gltf()
    ball = trimesh.creation.icosphere(2, 0.5)
    normals = ball.vertices / 0.5
    top = int(ball.vertices[:, 2].argmax())
    normals[top] = bad
    file.node(mesh=file.mesh(ball.vertices, ball.faces, NORMAL=normals))
    rendered = draw(file.save(tmp_path / "a.gltf"))
    assert torch.isfinite(rendered.normals).all() and torch.isfinite(rendered.rgba).all()
    middle = rendered.normals[0, SIZE // 2, SIZE // 2]
    assert float(middle.norm()) == pytest.approx(1) and float(middle[2]) > 0.95


def test_an_outline_is_drawn_from_its_front_alone(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    ball = trimesh.creation.icosphere(2, 0.5)
    shown = {"doubleSided": False}
    file.node(mesh=file.mesh(ball.vertices * 0.95, ball.faces, file.material((1, 0, 0, 1), **shown)))
    shell = file.mesh(ball.vertices, ball.faces[:, ::-1], file.material((0, 0, 0, 1), **shown))
    file.node(mesh=shell)
    path = file.save(tmp_path / "a.gltf")
    assert close(colours(path), [RED] * 4)
    assert draw(path).facts["inverted_hull"] == 0.5
    rim = draw(path).rgba[0, SIZE // 2]
    covered = rim[:, 3].nonzero()[:, 0]
    assert rim[covered[0], :3].tolist() == [0, 0, 0]  # the far side of the shell, as in any viewer
    file.json["materials"][1]["doubleSided"] = True
    assert close(colours(file.save(tmp_path / "b.gltf")), [(0, 0, 0)] * 4)
    alone = gltf()  # a whole object turned inside out is no outline
    alone.node(mesh=alone.mesh(ball.vertices, ball.faces[:, ::-1], alone.material((1, 0, 0, 1), **shown)))
    assert close(colours(alone.save(tmp_path / "c.gltf")), [RED] * 4)


def with_image(gltf: Callable[[], Any], content: bytes, mime: str, **texture: Any) -> Any:
    file = gltf()
    view = file.add("bufferViews", {"buffer": 0, "byteOffset": len(file.blob), "byteLength": len(content)})
    file.blob += content + b"\0" * (-len(content) % 4)
    image = file.add("images", {"bufferView": view, "mimeType": mime})
    index = file.add("textures", texture or {"source": image})
    file.node(mesh=file.quad(file.material(texture=index)))
    return file


def test_pictures_that_cannot_be_decoded_are_missing(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    broken = with_image(gltf, b"\x89PNG not really", "image/png")
    assert draw(broken.save(tmp_path / "a.gltf")).facts["missing_textures"] == 1
    ktx = b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(100)
    basis = with_image(gltf, ktx, "image/ktx2", extensions={"KHR_texture_basisu": {"source": 0}})
    basis.json["extensionsUsed"] = ["KHR_texture_basisu"]
    assert draw(basis.save(tmp_path / "b.gltf")).facts["missing_textures"] == 1
    basis.json["extensionsRequired"] = ["KHR_texture_basisu"]
    with pytest.raises(RenderError, match="KHR_texture_basisu"):
        draw(basis.save(tmp_path / "c.gltf"))


@pytest.mark.parametrize("name", ["KHR_gaussian_splatting", "EXT_texture_avif", "VENDOR_unheard_of"])
def test_required_extensions_that_are_not_read_are_named(tmp_path: Path, gltf: Callable[[], Any], name: str) -> None:
    file = gltf()
    file.node(mesh=file.quad())
    file.json["extensionsUsed"] = [name]
    assert len(load_mesh(file.save(tmp_path / "a.gltf")).faces) == 2
    file.json["extensionsRequired"] = [name]
    with pytest.raises(RenderError, match=name) as caught:
        load_mesh(file.save(tmp_path / "b.gltf"))
    assert caught.value.reason == Reason.PARSE_ERROR


def test_glossy_materials_of_the_older_extension(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    glossy = {"diffuseFactor": [1, 0, 1, 1], "diffuseTexture": {"index": file.texture(FOUR)}}
    file.node(mesh=file.quad(file.material(extensions={"KHR_materials_pbrSpecularGlossiness": glossy})))
    assert close(colours(file.save(tmp_path / "a.gltf")), [RED, (0, 0, 0), BLUE, RED])


def test_names_with_percent_signs_and_folders_above(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    folder = tmp_path / "models"
    (folder / "my textures").mkdir(parents=True)
    Image.fromarray(FOUR).save(folder / "my textures/a#1.png")
    Image.fromarray(FOUR).save(tmp_path / "outside.png")
    file = gltf()
    image = file.add("images", {"uri": "my%20textures/a%231.png"})
    file.node(mesh=file.quad(file.material(texture=file.add("textures", {"source": image}))))
    assert close(colours(file.save(folder / "a.gltf")), UPRIGHT)
    for uri in ("../outside.png", "..%2Foutside.png", str(tmp_path / "outside.png"), "https://example.org/a.png"):
        file.json["images"][0]["uri"] = uri
        assert draw(file.save(folder / "b.gltf")).facts["missing_textures"] == 1, uri


def test_glb_chunks_are_read_in_any_number(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.quad())
    text = json.dumps(file.json | {"buffers": [{"byteLength": len(file.blob)}]}).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(len(text), 0x4E4F534A, text), (4, 0x12345678, b"odd!"), (len(file.blob), 0x004E4942, file.blob)]
    content = b"".join(struct.pack("<2I", size, kind) + data for size, kind, data in chunks)
    path = tmp_path / "a.glb"
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(content)) + content)
    assert len(load_mesh(path).faces) == 2
