"""PLY and OFF: polygons, colours, textures and byte orders, by values written down beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nova3d import cameras
from nova3d.rendering.engine import EngineConfig, make_engine
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError

SIZE = 48
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
FOUR = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8).repeat(8, 0).repeat(8, 1)
CORNERS = [(-0.25, 0.25), (0.25, 0.25), (-0.25, -0.25), (0.25, -0.25)]
SQUARE = [(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)]
NOTCHED = [(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0, 0), (0, 0, 0), (0, 0.5, 0), (-0.5, 0.5, 0)]


def colours(path: Path) -> list[tuple[int, ...]]:
    engine = make_engine(EngineConfig(light="flat", supersample=1))
    rgba = engine.render(path, cameras.orbit(1, size=SIZE), lambda done: None).rgba[0]
    places = [(int((0.5 - y / 1.5) * SIZE), int((x / 1.5 + 0.5) * SIZE)) for x, y in CORNERS]
    return [tuple((rgba[row, column, :3] * 255).round().int().tolist()) for row, column in places]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= 4)


def area(path: Path) -> float:
    mesh = load_mesh(path)
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    return float(torch.linalg.cross(b - a, c - a)[:, 2].sum() / 2)


def ply(
    path: Path, order: str, vertex: list[tuple[str, str]], rows: list[Any], polygons: list[list[int]], **more: Any
) -> Path:
    """Write a PLY of `vertex` properties (type, name), rows of them and polygons, in ASCII or a byte order."""
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = ["ply", f"format {kind} 1.0", *more.get("comments", []), f"element vertex {len(rows)}"]
    head += [f"property {a} {b}" for a, b in vertex] + [f"element face {len(polygons)}"]
    head += ["property list uchar int vertex_indices", *more.get("face", []), "end_header"]
    content = "\n".join(head).encode() + b"\n"
    types = {"float": "f4", "double": "f8", "uchar": "u1", "ushort": "u2"}
    extra = more.get("values", [[] for _ in polygons])
    if order == "":
        lines = [" ".join(map(str, row)) for row in rows]
        lines += [" ".join(map(str, [len(p), *p, *e])) for p, e in zip(polygons, extra, strict=True)]
        content += "\n".join(lines).encode() + b"\n"
    else:
        for row in rows:
            content += b"".join(np.array(v, order + types[t]).tobytes() for v, (t, _) in zip(row, vertex, strict=True))
        for p, e in zip(polygons, extra, strict=True):
            content += bytes([len(p)]) + np.array(p, order + "i4").tobytes() + bytes(e)
    path.write_bytes(content)
    return path


XYZ = [("float", "x"), ("float", "y"), ("float", "z")]
RGB = [("uchar", "red"), ("uchar", "green"), ("uchar", "blue")]


@pytest.mark.parametrize("order", ["", "<", ">"])
def test_polygons_of_every_size(tmp_path: Path, order: str) -> None:
    assert area(ply(tmp_path / "l.ply", order, XYZ, NOTCHED, [[3, 4, 5, 0, 1, 2]])) == pytest.approx(0.75)
    rows = [*NOTCHED, (2, 0, 0), (3, 0, 0), (2, 1, 0)]
    mixed = ply(tmp_path / "m.ply", order, XYZ, rows, [[0, 1, 2, 3, 4, 5], [6, 7, 8], [0, 0]])
    assert area(mixed) == pytest.approx(1.25) and len(load_mesh(mixed).faces) == 5


@pytest.mark.parametrize("order", ["", "<", ">"])
def test_colours_of_vertices_beside_coordinates(tmp_path: Path, order: str) -> None:
    vertex = [*XYZ, ("float", "s"), ("float", "t"), *RGB]
    rows = [(*p, 0.5, 0.5, 200, 100, 50) for p in SQUARE]
    assert close(colours(ply(tmp_path / "a.ply", order, vertex, rows, [[0, 1, 2, 3]])), [(200, 100, 50)] * 4)


def test_colours_of_other_types_and_of_faces(tmp_path: Path) -> None:
    fractions = [*XYZ, *(("float", name) for name in ("red", "green", "blue"))]
    rows = [(*p, 1.0, 0.5, 0.0) for p in SQUARE]
    assert close(colours(ply(tmp_path / "f.ply", "", fractions, rows, [[0, 1, 2, 3]])), [(255, 128, 0)] * 4)
    short = [*XYZ, *(("ushort", name) for name in ("red", "green", "blue"))]
    rows = [(*p, 65535, 0, 32768) for p in SQUARE]
    assert close(colours(ply(tmp_path / "s.ply", "<", short, rows, [[0, 1, 2, 3]])), [(255, 0, 128)] * 4)
    lines = [f"property {a} {b}" for a, b in RGB]
    for order in ("", "<"):
        path = tmp_path / f"c{len(order)}.ply"
        ply(path, order, XYZ, SQUARE, [[0, 1, 2], [0, 2, 3]], face=lines, values=[[255, 0, 0], [0, 0, 255]])
        found = colours(path)
        assert close([found[3], found[0]], [RED, BLUE])


def test_double_positions_and_normals(tmp_path: Path) -> None:
    vertex = [("double", axis) for axis in "xyz"] + [("float", f"n{axis}") for axis in "xyz"]
    far = (5e5, 30.0, 4.5e6)
    rows = [(*np.add(p, far).tolist(), 0, 0, 1) for p in SQUARE]
    mesh = load_mesh(ply(tmp_path / "a.ply", "<", vertex, rows, [[0, 1, 2, 3]]))
    assert mesh.has_normals and mesh.origin.tolist() == pytest.approx(far)
    assert mesh.vertices.tolist() == [list(map(float, p)) for p in SQUARE]


@pytest.mark.parametrize("per", ["vertex", "corner"])
def test_textures(tmp_path: Path, per: str) -> None:
    Image.fromarray(FOUR).save(tmp_path / "my tex.png")
    uv = [(0, 0), (1, 0), (1, 1), (0, 1)]
    comments = ["comment TextureFile my tex.png"]
    path = tmp_path / "a.ply"
    if per == "vertex":
        rows = [(*p, *t) for p, t in zip(SQUARE, uv, strict=True)]
        ply(path, "", [*XYZ, ("float", "s"), ("float", "t")], rows, [[0, 1, 2, 3]], comments=comments)
    else:
        face = ["property list uchar float texcoord"]
        values = [[8, *np.ravel(uv).tolist()]]
        ply(path, "", XYZ, SQUARE, [[0, 1, 2, 3]], comments=comments, face=face, values=values)
    assert close(colours(path), [RED, GREEN, BLUE, YELLOW])
    (tmp_path / "my tex.png").unlink()
    assert "my tex.png" in load_mesh(path).file.missing_textures[0]


def test_strips(tmp_path: Path) -> None:
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    lines = [" ".join(map(str, p)) for p in SQUARE]
    (tmp_path / "a.ply").write_text(head + "\n".join([*lines, "8 0 1 3 2 -1 0 1 3"]) + "\n")
    assert area(tmp_path / "a.ply") == pytest.approx(1.5)


def test_what_trimesh_writes_is_read_back(tmp_path: Path, lopsided_file: Path) -> None:
    given: Any = trimesh.load_mesh(lopsided_file, process=False)
    mesh = load_mesh(lopsided_file)
    assert np.allclose(mesh.vertices.numpy()[mesh.faces.numpy()], given.vertices[given.faces], atol=1e-6)
    assert len(mesh.colours.unique(dim=0)) == len(np.unique(given.visual.vertex_colors, axis=0))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("OFF\n6 1 0\n", None),
        ("OFF 6 1 0\n", None),
        ("COFF\n6 1 0\n", (200, 100, 50)),
        ("# a\nOFF # b\n\n6 1 0\n", None),
    ],
)
def test_off(tmp_path: Path, header: str, expected: Any) -> None:
    colour = " 200 100 50 255" if expected else ""
    text = header + "".join(f"{x} {y} {z}{colour}\n" for x, y, z in NOTCHED) + "6 2 3 4 5 0 1\n"
    (tmp_path / "a.off").write_text(text)
    assert area(tmp_path / "a.off") == pytest.approx(0.75)
    found = load_mesh(tmp_path / "a.off").colours * 255
    assert found[0].tolist() == pytest.approx(expected or [255, 255, 255], abs=0.01)


def test_colours_of_faces_in_off(tmp_path: Path) -> None:
    text = "OFF\n4 2 0\n" + "".join(f"{x} {y} {z}\n" for x, y, z in SQUARE)
    (tmp_path / "a.off").write_text(text + "3 0 1 2 1.0 0.0 0.0\n3 0 2 3 0.0 0.0 1.0\n")
    found = colours(tmp_path / "a.off")
    assert close([found[3], found[0]], [RED, BLUE])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex -1\nproperty float x\nend_header\n"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar float x\nend_header\n900 1\n"),
        (
            "a.ply",
            b"ply\nformat binary_little_endian 1.0\nelement f 1\nproperty list int int x\nend_header\n\xff\xff\xff\xff",
        ),
        ("a.ply", b"ply\nformat odd 1.0\nend_header\n"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty quad x\nend_header\n1\n"),
        ("a.ply", b"plying"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n5 0 1 2\n"),
        ("a.off", b"OFF\n3 -1 0\n"),
        ("a.off", b"OFF BINARY\n\0\0\0\1"),
        ("a.off", b""),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RenderError, match=name) as caught:
        load_mesh(tmp_path / name)
    assert caught.value.reason == Reason.PARSE_ERROR and "\n" not in str(caught.value)
