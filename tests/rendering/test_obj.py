"""OBJ and MTL as exporters write them: textures, colours, polygons, coordinates."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nova3d import cameras
from nova3d.rendering import render_object
from nova3d.rendering.engine import EngineConfig, Rendered, make_engine
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.rendering.triangulate import triangulate_all

SIZE = 48
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
FOUR = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8).repeat(8, 0).repeat(8, 1)
CORNERS = [(-0.25, 0.25), (0.25, 0.25), (-0.25, -0.25), (0.25, -0.25)]
UPRIGHT = [RED, GREEN, BLUE, YELLOW]
VERTICES = "v -.5 -.5 0\nv .5 -.5 0\nv .5 .5 0\nv -.5 .5 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"
MTL = "newmtl a\nKd 1 1 1\nmap_Kd "


def draw(path: Path, views: int = 1) -> Rendered:
    rig = cameras.orbit(views, size=SIZE)
    return make_engine(EngineConfig(light="flat", supersample=1)).render(path, rig, lambda done: None)


def colours(path: Path) -> list[tuple[int, ...]]:
    rgba = draw(path).rgba[0]
    places = [(int((0.5 - y / 1.5) * SIZE), int((x / 1.5 + 0.5) * SIZE)) for x, y in CORNERS]
    return [tuple((rgba[row, column, :3] * 255).round().int().tolist()) for row, column in places]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= 4)


def write(folder: Path, mtl: str | bytes | None, text: str | None = None, picture: str | None = "t.png") -> Path:
    """A square with a material `a`, its MTL and its picture of four colours."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.obj"
    path.write_text(f"mtllib m.mtl\n{VERTICES}usemtl a\n{FACE}" if text is None else text)
    if mtl is not None:
        (folder / "m.mtl").write_bytes(mtl if isinstance(mtl, bytes) else mtl.encode())
    if picture:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FOUR).save(folder / picture)
    return path


@pytest.mark.parametrize(
    ("line", "picture"),
    [
        ("t.png", "t.png"),
        ("../images/t.png", "../images/t.png"),
        ("-o 0 0 0 -s 1 1 1 t.png", "t.png"),
        ("-blendu off -mm 0 1 -bm 1.0 -clamp off -imfchan l t.png", "t.png"),
        ("my tex (1).png", "my tex (1).png"),
        ("tex\\t.png", "tex/t.png"),
        (".\\tex\\t.png", "tex/t.png"),
        ("t.png # diffuse", "t.png"),
        ("t#1.png", "t#1.png"),
        ('"t.png"', "t.png"),
        ("C:\\Users\\me\\textures\\t.png", "t.png"),
        ("/home/me/textures/t.png", "t.png"),
        ("T.PNG", "t.png"),
        ("t.png   ", "t.png"),
        ("-t.png", "-t.png"),
    ],
)
def test_spellings_of_textures(tmp_path: Path, line: str, picture: str) -> None:
    path = write(tmp_path / "models", MTL + line + "\n", picture=picture)
    assert close(colours(path), UPRIGHT)
    assert draw(path).facts["missing_textures"] == 0


def test_options_move_the_texture(tmp_path: Path) -> None:
    assert close(colours(write(tmp_path / "o", MTL + "-o .5 0 t.png\n")), [GREEN, RED, YELLOW, BLUE])
    assert close(colours(write(tmp_path / "s", MTL + "-s .5 .5 -o .5 t.png\n")), [YELLOW] * 4)
    clamped = f"mtllib m.mtl\n{VERTICES.replace('vt 1', 'vt 3').replace('vt 0', 'vt 2')}usemtl a\n{FACE}"
    assert close(colours(write(tmp_path / "c", MTL + "-clamp on t.png\n", clamped)), [GREEN, GREEN, YELLOW, YELLOW])


@pytest.mark.parametrize(
    "text",
    [
        f"mtllib m.mtl\n{VERTICES}{FACE}",  # no usemtl, one material
        f"mtllib gone.mtl\nmtllib m.mtl\n{VERTICES}usemtl a\n{FACE}",
        f"mtllib gone.mtl m.mtl\n{VERTICES}usemtl a\n{FACE}",
        f"mtllib .\\m.mtl\n{VERTICES}usemtl a\n{FACE}",
        f"mtllib m.mtl\r\n{VERTICES}usemtl a\r\nf 1/1 2/2 \\\r\n3/3 4/4\r\n",
        f"mtllib m.mtl\n{VERTICES}usemtl a\nf -4/-4 -3/-3 -2/-2 -1/-1 # square\n",
        f"\ufeffmtllib m.mtl\n{VERTICES}usemtl a\n{FACE}",
        f"mtllib m.mtl\n{VERTICES}v 0 0 -.2\nusemtl a\n{FACE}f 1 2 5\n",  # one face without vt
        f"usemtl a\n{FACE}{VERTICES}mtllib m.mtl\n",  # definitions last
    ],
)
def test_ways_to_name_the_material(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, MTL + "t.png\n", text)
    assert close(colours(path), UPRIGHT) and draw(path).facts["missing_textures"] == 0


def test_utf16_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, (MTL + "t.png\n").encode("utf-16"))
    path.write_bytes(path.read_text().encode("utf-16"))
    assert close(colours(path), UPRIGHT)


@pytest.mark.parametrize(
    ("mtl", "picture", "missing"),
    [
        (None, None, "m.mtl"),
        (MTL + "gone.png\n", None, "gone.png"),
        (MTL + "../../../t.png\n", "../../../t.png", "t.png"),  # beyond the folder beside the mesh's own
        (MTL + "/dev/zero\n", None, "/dev/zero"),
        (MTL + "t.ktx2\n", None, "t.ktx2"),
        (MTL + "x.obj\n", None, "x.obj"),
    ],
)
def test_what_is_not_there_is_missing(tmp_path: Path, mtl: str | None, picture: str | None, missing: str) -> None:
    path = write(tmp_path / "a/b/models", mtl, picture=picture)
    facts = draw(path).facts
    assert facts["missing_textures"] == 1
    assert missing in load_mesh(path).file.missing_textures[0]
    with pytest.raises(RenderError, match="lacks a texture") as caught:
        render_object(path, cameras.orbit(1, size=8))
    assert caught.value.reason == Reason.MISSING_TEXTURE


def test_a_broken_picture_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, MTL + "t.png\n")
    (tmp_path / "t.png").write_bytes((tmp_path / "t.png").read_bytes()[:60])
    assert draw(path).facts["missing_textures"] == 1


def test_factor_times_texture_times_colours(tmp_path: Path) -> None:
    lines = VERTICES.splitlines()
    coloured = "\n".join(f"{line} 1 0 1" if line.startswith("v ") else line for line in lines) + "\n"
    text = f"mtllib m.mtl\n{coloured}usemtl a\n{FACE}"
    assert close(colours(write(tmp_path / "a", MTL + "t.png\n", text)), [RED, (0, 0, 0), BLUE, RED])
    plain = write(tmp_path / "b", "newmtl a\nKd 0.5 0.5 0.5\n", text, None)
    assert close(colours(plain), [(188, 0, 188)] * 4)
    assert close(
        colours(write(tmp_path / "c", "newmtl a\nKd 0.5 1 1\nmap_Kd t.png\n")),
        [(188, 0, 0), *UPRIGHT[1:3], (188, 255, 0)],
    )
    # Black beside a picture means the picture alone: exporters write it so.
    assert close(colours(write(tmp_path / "d", "newmtl a\nKd 0 0 0\nmap_Kd t.png\n")), UPRIGHT)
    bytes_ = text.replace(" 1 0 1\n", " 255 0 255\n")
    assert close(colours(write(tmp_path / "e", "newmtl a\nKd 1 1 1\n", bytes_, None)), [(255, 0, 255)] * 4)


@pytest.mark.parametrize(("line", "opacity"), [("d 0.5", 0.5), ("Tr 0.25", 0.75), ("Tr 1", 1), ("d 1\nTr 1", 1)])
def test_opacity(tmp_path: Path, line: str, opacity: float) -> None:
    path = write(tmp_path, f"newmtl a\nKd 1 0 0\n{line}\n", picture=None)
    assert draw(path).facts["opacity"] == pytest.approx(opacity)


def test_masks_cut_holes(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    path = write(tmp_path, MTL + "t.png\nmap_d mask.png\n")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    alpha = draw(path).rgba[0, SIZE // 2, :, 3]
    assert alpha[14] == 0 and alpha[34] == 1


@pytest.mark.parametrize("start", range(6))
def test_polygons_with_an_inner_corner(tmp_path: Path, start: int) -> None:
    corner = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0), (0, 0), (0, 0.5), (-0.5, 0.5)]
    order = [(start + k) % 6 + 1 for k in range(6)]
    path = tmp_path / "l.obj"
    path.write_text("".join(f"v {x} {y} 0\n" for x, y in corner) + "f " + " ".join(map(str, order)) + "\n")
    mesh = load_mesh(path)
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    areas = torch.linalg.cross(b - a, c - a)[:, 2] / 2
    assert float(areas.sum()) == pytest.approx(0.75) and bool((areas > 0).all())
    assert draw(path).rgba[0, 14, 34, 3] == 0  # the notch


def test_concave_quadrangles_and_mixed_faces(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    dart = "v 0 0 0\nv 1 1 0\nv 0 -1 0\nv -1 1 0\n"  # inner corner first or third
    for face in ("f 1 4 3 2", "f 3 2 1 4"):
        path.write_text(f"{dart}v 5 0 0\nv 6 0 0\nv 5 1 0\n{face}\nf 5 6 7\n")
        mesh = load_mesh(path)
        a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
        assert float(torch.linalg.cross(b - a, c - a).norm(dim=-1).sum() / 2) == pytest.approx(1.0 + 0.5)
        assert len(mesh.faces) == 3


def test_triangles_of_a_star_cover_it_once() -> None:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = np.where(np.arange(200) % 2, 1.0, 0.3)
    star = np.stack([radius * np.cos(angle), np.zeros(200), radius * np.sin(angle)], axis=1)
    triangles, _ = triangulate_all(np.array([200]), star)
    a, b, c = np.moveaxis(star[triangles], 1, 0)
    areas = np.cross(b - a, c - a)[:, 1] / 2
    x, z = star[:, 0], star[:, 2]
    whole = (z * np.roll(x, -1) - x * np.roll(z, -1)).sum() / 2
    assert len(triangles) == 198 and areas.sum() == pytest.approx(whole)
    assert (np.sign(areas) == np.sign(whole)).all()


def test_far_from_the_origin_nothing_is_lost(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(2, 0.5)
    shown = []
    for name, offset in (("near", (0, 0, 0)), ("utm", (500000, 30, 4500000))):
        lines = [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in ball.vertices + offset]
        lines += [f"f {a} {b} {c}" for a, b, c in ball.faces + 1]
        (tmp_path / f"{name}.obj").write_text("\n".join(lines) + "\n")
        shown.append(draw(tmp_path / f"{name}.obj", views=3))
    assert (shown[0].rgba[..., 3] != shown[1].rgba[..., 3]).float().mean() < 1e-3
    assert (shown[0].normals - shown[1].normals).norm(dim=-1).mean() < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{VERTICES}f 1 2 9\n", "vertex 9 of 4"),
        (f"{VERTICES}f 1 2 0\n", "element 0"),
        (f"{VERTICES}f 1 2 -9\n", "element -9 of 4"),
        (f"{VERTICES}f 1/9 2/9 3/9\n", "coordinate 9 of 4"),
        (f"{VERTICES}f 1//1 2//1 3//1\n", "normal 1 of 0"),
        (f"{VERTICES}f 1 2 x\n", "invalid literal"),
        ("v 1 2\nv 1 2 3\nv 2 3 4\nf 1 2 3\n", "'1 2' is not a list of 3 numbers"),
        ("v a b c\nv 1 2 3\nv 2 3 4\nf 1 2 3\n", "'a b c' is not a list of 3 numbers"),
    ],
)
def test_broken_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(RenderError, match=message) as caught:
        load_mesh(tmp_path / "a.obj")
    assert caught.value.reason == Reason.PARSE_ERROR and "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_of_other_systems(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, "newmtl a\nmap_Kd t.png\n".replace("\n", end).encode())
    text = path.read_text().replace("f 1/1 2/2", "f 1/1 \\\n2/2")  # a continued line
    path.write_bytes(text.replace("\n", end).encode())
    assert close(colours(path), UPRIGHT)
