import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.fusion import export, texture
from nova3d.fusion.atlas import unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.fusion.output import check_output
from nova3d.rendering.meshes import load_mesh


@pytest.fixture
def quad() -> trimesh.Trimesh:
    """Facing +Z; its texture has one colour per quarter, red at the upper left."""
    vertices = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    uv = vertices[:, :2] + 0.5
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[:4, :4], picture[:4, 4:], picture[4:, :4] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    return export.textured(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv, picture, np.tile([0.0, 0, 1], (4, 1)))


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_texture_survives_upright_and_unmirrored(quad, tmp_path, suffix):
    path = export.write(tmp_path / f"quad{suffix}", quad, quad, {"seed": 3})
    picture = render_object(path, orbit(1, size=32), light="flat").rgb[0]
    expected = {(12, 12): [1.0, 0, 0], (12, 20): [0.0, 1, 0], (20, 12): [0.0, 0, 1], (20, 20): [0.0, 0, 0]}
    for (row, column), colour in expected.items():
        torch.testing.assert_close(picture[row, column], torch.tensor(colour), atol=0.02, rtol=0)


def test_glb_has_a_pbr_texture_and_its_record(quad, tmp_path):
    path = export.write(tmp_path / "quad.glb", quad, quad, {"seed": 3, "when": torch.float32})
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20 : 20 + length])
    assert tree["asset"]["extras"]["nova3d"]["seed"] == 3
    material = tree["materials"][0]["pbrMetallicRoughness"]
    assert "baseColorTexture" in material
    assert material["metallicFactor"] == 0
    assert material["roughnessFactor"] == 1
    assert "NORMAL" in tree["meshes"][0]["primitives"][0]["attributes"]
    assert list(tmp_path.iterdir()) == [path]  # no temporary file left


def test_vertex_colours_are_linear_in_glb_and_srgb_in_ply(shapes, tmp_path):
    mesh = export.coloured(shapes.sphere(), np.full((len(shapes.sphere().vertices), 3), 0.5))
    ply: Any = trimesh.load(export.write(tmp_path / "a.ply", mesh, mesh))
    assert abs(int(ply.visual.vertex_colors[0, 0]) - 128) <= 1
    glb: Any = trimesh.load(export.write(tmp_path / "a.glb", mesh, mesh), force="mesh")
    assert abs(int(glb.visual.vertex_colors[0, 0]) - 55) <= 1  # ((0.5 + 0.055) / 1.055) ** 2.4 = 0.214


def test_obj_names_its_own_files(quad, tmp_path):
    export.write(tmp_path / "one.obj", quad, quad)
    export.write(tmp_path / "two.obj", quad, quad)
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{s}" for n in ("one", "two") for s in ("obj", "mtl", "png")}


@pytest.mark.parametrize("name", ["mesh.step", "mesh", "folder.glb"])
def test_bad_outputs_are_found_early(tmp_path, name):
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(InputError, match=r"folder|must end"):
        check_output(tmp_path / name)


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        check_output(tmp_path / "file" / "mesh.glb")


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_a_letter_comes_back_as_it_was_seen(shapes, tmp_path, suffix):
    letter = shapes.letter_f()
    letter.merge_vertices(merge_tex=True, merge_norm=True)
    letter = trimesh.Trimesh(letter.vertices, letter.faces, process=False).subdivide().subdivide().subdivide()
    views = shapes.draw(shapes.letter_f(), orbit(8, size=64))
    seen_by = texture.make_projector(views, letter, torch.zeros_like(views.mask), TextureConfig(size=256))
    grey = lambda p: torch.full((len(p), 3), 0.5)  # noqa: E731
    normals = np.repeat(letter.face_normals, 3, axis=0)  # a box's edges stay sharp
    flat = trimesh.Trimesh(letter.vertices[letter.faces].reshape(-1, 3), np.arange(len(normals)).reshape(-1, 3),
                           vertex_normals=normals, process=False)  # fmt: skip
    points = torch.from_numpy(flat.vertices).float(), torch.from_numpy(normals.copy()).float()
    solid = export.coloured(flat, texture.colour_points(*points, seen_by, grey)[0].numpy())
    atlas = unwrap(letter, 256)
    picture, _ = texture.bake(letter, atlas, seen_by, grey)
    mesh = export.textured(
        letter.vertices[atlas.source], atlas.faces, atlas.uv, picture, letter.vertex_normals[atlas.source]
    )
    path = export.write(tmp_path / f"f{suffix}", mesh, solid)
    again = render_object(path, views.cameras, light="flat", normalise=False, supersample=2)
    assert (again.mask - views.mask).abs().max() < 0.02
    both = (views.mask > 0.99) & (again.mask > 0.99)
    assert (again.rgb - views.rgb)[both].abs().mean() < 0.03
    mirrored = views.mask.flip(-1)
    assert (again.mask - mirrored).abs().mean() > 0.05
    loaded: Any = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(loaded.bounds, letter.bounds, atol=1e-6)
    assert loaded.volume == pytest.approx(letter.volume, rel=1e-4)  # positive: no axis was mirrored


def test_obj_shows_its_texture_unchanged_in_any_viewer(quad, tmp_path):
    export.write(tmp_path / "quad.obj", quad, quad)
    rows = dict(line.split(" ", 1) for line in (tmp_path / "quad.mtl").read_text().splitlines() if " " in line)
    assert [float(v) for v in rows["Kd"].split()] == [1, 1, 1]  # viewers multiply it onto the map
    assert [float(v) for v in rows["Ks"].split()] == [0, 0, 0]
    assert rows["map_Kd"].strip() == "quad.png"


def glb_tree(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    tree: dict[str, Any] = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    return tree


def test_glb_has_short_indices_targets_and_plain_names(quad, tmp_path):
    tree = glb_tree(export.write(tmp_path / "a.glb", quad, quad, {}))
    primitive = tree["meshes"][0]["primitives"][0]
    indices = tree["accessors"][primitive["indices"]]
    assert indices["componentType"] == 5123  # 16 bits
    assert tree["bufferViews"][indices["bufferView"]]["target"] == 34963
    for accessor in primitive["attributes"].values():
        assert tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] == 34962
    assert [tree[k][0]["name"] for k in ("nodes", "meshes", "materials")] == ["mesh", "mesh", "material"]
    assert tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"] == {"index": 0}


def test_indices_that_do_not_fit_have_32_bits(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=7)
    assert len(ball.vertices) > 65535
    colours = np.ones((len(ball.vertices), 3))
    mesh = export.coloured(ball, colours)
    path = export.write(tmp_path / "a.glb", mesh, mesh)
    tree = glb_tree(path)
    assert tree["accessors"][tree["meshes"][0]["primitives"][0]["indices"]]["componentType"] == 5125
    assert len(load_mesh(path).faces) == len(ball.faces)


def test_extras_hold_no_path_and_no_command_line(quad, tmp_path):
    record = {
        "command": ["generate.py", "--image", "/home/me/secret/a.png"],
        "image": "/home/me/secret/a.png",
        "deep": [{"model": "C:\\Users\\me\\model", "note": "2/3 of it"}],
    }
    path = export.write(tmp_path / "a.glb", quad, quad, record)
    kept = glb_tree(path)["asset"]["extras"]["nova3d"]
    assert kept == {"image": "a.png", "deep": [{"model": "model", "note": "2/3 of it"}]}
    assert b"secret" not in path.read_bytes() and b"Users" not in path.read_bytes()


def test_obj_writes_a_position_once(tmp_path):
    box = trimesh.creation.box()
    corners = box.faces.reshape(-1)
    uv = np.tile([[0.0, 0], [1, 0], [1, 1]], (12, 1))
    faces = np.arange(36).reshape(-1, 3)
    pixels = np.full((4, 4, 3), 200, np.uint8)
    mesh = export.textured(box.vertices[corners], faces, uv, pixels, np.repeat(box.face_normals, 3, axis=0))
    path = export.write(tmp_path / "a.obj", mesh, mesh)
    lines = path.read_text().splitlines()
    counts = {key: sum(line.startswith(f"{key} ") for line in lines) for key in ("v", "vt", "vn", "f")}
    assert counts == {"v": 8, "vt": 3, "vn": 6, "f": 12}
    read = load_mesh(path)
    order = lambda t: t.reshape(12, 9)[np.lexsort(t.reshape(12, 9).T)]  # noqa: E731
    np.testing.assert_allclose(order(read.vertices[read.faces].numpy()), order(box.vertices[box.faces]), atol=1e-6)
    assert (read.textures[0] * 255).round().unique().tolist() == [200]
