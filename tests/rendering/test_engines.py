"""make_engine and the raster engine: facts, reasons, holes; what needs no Blender of the Blender engine."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nova3d import cameras
from nova3d.errors import InputError
from nova3d.rendering import engine as engines
from nova3d.rendering.engine import EngineConfig, Rendered, make_engine
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError

RIG = cameras.orbit(2, size=48)
BROKEN = {
    "points": Reason.EMPTY_SCENE,
    "empty": Reason.EMPTY_SCENE,
    "dot": Reason.EMPTY_SCENE,
    "nan": Reason.PARSE_ERROR,
    "html": Reason.PARSE_ERROR,
    "cut": Reason.PARSE_ERROR,
    "zero": Reason.PARSE_ERROR,
    "constant": Reason.PARSE_ERROR,
    "absent": Reason.PARSE_ERROR,
}


def draw(path: Path, **settings: Any) -> Rendered:
    return make_engine(EngineConfig(light="flat", **settings)).render(path, RIG, lambda done: None)


def test_facts_pictures_and_beats(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    red = file.material((1, 0, 0, 1))
    blue = file.material((0, 0, 1, 1), file.texture(np.full((2, 2, 3), 255)))
    file.node(mesh=file.quad(red), translation=[0, 0, 1])
    file.node(mesh=file.quad(blue), scale=[2, 2, 2])
    file.node(mesh=file.quad(blue), translation=[0, 0, -1])
    beats: list[int] = []
    rendered = make_engine(EngineConfig(light="flat")).render(file.save(tmp_path / "a.gltf"), RIG, beats.append)
    assert beats == [1, 2]
    expected = {"triangles": 6, "materials": 2, "textures": 1, "has_normals": True, "animations": 0, "skins": 0}
    expected |= {"scale": 0.5, "centre": [0.0, 0.0, 0.0], "opacity": 1.0, "overexposed": 0.0, "missing_textures": 0}
    assert {k: rendered.facts[k] for k in expected} == expected
    assert rendered.rgba.shape == (2, 48, 48, 4) and rendered.depth.shape == (2, 48, 48)
    front, back = rendered.rgba[:, 24, 24].tolist()
    assert front == pytest.approx([1, 0, 0, 1]) and back == pytest.approx([0, 0, 1, 1])
    assert rendered.depth[0, 24, 24] == pytest.approx(1.0)  # camera at 1.5, quad at 1 * 0.5
    outside = rendered.rgba[..., 3] == 0
    assert outside.any() and (rendered.rgba[outside] == 0).all() and (rendered.depth[outside] == 0).all()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_their_reason(broken: dict[str, Path], name: str) -> None:
    with pytest.raises(RenderError, match=str(broken[name])) as caught:
        draw(broken[name])
    assert caught.value.reason == BROKEN[name] and "\n" not in str(caught.value)


def test_a_truncated_file_is_called_so(broken: dict[str, Path]) -> None:
    with pytest.raises(RenderError, match=r"cut\.glb.*truncated, \d+ of \d+ bytes"):
        draw(broken["cut"])


def test_compressed_geometry_is_refused_not_drawn_as_zeros(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.quad())
    file.json["extensionsUsed"] = file.json["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    path = file.save(tmp_path / "a.gltf")
    with pytest.raises(RenderError, match="KHR_draco_mesh_compression") as caught:
        draw(path)
    assert caught.value.reason == Reason.DRACO


def test_a_mesh_outside_every_view_is_blank(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.quad(), translation=[9, 9, 9])
    with pytest.raises(RenderError) as caught:
        make_engine(EngineConfig(), normalise=False).render(file.save(tmp_path / "a.gltf"), RIG, lambda done: None)
    assert caught.value.reason == Reason.BLANK_RENDER


def test_missing_textures_are_counted(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    texture = file.add("textures", {"source": file.add("images", {"uri": "not%20there.png"})})
    file.node(mesh=file.quad(file.material(texture=texture)))
    assert draw(file.save(tmp_path / "a.gltf")).facts["missing_textures"] == 1
    Image.new("RGB", (2, 2)).save(tmp_path / "not there.png")
    assert draw(tmp_path / "a.gltf").facts["missing_textures"] == 0

    (tmp_path / "b.mtl").write_text("newmtl m\nmap_Kd gone.png\n")
    (tmp_path / "b.obj").write_text("mtllib b.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert draw(tmp_path / "b.obj").facts["missing_textures"] == 1


def half_clear(alpha: int) -> np.ndarray:
    """Left half opaque, right half with `alpha`."""
    pixels = np.full((8, 8, 4), 255)
    pixels[:, 4:, 3] = alpha
    return pixels


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_holes_cut_by_a_texture_show_what_is_behind(tmp_path: Path, gltf: Callable[[], Any], model: str) -> None:
    file = gltf()
    cut = file.material(texture=file.texture(half_clear(100)), alphaMode="MASK", alphaCutoff=0.5)
    file.node(mesh=file.quad(cut))
    file.node(mesh=file.quad(file.material((1, 0, 0, 1))), translation=[0, 0, -0.5])
    rig = RIG if model == "orthographic" else cameras.orbit(2, 0.0, 48, "perspective", fov_deg=40.0, radius=2.0)
    rendered = make_engine(EngineConfig(light="flat")).render(file.save(tmp_path / "a.gltf"), rig, lambda done: None)
    assert rendered.rgba[0, 24, 18].tolist() == pytest.approx([1, 1, 1, 1])
    assert rendered.rgba[0, 24, 30].tolist() == pytest.approx([1, 0, 0, 1])
    assert rendered.facts["opacity"] == 1.0


def test_textures_of_tilted_surfaces_are_in_perspective(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    cut = file.material(texture=file.texture(half_clear(0)), alphaMode="MASK")
    file.node(mesh=file.quad(cut), rotation=[0, 0.5, 0, 0.8660254])  # 60 degrees about +Y: its left half is nearer
    rig = cameras.orbit(1, 0.0, 96, "perspective", fov_deg=60.0, radius=1.0)
    engine = make_engine(EngineConfig(light="flat", supersample=1), normalise=False)
    alpha = engine.render(file.save(tmp_path / "a.gltf"), rig, lambda done: None).rgba[0, ..., 3]
    # The cut runs through the middle of the quad, which is the middle of the picture in every row.
    columns = [row.nonzero()[:, 0] for row in alpha[24:72]]
    assert all(abs(int(c.max()) - 47) <= 1 or abs(int(c.min()) - 48) <= 1 for c in columns)


def test_translucency_is_drawn_opaque_and_measured(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.quad(file.material((1, 1, 1, 0.5), file.texture(half_clear(0)), alphaMode="BLEND")))
    rendered = draw(file.save(tmp_path / "a.gltf"))
    assert rendered.rgba[0, 24, 16, 3] == 1  # a glass pane stays
    assert rendered.rgba[0, 24, 32, 3] == 0  # what is fully clear does not
    assert rendered.facts["opacity"] == pytest.approx(0.45, abs=0.01)  # 0.5, and the ramp between the texels
    file.json["materials"][0]["alphaMode"] = "OPAQUE"
    assert draw(file.save(tmp_path / "b.gltf")).facts["opacity"] == 1.0


def test_parts_share_their_material(tmp_path: Path) -> None:
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (64, 64)))
    parts = []
    for x in range(5):
        part = trimesh.creation.box().apply_translation((2 * x, 0, 0))
        part.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(part.vertices), 2)), material=material)
        parts.append(part)
    (tmp_path / "a.glb").write_bytes(trimesh.exchange.gltf.export_glb(trimesh.Scene(parts)))
    mesh = load_mesh(tmp_path / "a.glb")
    assert len(mesh.textures) == 1 and mesh.face_material.tolist() == [0] * 60


def test_a_distant_speck_does_not_shrink_the_object(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.solid(trimesh.creation.icosphere(subdivisions=3)))
    file.node(mesh=file.quad(), translation=[500, 0, 0], scale=[0.01, 0.01, 0.01])
    rendered = draw(file.save(tmp_path / "a.gltf"))
    assert rendered.rgba[..., 3].mean() > 0.3 and rendered.facts["scale"] == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "cycles"}, "'cycles' is not one of raster, blender"),
        ({"light": "dark"}, "light 'dark'.*studio, flat"),
        ({"device": "optix"}, "device 'optix'.*cpu, cuda$"),
        ({"name": "blender", "device": "cuda:1"}, "device 'cuda:1'.*cpu, cuda, optix$"),
        ({"normals": "bent"}, "normals 'bent'.*geometry, shading"),
        ({"supersample": 0}, "supersample"),
        ({"name": "nova3d.nothing:make"}, "'nova3d.nothing:make' cannot be imported"),
        ({"name": "nova3d.config:make"}, "'nova3d.config:make' cannot be imported"),
        ({"name": "blender", "python": "no/such/python"}, "no/such/python.*make blender"),
    ],
)
def test_wrong_settings_end_in_one_line(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str) -> None:
    monkeypatch.delenv("NOVA3D_BLENDER_PYTHON", raising=False)
    with pytest.raises(InputError, match=message) as caught:
        make_engine(EngineConfig(**wrong))
    assert "\n" not in str(caught.value)


def test_engines_of_other_packages_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineConfig] = []
    monkeypatch.setattr(engines, "outside", lambda config: seen.append(config) or "made", raising=False)
    config = EngineConfig("nova3d.rendering.engine:outside", samples=3)
    assert make_engine(config) == "made" and seen == [config]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RenderError, match="no CUDA GPU") as caught:
        make_engine(EngineConfig(device="cuda"))
    assert caught.value.reason == Reason.DEVICE


def test_the_description_names_what_changes_pixels() -> None:
    config = EngineConfig()
    described = make_engine(config).describe()
    assert described["name"] == "raster" and described["version"]
    for change in ({"light": "flat"}, {"supersample": 1}):
        assert make_engine(replace(config, **change)).describe() != described


def test_an_interpreter_without_bpy_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA3D_BLENDER_PYTHON", sys.executable)
    with pytest.raises(RenderError, match=r"bpy cannot be loaded.*apt-get install libx11-6") as caught:
        make_engine(EngineConfig("blender"))
    assert caught.value.reason == Reason.CRASH and "\n" not in str(caught.value)
