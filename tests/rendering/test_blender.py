"""The Blender engine's pictures against the raster engine and closed forms; needs `make blender`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d import cameras
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.rendering import render_object
from nova3d.rendering.blender import BlenderEngine
from nova3d.rendering.engine import EngineConfig, Rendered, make_engine

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("NOVA3D_BLENDER_PYTHON") or str(ROOT / EngineConfig.python)
pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="no Blender interpreter: run `make blender`"),
]
CONFIG = EngineConfig("blender", light="flat", samples=16, python=PYTHON)
OBJECTS = sorted((ROOT / "assets/objects").glob("*.glb"))
RIG = cameras.orbit(2, 10.0, 64)


@pytest.fixture(scope="module")
def blender() -> Iterator[BlenderEngine]:
    engine = BlenderEngine(CONFIG)
    yield engine
    engine.close()


def draw(engine: Any, path: Path, rig: Cameras = RIG) -> Rendered:
    rendered: Rendered = engine.render(path, rig, lambda done: None)
    return rendered


def compare(ours: Rendered, reference: Rendered) -> tuple[float, float]:
    """Intersection over union of the masks, without the pixels that the reference covers about by half, and the mean
    angle in degrees between the normals of pixels whose neighbours have nearly the reference's normal: at a rim and
    across a crease, a pixel's mean depends on where its few samples fall."""
    sure = (reference.rgba[..., 3] - 0.5).abs() > 0.1
    a, b = (ours.rgba[..., 3] > 0.5) & sure, (reference.rgba[..., 3] > 0.5) & sure
    near = torch.stack([reference.normals.roll((y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    smooth = (near * reference.normals).sum(-1).amin(0) > np.cos(np.radians(15))
    assert smooth.float().mean() > 0.02
    angle = torch.rad2deg(2 * torch.asin(((ours.normals - reference.normals).norm(dim=-1) / 2).clamp(max=1)))
    return float((a & b).sum() / (a | b).sum()), float(angle[smooth & a & b].mean())


def assembly(gltf: Callable[[], Any], folder: Path) -> Path:
    """A hierarchy: turned, stretched and mirrored nodes below one another, meshes used twice."""
    file = gltf()
    box = file.solid(trimesh.creation.box((0.6, 0.2, 0.3)), file.material((0.8, 0.2, 0.1, 1)))
    cone = file.solid(trimesh.creation.cone(0.2, 0.5, sections=12), file.material((0.1, 0.6, 0.2, 1)))
    tip = file.node(False, mesh=cone, translation=[0.3, 0.1, 0], rotation=[0, 0.3826834, 0, 0.9238795])
    arm = file.node(False, mesh=box, children=[tip], translation=[0.2, 0.5, 0.1], scale=[-1, 2, 1])
    file.node(mesh=box, children=[arm], rotation=[0.1305262, 0, 0, 0.9914449], translation=[100, 50, -20])
    file.node(mesh=cone, translation=[99.6, 50, -20])
    return file.save(folder / "assembly.gltf")


@pytest.mark.parametrize("name", [*(path.stem for path in OBJECTS), "assembly", "lopsided.ply", "lopsided.obj"])
def test_masks_and_normals_are_those_of_the_raster_engine(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any], lopsided_file: Path, name: str
) -> None:
    if name == "assembly":
        path = assembly(gltf, tmp_path)
    elif name.startswith("lopsided"):
        path = tmp_path / name
        trimesh.load_mesh(lopsided_file).export(path)
    else:
        path = ROOT / f"assets/objects/{name}.glb"
    rig = cameras.orbit(3, 15.0, 96)
    ours, reference = draw(blender, path, rig), draw(make_engine(EngineConfig(supersample=4)), path, rig)
    overlap, angle = compare(ours, reference)
    assert overlap >= 0.99 and angle <= 0.5
    for key in ("scale", "centre", "materials", "textures", "has_normals", "animations"):
        assert ours.facts[key] == pytest.approx(reference.facts[key], rel=1e-5), key


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
@pytest.mark.parametrize("pixel", [[1.1, 1.1], [1.1, 0.8]], ids=["square", "stretched"])
def test_any_camera_is_reproduced(blender: BlenderEngine, lopsided_file: Path, model: Any, pixel: list[float]) -> None:
    rig = cameras.orbit(2, 25.0, 80, model, fov_deg=40.0, radius=2.0, start_azimuth_deg=33)
    focal, off = rig.intrinsics[:, :2], torch.tensor([[5.0, -7.0], [-4.0, 3.0]])
    stretched = torch.cat([focal * torch.tensor(pixel), torch.tensor([[48.0, 32.0]]) + off], dim=-1)
    rig = replace(rig, intrinsics=stretched, width=96, height=64)
    if pixel == [1.1, 0.8] and not blender.version.startswith("4."):
        with pytest.raises(InputError, match="not square"):
            draw(blender, lopsided_file, rig)
        return
    ours, reference = (
        draw(blender, lopsided_file, rig),
        draw(make_engine(EngineConfig(supersample=4)), lopsided_file, rig),
    )
    overlap, angle = compare(ours, reference)
    assert overlap >= 0.99 and angle <= 0.5
    both = (ours.rgba[..., 3] == 1) & (reference.rgba[..., 3] == 1)
    assert (ours.depth - reference.depth)[both].abs().median() < 0.01


def test_normals_of_a_sphere_are_within_a_tenth_of_a_degree(blender: BlenderEngine, sphere_file: Path) -> None:
    rig = cameras.orbit(2, 20.0, 96)
    origins, directions = rig.rays()
    along = -(origins * directions).sum(-1, keepdim=True)
    nearest = (origins + along * directions).norm(dim=-1)
    expected = (origins + (along - (0.25 - nearest**2).clamp_min(0).sqrt()[..., None]) * directions) / 0.5
    normals = draw(blender, sphere_file, rig).normals
    angle = torch.rad2deg(2 * torch.asin(((normals - expected).norm(dim=-1) / 2).clamp(max=1)))
    assert angle[nearest < 0.4].mean() < 0.1
    assert (normals.norm(dim=-1)[nearest < 0.49] - 1).abs().max() < 1e-5
    assert (normals[nearest > 0.52] == 0).all()


def test_the_studio_light_is_the_raster_engines_on_a_convex_matt_surface(sphere_file: Path) -> None:
    ours = render_object(sphere_file, RIG, "blender", light="studio")
    reference = render_object(sphere_file, RIG, light="studio")
    inside = (ours.mask == 1) & (reference.mask == 1)
    assert (ours.rgb - reference.rgb)[inside].abs().mean() < 0.01


def test_colours_of_flat_light_are_the_base_colours(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    file.node(mesh=file.mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 2], COLOR_0=[[0.5, 0.25, 0.1]] * 3))
    unlit = file.material((0.5, 0.25, 0.1, 1), extensions={"KHR_materials_unlit": {}})
    file.node(mesh=file.quad(unlit), translation=[0, -0.6, 0])
    file.json["extensionsUsed"] = ["KHR_materials_unlit"]
    rgba = draw(blender, file.save(tmp_path / "a.gltf"), cameras.orbit(1, size=64)).rgba[0]
    expected = torch.tensor([0.7354, 0.5371, 0.3492])  # the sRGB curve at 0.5, 0.25, 0.1
    # A lit surface also has Blender's sheen of dielectrics, an unlit one has not.
    for where, tolerance in ((rgba[24:28, 29:33], 0.07), (rgba[42:48, 24:34], 0.02)):
        assert (where[..., 3] == 1).all() and (where[..., :3] - expected).abs().max() < tolerance


UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]).repeat(8, 0).repeat(8, 1)
SQUARE = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
UNLIT: dict[str, Any] = {"extensions": {"KHR_materials_unlit": {}}}
MOVED = {"KHR_texture_transform": {"offset": [0.3, 0.1], "rotation": 0.4, "scale": [1.5, 0.7]}}


@pytest.mark.parametrize(
    ("sampler", "info", "uv", "material"),
    [
        ({}, {}, UV, {}),
        ({"wrapS": 33071, "wrapT": 33648}, {}, UV * 3 - 1, {}),
        ({"wrapS": 33648, "wrapT": 10497}, {}, UV * 3 - 1, {}),
        ({"magFilter": 9728}, {"extensions": MOVED}, UV, {}),
        ({}, {"texCoord": 1}, UV, {}),
        ({}, {}, UV, {"alphaMode": "MASK", "alphaCutoff": 0.6}),
    ],
    ids=["plain", "clamp and mirror", "mirror and repeat", "transform", "second set", "mask"],
)
def test_the_picture_is_that_of_the_raster_engine(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any], sampler: Any, info: Any, uv: Any, material: Any
) -> None:
    file = gltf()
    texture = file.texture(FOUR)
    file.json["textures"][texture]["sampler"] = file.add("samplers", sampler)
    surface = file.material((1, 0.8, 0.9, 1), texture, **UNLIT, **material)
    file.json["materials"][surface]["pbrMetallicRoughness"]["baseColorTexture"] |= info
    colours = [[1, 1, 1, 0.3], [0.5, 1, 1, 0.9], [1, 1, 0.5, 0.9], [1, 1, 1, 0.3]]
    attributes = {"TEXCOORD_0": uv, "TEXCOORD_1": 1 - UV, "COLOR_0": colours, "NORMAL": [[0, 0, 1]] * 4}
    file.node(mesh=file.mesh(SQUARE, [0, 1, 2, 0, 2, 3], surface, **attributes))
    path, rig = file.save(tmp_path / "a.gltf"), cameras.orbit(1, size=48)
    ours, reference = draw(blender, path, rig), draw(make_engine(EngineConfig(light="flat", supersample=4)), path, rig)
    assert (ours.rgba[..., 3] - reference.rgba[..., 3]).abs().mean() < 0.01
    both = (ours.rgba[..., 3] > 0.99) & (reference.rgba[..., 3] > 0.99)
    assert both.float().mean() > 0.1
    # A repeating texture mixes with its other side at its edges in Blender alone: a few pixels differ.
    apart = (ours.rgba - reference.rgba)[both].abs().amax(dim=-1)
    assert apart.median() < 0.02 and (apart > 0.1).float().mean() < 0.25
    assert ours.facts["textures"] == reference.facts["textures"] == 1


def test_an_outline_is_drawn_from_its_front_alone(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    ball = trimesh.creation.icosphere(2, 0.5)
    red, black = (file.material((*c, 1), doubleSided=False, **UNLIT) for c in ((1, 0, 0), (0, 0, 0)))
    file.node(mesh=file.mesh(ball.vertices * 0.95, ball.faces, red))
    file.node(mesh=file.mesh(ball.vertices, ball.faces[:, ::-1], black))
    path, rig = file.save(tmp_path / "a.gltf"), cameras.orbit(1, size=48)
    ours, reference = draw(blender, path, rig), draw(make_engine(EngineConfig(light="flat", supersample=4)), path, rig)
    assert ours.rgba[0, 24, 24].tolist() == pytest.approx([1, 0, 0, 1], abs=0.01)
    assert (ours.rgba - reference.rgba).abs().mean() < 0.01


def test_vertex_colours_without_a_material_are_drawn(blender: BlenderEngine, lopsided_file: Path) -> None:
    ours, reference = draw(blender, lopsided_file), draw(make_engine(EngineConfig(light="flat")), lopsided_file)
    both = (ours.rgba[..., 3] == 1) & (reference.rgba[..., 3] == 1)
    # The boxes shade one another near where they meet.
    assert (ours.rgba - reference.rgba)[both].abs().median() < 0.02


def test_normal_maps_are_off_unless_asked_for(blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    tilted = {"index": file.texture(np.full((4, 4, 3), [218, 128, 218]))}  # 45 degrees towards +X
    file.node(mesh=file.quad(file.material(normalTexture=tilted)))
    path = file.save(tmp_path / "a.gltf")
    front = torch.tensor([0.0, 0, 1])
    rig = cameras.orbit(1, size=32)
    assert (draw(blender, path, rig).normals[0, 16, 16] - front).norm() < 1e-4
    shading = BlenderEngine(replace(CONFIG, normals="shading"))
    assert (draw(shading, path, rig).normals[0, 16, 16] - front).norm() > 0.3
    shading.close()


def test_translucent_surfaces_keep_their_normals_and_tell_their_opacity(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    file.node(mesh=file.quad(file.material((1, 0, 0, 0.3), alphaMode="BLEND")))
    glass = draw(blender, file.save(tmp_path / "a.gltf"), cameras.orbit(1, size=32))
    assert (glass.normals[0, 16, 16] - torch.tensor([0.0, 0, 1])).norm() < 1e-4
    assert glass.facts["opacity"] == pytest.approx(0.3, abs=0.1)

    holes = np.full((8, 8, 4), 255)
    holes[:, 4:, 3] = 0
    cut = gltf()
    cut.node(mesh=cut.quad(cut.material(texture=cut.texture(holes), alphaMode="MASK")))
    cut.node(mesh=cut.quad(), translation=[0, 0, -0.5], rotation=[0, 0.3826834, 0, 0.9238795])
    seen = draw(blender, cut.save(tmp_path / "b.gltf"), cameras.orbit(1, size=32))
    assert (seen.normals[0, 16, 11] - torch.tensor([0.0, 0, 1])).norm() < 1e-3
    assert (seen.normals[0, 16, 20].abs() - torch.tensor([0.7071, 0, 0.7071])).norm() < 1e-2  # through the hole
    assert seen.facts["opacity"] == pytest.approx(1.0, abs=0.02)


def test_lights_and_cameras_of_the_file_change_nothing(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    plain, furnished = gltf(), gltf()
    for file in (plain, furnished):
        # matt grey: white under white light would hide another lamp
        solid = file.solid(trimesh.creation.icosphere(subdivisions=2), file.material((0.2, 0.2, 0.2, 1)))
        file.node(mesh=solid)
    lamp = {"type": "directional", "intensity": 5000.0}
    furnished.json |= {
        "extensionsUsed": ["KHR_lights_punctual"],
        "extensions": {"KHR_lights_punctual": {"lights": [lamp]}},
        "cameras": [{"type": "perspective", "perspective": {"yfov": 0.1, "znear": 0.1}}],
    }
    furnished.node(extensions={"KHR_lights_punctual": {"light": 0}})
    furnished.node(camera=0, translation=[9, 9, 9])
    first, second = draw(blender, plain.save(tmp_path / "a.gltf")), draw(blender, furnished.save(tmp_path / "b.gltf"))
    assert torch.equal(first.rgba, second.rgba) and 0 < first.rgba[0, 32, 32, 0] < 0.6
    assert second.facts["overexposed"] == 0


def test_emission_is_overexposed(blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 10.0}}
    file.node(mesh=file.quad(file.material(emissiveFactor=[1, 1, 1], extensions=strong)))
    file.json["extensionsUsed"] = list(strong)
    assert draw(blender, file.save(tmp_path / "a.gltf")).facts["overexposed"] > 0.9


def test_an_animation_is_drawn_at_its_first_frame(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    file.node(mesh=file.quad(), translation=[0, -1, 0], scale=[4, 1, 1])
    moving = file.node(mesh=file.quad(), translation=[0, 0, 0])
    times, places = np.array([0.0, 1.0, 2.0]), np.array([[-1.5, 0, 0], [1.5, 0, 0], [1.5, 0, 0]])
    sampler = {"input": file.accessor(times), "output": file.accessor(places)}
    channel = {"sampler": 0, "target": {"node": moving, "path": "translation"}}
    file.add("animations", {"samplers": [sampler], "channels": [channel]})
    rendered = draw(blender, file.save(tmp_path / "a.gltf"), cameras.orbit(1, size=60))
    row = rendered.rgba[0, 25, :, 3] > 0.5  # 10 pixels per file unit, the quad's row
    assert row.nonzero()[:, 0].tolist() == list(range(10, 20))
    assert rendered.facts["animations"] == 1


def test_a_distant_speck_does_not_shrink_the_object(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    file.node(mesh=file.solid(trimesh.creation.icosphere(subdivisions=3)))
    file.node(mesh=file.quad(), translation=[500, 0, 0], scale=[0.01, 0.01, 0.01])
    assert draw(blender, file.save(tmp_path / "a.gltf")).rgba[..., 3].mean() > 0.3


def test_missing_pictures_are_counted_and_not_drawn_in_magenta(
    blender: BlenderEngine, tmp_path: Path, gltf: Callable[[], Any]
) -> None:
    file = gltf()
    texture = file.add("textures", {"source": file.add("images", {"uri": "gone.png"})})
    file.node(mesh=file.quad(file.material(texture=texture)))
    rendered = draw(blender, file.save(tmp_path / "a.gltf"))
    assert rendered.facts["missing_textures"] == 1
    red, green, blue = rendered.rgba[0, 32, 32, :3].tolist()
    assert red == pytest.approx(green, abs=0.02) and blue == pytest.approx(green, abs=0.02)


def test_two_runs_give_the_same_pixels(blender: BlenderEngine, lopsided_file: Path) -> None:
    first, again = draw(blender, lopsided_file), draw(blender, lopsided_file)
    other = BlenderEngine(CONFIG)
    third = draw(other, lopsided_file)
    other.close()
    for rendered in (again, third):
        assert all(torch.equal(getattr(first, k), getattr(rendered, k)) for k in ("rgba", "normals", "depth"))
        assert first.facts == rendered.facts
