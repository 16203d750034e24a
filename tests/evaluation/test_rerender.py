from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score
from nova3d.evaluation.mesh_metrics import load_mesh, to_unit
from nova3d.evaluation.protocols import TextureRules
from nova3d.evaluation.rerender import cameras, rerender, sphere

SMALL = TextureRules(size=40, supersample=1, metrics=("psnr", "ssim", "mask_iou", "normals"))
QUICK = Protocol(name="quick", kinds=("textures",), hull_cells=0, textures=SMALL)


def block(path, scale=1.0, top=(200, 60, 40), sides=(40, 120, 200), shift=(0, 0, 0)):
    """A 1 x 0.6 x 0.8 box with one colour on top and another on its other sides."""
    box = trimesh.creation.box([1, 0.6, 0.8])
    corners = box.triangles.reshape(-1, 3)
    upper = np.repeat(box.face_normals[:, 1] > 0.5, 3)
    uv = np.stack([np.where(upper, 0.75, 0.25), np.full(len(upper), 0.5)], axis=1)
    pixels = np.array([[sides, top]], dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    material = PBRMaterial(baseColorTexture=Image.fromarray(pixels), metallicFactor=0, roughnessFactor=1)
    mesh = trimesh.Trimesh(
        corners * scale + shift,
        np.arange(len(corners)).reshape(-1, 3),
        visual=TextureVisuals(uv=uv, material=material),
        process=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
    return path


def test_sphere_sees_every_side():
    rig = sphere(32)
    looks = -rig.c2w[:, :3, 2]
    assert len(rig) == 26 and torch.allclose(looks.norm(dim=-1), torch.ones(26))
    assert looks[24].tolist() == pytest.approx([0, -1, 0], abs=1e-6)
    assert looks[25].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    elevation = torch.rad2deg(rig.azimuth_elevation()[:, 1])
    assert elevation[:12].tolist() == pytest.approx([30] * 12, abs=1e-3)
    assert elevation[12:24].tolist() == pytest.approx([-30] * 12, abs=1e-3)
    azimuth = torch.rad2deg(rig.azimuth_elevation()[:24, 0])
    assert sorted(azimuth.tolist()) == pytest.approx([15 * k for k in range(24)], abs=1e-3)
    assert torch.allclose(rig.c2w[:, :3, :3] @ rig.c2w[:, :3, :3].mT, torch.eye(3).expand(26, 3, 3), atol=1e-5)


def test_rerender_shows_the_base_colour_as_render_object_does(tmp_path):
    path = block(tmp_path / "block.glb")
    drawn = rerender(path, to_unit(load_mesh(path)), SMALL, "cpu")
    expected = render_object(path, cameras(SMALL), supersample=1, light="flat", normalise=False)
    assert len(drawn) == 32 and drawn.mask[0, 20, 20] == 1
    assert torch.allclose(drawn.rgb, expected.rgb, atol=1e-4) and torch.equal(drawn.mask, expected.mask)
    assert (drawn.rgb[0, 20, 20] * 255).tolist() == pytest.approx([40, 120, 200], abs=1.5)


def test_both_sides_are_placed_by_the_references_box(tmp_path):
    where = (300, 20, -50)
    block(tmp_path / "ref/cup/mesh.glb", scale=100, shift=where)
    block(tmp_path / "pred/cup/mesh.glb", scale=100, shift=where)
    assert score(tmp_path / "pred", tmp_path / "ref", QUICK).rows["cup"]["psnr"] == 100.0
    block(tmp_path / "pred/cup/mesh.glb", scale=80, shift=where)
    row = score(tmp_path / "pred", tmp_path / "ref", QUICK).rows["cup"]
    assert row["psnr"] < 20 and row["mask_iou"] == pytest.approx(0.64, abs=0.06)


def test_a_wrong_top_is_seen_from_the_sphere_only(tmp_path):
    block(tmp_path / "ref/cup/mesh.glb")
    block(tmp_path / "pred/cup/mesh.glb", top=(40, 120, 200))
    level = score(tmp_path / "pred", tmp_path / "ref", QUICK)
    round_about = score(
        tmp_path / "pred", tmp_path / "ref", replace(QUICK, textures=replace(SMALL, cameras="sphere26"))
    )
    assert level.rows["cup"]["psnr"] == 100.0
    assert round_about.rows["cup"]["psnr"] < 80 and round_about.rows["cup"]["mask_iou"] == 1.0


def test_the_floors_of_pictures_are_in_the_table(tmp_path):
    block(tmp_path / "ref/cup/mesh.glb")
    floors = score(tmp_path / "ref", tmp_path / "ref", QUICK).baseline_means()
    assert floors["silhouette oracle"]["mask_iou"] == 1.0
    assert floors["all-white image"]["psnr"] < floors["true views, 1 px off"]["psnr"] < 100
    assert floors["copy of the input view (scored on the others)"]["psnr"] < 100


def test_a_mesh_that_cannot_be_drawn_is_named(tmp_path):
    path = block(tmp_path / "ref/cup/mesh.glb")
    far = trimesh.creation.box([0.1] * 3).apply_translation([50, 0, 0])
    (tmp_path / "pred/cup").mkdir(parents=True)
    far.export(tmp_path / "pred/cup/mesh.glb")
    with pytest.raises(InputError, match=r"pred/cup/mesh.glb.*cannot be drawn"):
        score(tmp_path / "pred", tmp_path / "ref", QUICK)
    table = score(tmp_path / "pred", tmp_path / "ref", replace(QUICK, failures="score"))
    assert "cannot be drawn" in table.failures["cup"]
    assert table.rows["cup"]["psnr"] == table.baselines["all-white image"]["cup"]["psnr"]
    assert path.is_file()
