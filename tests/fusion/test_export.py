import json
import struct

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.fusion import export, texture
from nova3d.fusion.config import TextureConfig


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
    ply = trimesh.load(export.write(tmp_path / "a.ply", mesh, mesh))
    assert abs(int(ply.visual.vertex_colors[0, 0]) - 128) <= 1
    glb = trimesh.load(export.write(tmp_path / "a.glb", mesh, mesh), force="mesh")
    assert abs(int(glb.visual.vertex_colors[0, 0]) - 55) <= 1  # ((0.5 + 0.055) / 1.055) ** 2.4 = 0.214


def test_obj_names_its_own_files(quad, tmp_path):
    export.write(tmp_path / "one.obj", quad, quad)
    export.write(tmp_path / "two.obj", quad, quad)
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{s}" for n in ("one", "two") for s in ("obj", "mtl", "png")}


@pytest.mark.parametrize("name", ["mesh.stl", "mesh", "folder.glb"])
def test_bad_outputs_are_found_early(tmp_path, name):
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(InputError, match=r"folder|must end"):
        export.check_output(tmp_path / name)


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export.check_output(tmp_path / "file" / "mesh.glb")


def paint_views(shapes, mesh: trimesh.Trimesh, **config) -> texture.Projector:
    views = shapes.draw(mesh, orbit(8, size=96))
    return texture.projector(views, views.cameras, mesh, torch.zeros_like(views.mask), TextureConfig(**config))


def test_painting_finds_the_right_faces_and_respects_occlusion(shapes):
    mesh = shapes.letter_f()
    views = paint_views(shapes, mesh)
    centres = torch.tensor([[-0.2, 0.0, 0.15], [-0.2, 0.0, -0.15], [-0.2, 0.45, 0.0]]).float()
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0]])
    colours, weight = texture.paint(centres, normals, views)
    torch.testing.assert_close(colours[0] * 255, torch.tensor([220.0, 30, 30]), atol=3, rtol=0)
    torch.testing.assert_close(colours[1] * 255, torch.tensor([30.0, 30, 220]), atol=3, rtol=0)
    assert weight[2] == 0  # the top: no camera at elevation 0 sees it
    inside, hidden = texture.paint(torch.zeros(1, 3) + torch.tensor([-0.2, 0, 0.05]), normals[:1], views)
    assert hidden[0] == 0  # behind the front face by more than the tolerance
    assert torch.isfinite(inside).all()


def test_conflict_and_top_views_choose_who_paints(shapes):
    mesh = shapes.sphere()
    views = shapes.draw(mesh, orbit(4, size=64))
    wrong = views.rgb.clone()
    wrong[0] = torch.where(views.mask[0][..., None] > 0.5, torch.tensor([1.0, 0, 0]), wrong[0])
    broken = type(views)(wrong, views.normals, views.mask, views.cameras)
    conflict = torch.zeros_like(views.mask)
    conflict[0] = 1.0
    point = torch.nn.functional.normalize(torch.tensor([[0.5, 0.0, 1.0]]), dim=-1)
    true = torch.tensor([90, 160, 60]) / 255
    for h, k, expected in ((0, 1, torch.tensor([1.0, 0, 0])), (1, 0, true)):
        projector = texture.projector(broken, views.cameras, mesh, conflict * h, TextureConfig(top_views=k))
        colours, _ = texture.paint(point * 0.35, point, projector)
        torch.testing.assert_close(colours[0], expected, atol=0.03, rtol=0)


def test_atlas_bake_is_sharp_where_seen_and_filled_where_not(shapes):
    mesh = shapes.letter_f()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    views = paint_views(shapes, shapes.letter_f(), size=128)
    atlas = texture.unwrap(welded)
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1
    ids, face, weights = texture.texels(atlas, 128)
    assert len(ids) == len(set(ids.tolist()))
    corners = atlas.uv[atlas.faces[face]] * [128, -128] + [0, 128]
    position = np.einsum("mk,mkc->mc", weights, corners)
    np.testing.assert_allclose(position, np.stack([ids % 128 + 0.5, ids // 128 + 0.5], axis=-1), atol=1e-6)
    picture, unseen = texture.bake(welded, atlas, views, lambda p: torch.full((len(p), 3), 0.5))
    assert picture.shape == (128, 128, 3)
    assert 0.02 < unseen < 0.5  # tops and bottoms
    assert (picture.astype(int).sum(axis=-1) > 0).all()  # no black gap anywhere
