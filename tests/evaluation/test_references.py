from dataclasses import replace

import pytest
import torch
import trimesh

from nova3d.cameras import orbit, preset
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score
from nova3d.evaluation.folders import mesh_turn
from nova3d.evaluation.protocols import MeshRules, TextureRules, ViewRules
from nova3d.views import ViewSet

pytestmark = pytest.mark.usefixtures("coarse_shapes")
METRICS = ("psnr", "mask_iou", "normals")
NAMED = ViewRules(cameras="ortho4", count=4, size=32, metrics=METRICS)
MESHES = MeshRules(surface_samples=500, ious=("iou16_flood",))
PROTOCOL = Protocol(name="drawn", hull_cells=0, views=NAMED, meshes=MESHES)
ANY = replace(PROTOCOL, views=replace(NAMED, cameras="any", count=0, size=0))
TURNED = orbit(3, elevation_deg=20.0, size=24)


@pytest.fixture
def meshes(tmp_path):
    """Two mesh files in units and places of their own."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    box = trimesh.creation.box((30.0, 20.0, 10.0))
    box.apply_translation((100.0, 7.0, -40.0))
    box.export(folder / "box.glb")
    trimesh.creation.cone(2.0, 3.0).export(folder / "cone.ply")
    return folder


def predict(meshes, folder, cameras):
    for path in meshes.iterdir():
        render_object(path, cameras).save(folder / path.stem)
    return folder


def test_views_are_drawn_from_meshes_alone(meshes, tmp_path):
    predictions = predict(meshes, tmp_path / "pred", preset("ortho4", 32))
    trimesh.creation.box((1.0, 2 / 3, 1 / 3)).export(predictions / "box" / "mesh.glb")
    trimesh.creation.icosphere(2, 0.5).export(predictions / "cone" / "mesh.glb")
    table = score(predictions, meshes, PROTOCOL, cache=tmp_path / "kept")
    for row in table.rows.values():
        assert row["psnr"] == 100.0 and row["mask_iou"] == 1.0 and row["normal_mean_deg"] < 0.5
    assert table.rows["box"]["iou16_flood"] == 1.0  # the mesh is compared in the frame of the views
    assert table.rows["cone"]["iou16_flood"] < 0.8
    assert "drawn here from meshes" in table.facts["references"]
    kept = ViewSet.load(tmp_path / "kept/references/box")
    assert len(kept) == 4 and kept.cameras.width == 32


def test_made_references_follow_their_mesh_and_rig(meshes, tmp_path):
    predictions = predict(meshes, tmp_path / "pred", preset("ortho4", 32))
    kept = tmp_path / "kept"
    score(predictions, meshes, PROTOCOL, cache=kept)
    files = {name: kept / "references" / name / "rgb/000.png" for name in ("box", "cone")}
    before = {name: file.stat().st_ino for name, file in files.items()}
    trimesh.creation.icosphere(2, 1.0).export(meshes / "cone.ply")
    assert score(predictions, meshes, PROTOCOL, cache=kept).rows["cone"]["mask_iou"] < 0.9
    assert files["box"].stat().st_ino == before["box"]
    assert files["cone"].stat().st_ino != before["cone"]
    (meshes / "box.glb").unlink()  # an object of an earlier call is no reference of this one
    assert list(score(predictions, meshes, PROTOCOL, cache=kept).rows) == ["cone"]


def test_cameras_are_the_predictions_where_the_protocol_takes_any(meshes, tmp_path):
    predictions = predict(meshes, tmp_path / "pred", TURNED)
    rows = score(predictions, meshes, ANY, cache=tmp_path / "kept").rows
    assert rows["box"]["psnr"] == rows["cone"]["psnr"] == 100.0
    (predictions / "box").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"references of box cannot be drawn: .* no prediction of it says"):
        score(predictions, meshes, ANY)


def test_predicted_meshes_alone_are_scored_in_the_frame_of_the_file(meshes, tmp_path):
    for path in meshes.iterdir():
        (tmp_path / "pred").mkdir(exist_ok=True)
        (tmp_path / "pred" / path.name).write_bytes(path.read_bytes())
    table = score(tmp_path / "pred", meshes, PROTOCOL, cache=tmp_path / "kept")
    assert table.rows["box"]["iou16_flood"] == 1.0 and "references" not in table.facts
    assert not (tmp_path / "kept/references").exists()


@pytest.mark.parametrize("axes", ["+z,-y", "-x,+z"])
def test_meshes_with_other_axes_are_turned(tmp_path, axes):
    """An L of three unequal boxes, written with other axes, scores as it does in ours."""
    parts = [((0.5, 0.2, 0.2), (0.25, 0, 0)), ((0.2, 1.0, 0.2), (0, 0.4, 0)), ((0.2, 0.2, 0.4), (0, 0, 0.3))]
    shape = trimesh.util.concatenate([trimesh.creation.box(size).apply_translation(at) for size, at in parts])
    assert isinstance(shape, trimesh.Trimesh)
    for folder in ("ref", "pred"):
        (tmp_path / folder).mkdir()
    shape.export(tmp_path / "ref/l.ply")
    to_ours = mesh_turn(axes)
    shape.vertices = shape.vertices @ to_ours  # by the inverse, its transpose
    shape.export(tmp_path / "pred/l.ply")
    protocol = replace(
        PROTOCOL, kinds=("meshes", "textures"), textures=TextureRules("ortho4", 32, metrics=("mask_iou",))
    )
    row = score(tmp_path / "pred", tmp_path / "ref", protocol, axes=axes).rows["l"]
    assert row["iou16_flood"] > 0.99 and row["mask_iou"] > 0.99
    assert score(tmp_path / "pred", tmp_path / "ref", protocol).rows["l"]["mask_iou"] < 0.6
    with pytest.raises(InputError, match=r"mesh axes '\+y,-y' are not UP,FRONT"):
        score(tmp_path / "pred", tmp_path / "ref", protocol, axes="+y,-y")


def test_the_axes_of_blender():
    up, front = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, -1, 0])
    turn = torch.from_numpy(mesh_turn("+z,-y")).float()
    assert (turn @ up).tolist() == [0, 1, 0] and (turn @ front).tolist() == [0, 0, 1]
    assert float(torch.linalg.det(turn)) == 1
