"""The raster engine against closed forms: spheres, a letter, boxes."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from nova3d import cameras
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.rendering import render_object
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.raster import irradiance, rasterize

RADIUS = 0.5
RIGS = {
    "orthographic": cameras.orbit(3, 20.0, 96),
    "perspective": cameras.orbit(3, 20.0, 96, "perspective", fov_deg=40.0, radius=2.0),
}
SAMPLE = Path(__file__).parents[2] / "assets/gso30-sample"
QUAD = [[-0.3, -0.5, 0], [0.3, -0.5, 0], [0.3, 0.5, 0], [-0.3, 0.5, 0]]
QUAD_FACES, QUAD_UV = [[0, 1, 2], [0, 2, 3]], [[0, 0], [1, 0], [1, 1], [0, 1]]


def sphere_hits(rig: Cameras) -> tuple[Tensor, Tensor]:
    """Analytic unit normals [v,h,w,3] where the pixel's ray meets the sphere, and the rays' closest distance."""
    origins, directions = rig.rays()
    along = -(origins * directions).sum(-1, keepdim=True)
    nearest = (origins + along * directions).norm(dim=-1)
    half = (RADIUS**2 - nearest**2).clamp_min(0).sqrt()[..., None]
    return (origins + (along - half) * directions) / RADIUS, nearest


@pytest.mark.parametrize("model", RIGS)
@pytest.mark.parametrize("supersample", [1, 3])
def test_sphere_normals_are_within_a_tenth_of_a_degree(
    sphere_file: Path, model: str, supersample: int, angle_deg: Callable[[Tensor, Tensor], Tensor]
) -> None:
    expected, nearest = sphere_hits(RIGS[model])
    views = render_object(sphere_file, RIGS[model], supersample=supersample)
    interior = nearest < 0.85 * RADIUS
    assert interior.sum() > 3000
    assert angle_deg(views.normals, expected)[interior].max() < 0.1
    assert (views.normals[nearest > RADIUS * 1.1] == 0).all()


@pytest.mark.parametrize("model", RIGS)
def test_sphere_mask_has_the_area_of_its_outline(sphere_file: Path, model: str) -> None:
    rig = RIGS[model]
    focal = float(rig.intrinsics[0, 0])
    # Seen in perspective from distance d, a sphere's outline is the tangent cone: r / sqrt(d^2 - r^2).
    radius = RADIUS if model == "orthographic" else RADIUS / math.sqrt(2.0**2 - RADIUS**2)
    if model == "perspective":
        rig = cameras.orbit(3, 0.0, 96, "perspective", fov_deg=40.0, radius=2.0)
    area = render_object(sphere_file, rig, supersample=4).mask.sum(dim=(1, 2))
    torch.testing.assert_close(area, torch.full((3,), math.pi * (radius * focal) ** 2), rtol=3e-3, atol=0)


@pytest.mark.parametrize(("model", "expected"), [("orthographic", 1.5 - RADIUS), ("perspective", 2.0 - RADIUS)])
def test_depth_of_the_centre_is_the_distance_to_the_sphere(sphere_file: Path, model: str, expected: float) -> None:
    depth = rasterize(load_mesh(sphere_file), RIGS[model], 1).depth
    assert (depth[:, 47:49, 47:49] - expected).abs().max() < 1e-3
    assert (depth[:, 0, 0] == 0).all()


def letter_picture(cells: list[tuple[int, int]], scale: int = 24) -> Image.Image:
    pixels = np.full((5 * scale, 3 * scale, 3), 240, np.uint8)
    for column, row in cells:
        pixels[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale] = (20, 40, 160)
    return Image.fromarray(pixels)


def write_letter(folder: Path, suffix: str, cells: list[tuple[int, int]]) -> Path:
    """A 0.6 x 1 quad facing +Z that carries the letter."""
    path = folder / f"letter{suffix}"
    if suffix == ".obj":
        letter_picture(cells).save(folder / "letter.png")
        (folder / "letter.mtl").write_text("newmtl paint\nKd 1 1 1\nmap_Kd letter.png\n")
        lines = ["mtllib letter.mtl", *(f"v {x} {y} {z}" for x, y, z in QUAD), *(f"vt {u} {v}" for u, v in QUAD_UV)]
        lines += ["usemtl paint", *(f"f {a + 1}/{a + 1} {b + 1}/{b + 1} {c + 1}/{c + 1}" for a, b, c in QUAD_FACES)]
        path.write_text("\n".join(lines) + "\n")
    else:
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=letter_picture(cells))
        visual = trimesh.visual.TextureVisuals(uv=np.array(QUAD_UV, float), material=material)
        trimesh.Trimesh(QUAD, QUAD_FACES, visual=visual, process=False).export(path)
    return path


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_textured_letter_is_upright_in_front_and_mirrored_behind(
    tmp_path: Path, letter_f: list[tuple[int, int]], suffix: str
) -> None:
    rig = cameras.orbit(2, size=120)  # 80 pixels per world unit, 16 per cell
    views = render_object(write_letter(tmp_path, suffix, letter_f), rig, light="flat")
    dark = views.rgb.mean(dim=-1) < 0.6
    expected = torch.zeros(120, 120, dtype=torch.bool)
    for column, row in letter_f:
        expected[20 + row * 16 : 36 + row * 16, 36 + column * 16 : 52 + column * 16] = True
    assert (dark[0] != expected).float().mean() < 0.01
    assert (dark[1] != expected.flip(1)).float().mean() < 0.01
    assert (dark[0] != expected.flip(1)).float().mean() > 0.05  # the letter is no mirror image of itself
    assert (views.rgb[0, 24, 40] - torch.tensor([20, 40, 160]) / 255).abs().max() < 3 / 255  # colours are kept
    assert (views.mask[:, 22:98, 38:82] == 1).all()


def quads(depths_colours_sizes: list[tuple[float, tuple[int, int, int], float]]) -> trimesh.Trimesh:
    parts = []
    for z, colour, size in depths_colours_sizes:
        corners = np.array(QUAD) / [0.6, 1, 1] * [size, size, 1] + [0, 0, z]
        colours = np.tile([*colour, 255], (4, 1)).astype(np.uint8)
        parts.append(trimesh.Trimesh(corners, QUAD_FACES, vertex_colors=colours, process=False))
    return trimesh.util.concatenate(parts)


def test_the_nearer_surface_hides_the_farther_one_from_either_side(tmp_path: Path) -> None:
    path = tmp_path / "quads.ply"
    quads([(-0.2, (0, 0, 255), 1.0), (0.2, (255, 0, 0), 0.5)]).export(path)
    views = render_object(path, cameras.orbit(2, size=60), light="flat", normalise=False)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    assert (views.rgb[0, 22:38, 22:38] - red).abs().max() < 1e-3
    assert (views.rgb[0, 12:48, 12:18] - blue).abs().max() < 1e-3
    assert (views.rgb[1, 12:48, 12:48] - blue).abs().max() < 1e-3
    # Two-sided: the same quad faces whoever looks at it.
    assert (views.normals[0, 30, 30] - torch.tensor([0, 0, 1.0])).norm() < 1e-5
    assert (views.normals[1, 30, 30] - torch.tensor([0, 0, -1.0])).norm() < 1e-5


def test_drawing_is_deterministic_and_indifferent_to_the_order_of_faces(sphere_file: Path) -> None:
    mesh = load_mesh(sphere_file)
    colours = torch.rand(mesh.colours.shape, generator=torch.Generator().manual_seed(0))
    mesh = replace(mesh, colours=colours)
    rig = cameras.orbit(2, 10.0, 64)
    first, second = rasterize(mesh, rig, 2), rasterize(mesh, rig, 2)
    assert all(torch.equal(getattr(first, k), getattr(second, k)) for k in ("rgba", "normals", "depth"))
    order = torch.randperm(len(mesh.faces), generator=torch.Generator().manual_seed(1))
    shuffled = rasterize(replace(mesh, faces=mesh.faces[order], face_material=mesh.face_material[order]), rig, 2)
    assert torch.equal(shuffled.rgba[..., 3], first.rgba[..., 3])
    assert (shuffled.rgba - first.rgba).abs().max() < 1e-3  # exact edges may fall to either neighbour
    assert (shuffled.depth - first.depth).abs().max() < 1e-5


def test_a_file_without_normals_is_shaded_flat(tmp_path: Path) -> None:
    solid = trimesh.creation.icosahedron()
    path = tmp_path / "solid.glb"
    path.write_bytes(trimesh.exchange.gltf.export_glb(trimesh.Scene(solid), include_normals=False))
    mesh = load_mesh(path)
    assert not mesh.has_normals
    views = render_object(path, cameras.orbit(2, 15.0, 48), supersample=1)
    seen = views.normals[views.mask > 0]
    faces = torch.tensor(np.array(solid.face_normals)).float()
    assert (seen @ faces.T).amax(dim=1).min() > 1 - 1e-5
    assert len((seen * 100).round().unique(dim=0)) >= 6


def test_studio_light_comes_from_above_and_the_upper_right_front() -> None:
    axes = torch.tensor([[0.0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]])
    key, fill = math.hypot(0.35, 0.65, 0.67), math.hypot(0.5, 0.3, 0.8)
    up = 0.4 + 0.1 + 0.45 * 0.65 / key + 0.25 * 0.3 / fill
    sides = [0.4 + 0.45 * 0.35 / key, 0.4 + 0.25 * 0.5 / fill, 0.4 + 0.45 * 0.67 / key, 0.4 + 0.25 * 0.8 / fill]
    assert irradiance(axes, "studio").tolist() == pytest.approx([up, 0.4 - 0.1, *sides])
    assert irradiance(axes, "flat").tolist() == [1.0] * 6


def test_vertex_normals_of_the_file_are_used(sphere_file: Path) -> None:
    assert load_mesh(sphere_file).has_normals


def test_vertex_colours_reach_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "quad.ply"
    quads([(0.0, (200, 100, 50), 1.0)]).export(path)
    rgb = render_object(path, cameras.orbit(1, size=30), light="flat").rgb[0, 10:20, 10:20]
    assert (rgb - torch.tensor([200, 100, 50]) / 255).abs().max() < 1e-3


def test_an_unused_vertex_does_not_change_the_frame(tmp_path: Path) -> None:
    lines = [f"v {x} {y} {z}" for x, y, z in QUAD]
    faces = ["f 1 2 3", "f 1 3 4"]
    (tmp_path / "quad.obj").write_text("\n".join([*lines, *faces]) + "\n")
    mesh = load_mesh(tmp_path / "quad.obj")
    stray = replace(
        mesh,
        vertices=torch.cat([mesh.vertices, torch.tensor([[9.0, 9, 9]])]),
        normals=torch.cat([mesh.normals, torch.tensor([[0.0, 0, 1]])]),
    )
    assert torch.equal(stray.normalised().vertices[:-1], mesh.normalised().vertices)


def obj(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


REFUSED = {
    "garbage.glb": (bytes(range(256)) * 8, "cannot be read"),
    "empty.obj": (b"", "mesh"),
    "points.ply": (
        b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
        b"end_header\n0 0 0\n1 1 1\n",
        "no triangles",
    ),
    "nan.obj": (obj("v nan 0 0", "v 1 0 0", "v 0 1 0", "f 1 2 3"), "not finite"),
    "point.obj": (obj("v 1 1 1", "v 1 1 1", "v 1 1 1", "f 1 2 3"), "no extent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_meshes_are_refused_with_file_and_reason(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        render_object(tmp_path / name, cameras.orbit(2, size=16))
    assert name in str(caught.value)


def test_a_truncated_glb_is_refused(tmp_path: Path, sphere_file: Path) -> None:
    (tmp_path / "cut.glb").write_bytes(sphere_file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut\.glb"):
        render_object(tmp_path / "cut.glb", cameras.orbit(2, size=16))


def test_missing_file_unknown_engine_and_mesh_out_of_view_are_refused(tmp_path: Path) -> None:
    rig = cameras.orbit(2, size=16)
    with pytest.raises(InputError, match="does not exist"):
        render_object(tmp_path / "none.glb", rig)
    (tmp_path / "far.obj").write_bytes(obj("v 9 9 9", "v 10 9 9", "v 9 10 9", "f 1 2 3"))
    with pytest.raises(InputError, match=r"far\.obj.*cannot be drawn"):
        render_object(tmp_path / "far.obj", rig, normalise=False)
    with pytest.raises(InputError, match="engine 'cycles'"):
        render_object(tmp_path / "far.obj", rig, engine="cycles")


def test_the_published_silhouettes_of_gso30_are_reproduced() -> None:
    facts = json.loads((SAMPLE / "cameras.json").read_text())
    w2c = torch.eye(4, dtype=torch.float64).repeat(16, 1, 1)
    w2c[:, :3] = torch.tensor(facts["w2c"], dtype=torch.float64)
    c2w = (torch.linalg.inv(w2c) @ torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))).float()
    k = facts["K"]
    rig = Cameras(c2w, torch.tensor([k[0][0], k[1][1], k[0][2], k[1][2]]).repeat(16, 1), 256, 256, "perspective")
    strip = torch.from_numpy(np.asarray(Image.open(SAMPLE / "alpha.png")).copy())
    published = strip.reshape(4, 256, 4, 256).transpose(1, 2).reshape(16, 256, 256) > 127
    # One sample at the pixel's centre is what the published alpha is.
    ours = render_object(SAMPLE / "mesh.glb", rig, supersample=1, normalise=False).mask > 0.5
    iou = (ours & published).sum(dim=(1, 2)) / (ours | published).sum(dim=(1, 2))
    assert iou.min() >= 0.995
