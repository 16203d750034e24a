"""Procedural objects: named by number, equal for equal seeds, of bounded size, and fit for training."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from nova3d.cameras import preset
from nova3d.data.filters import FilterConfig, apply_filters
from nova3d.data.procedural import KINDS, make_object
from nova3d.data.procedural.surfaces import Primitive, fillet, revolve, rounded_box, soft_union, tube
from nova3d.data.sources import SourceConfig, make_source
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig, make_engine
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError


def glb(seed: int, number: int, kind: str | None = None) -> bytes:
    return make_object(seed, number, kind).export(file_type="glb")


def solid(surface) -> trimesh.Trimesh:
    """The surface with the points of its seams and poles welded."""
    mesh = trimesh.Trimesh(surface.vertices.round(9), surface.faces, process=True)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return mesh


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_make_equal_objects_and_other_numbers_other_ones(kind: str) -> None:
    first = glb(3, 17, kind)
    assert glb(3, 17, kind) == first
    assert len({first, glb(3, 18, kind), glb(4, 17, kind)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_objects_stand_on_the_ground_with_a_longest_side_of_one(kind: str) -> None:
    for number in range(3):
        scene = make_object(0, number, kind)
        low, high = scene.bounds
        assert (high - low).max() == pytest.approx(1) and low[1] == pytest.approx(0, abs=1e-9)
        assert np.allclose((low + high)[[0, 2]], 0, atol=1e-9) and (high - low).min() > 0.05
        assert 100 < sum(len(mesh.faces) for mesh in scene.geometry.values()) < 100_000
        for mesh in scene.geometry.values():
            lengths = np.linalg.norm(mesh.vertex_normals, axis=1)
            assert np.allclose(lengths, 1, atol=1e-6)


def test_nearly_all_objects_pass_the_filters(tmp_path: Path) -> None:
    rig = preset("ortho16", 48)
    engine = make_engine(EngineConfig(name="raster", supersample=1))
    refused: dict[int, str] = {}
    for number in range(60):
        path = tmp_path / "object.glb"
        path.write_bytes(glb(0, number))
        result = apply_filters(engine.render(path, rig, lambda done: None), rig, FilterConfig())
        if result.reject:
            refused[number] = result.message
    assert len(refused) <= 3, refused


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_textured_and_carries_normals(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "object.glb"
    path.write_bytes(glb(1, 5, kind))
    mesh = load_mesh(path)
    assert mesh.has_normals
    assert max(texture.shape[0] for texture in mesh.textures) > 1 or float(mesh.colours.std()) > 0


def test_most_fronts_differ_from_their_backs(tmp_path: Path) -> None:
    """A label on one side: the picture of the back, mirrored, has other colours than that of the front."""
    rig = preset("ortho16", 48)[[0, 8]]
    engine = make_engine(EngineConfig(name="raster", supersample=1, light="flat"))
    different = 0
    for number in range(20):
        path = tmp_path / "object.glb"
        path.write_bytes(glb(0, number))
        front, back = engine.render(path, rig, lambda done: None).rgba
        back = back.flip(1)
        both = (front[..., 3] > 0) & (back[..., 3] > 0)
        different += float((front - back)[both][:, :3].abs().mean()) > 0.03
    assert different >= 12


# Surfaces against formulas


def test_surfaces_enclose_the_volumes_of_their_solids() -> None:
    curve, lengths = fillet([(0, 0), (0.5, 0), (0.5, 2), (0, 2)], 1e-4)
    cylinder = solid(revolve(curve, 96))
    assert cylinder.is_watertight and cylinder.volume == pytest.approx(np.pi * 0.25 * 2, rel=5e-3)
    assert lengths.tolist() == pytest.approx([0, 0.5 / 3, 2.5 / 3, 1], abs=1e-3)
    box = solid(rounded_box((1.0, 2.0, 0.5), 0.01))
    assert box.is_watertight and box.volume == pytest.approx(1.0, rel=1e-3)
    r = 0.2  # a box of rounded edges: its core, slabs, quarter cylinders and one ball
    core = np.array([1.0, 2.0, 0.6]) - 2 * r
    expected = core.prod() + 2 * r * (core[0] * core[1] + core[1] * core[2] + core[2] * core[0])
    expected += np.pi * r**2 * core.sum() + 4 / 3 * np.pi * r**3
    assert solid(rounded_box((1.0, 2.0, 0.6), r)).volume == pytest.approx(expected, rel=0.02)
    angle = np.linspace(0, 2 * np.pi, 97)
    ring = tube(np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1), 0.25, (0, 0, 1), 48)
    assert abs(solid(ring).volume) == pytest.approx(2 * np.pi**2 * 0.25**2, rel=0.02)


def test_a_soft_union_of_one_ball_is_the_ball() -> None:
    ball = Primitive("ellipsoid", np.array([0.1, 0.2, 0.3]), np.full(3, 0.4), np.eye(3))
    surface, part = soft_union([ball], 0.1, 48)
    out = surface.vertices - ball.centre
    assert np.allclose(np.linalg.norm(out, axis=1), 0.4, atol=2e-3)
    assert ((out / 0.4 * surface.normals).sum(axis=1) > 0.99).all() and not part.any()
    assert solid(surface).volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_a_hole_is_cut_out() -> None:
    plate = Primitive("box", np.zeros(3), np.array([0.5, 0.5, 0.2]), np.eye(3))
    drill = Primitive("cylinder", np.zeros(3), np.array([0.2, 1.0, 0.01]), np.eye(3)[[0, 2, 1]], hole=True)
    assert solid(soft_union([plate], 0.05)[0]).euler_number == 2
    assert solid(soft_union([plate, drill], 0.05)[0]).euler_number == 0


# The source


def test_a_source_names_its_objects_for_good(tmp_path: Path) -> None:
    small, large = (make_source(SourceConfig(kind="procedural", count=count)) for count in (3, 5))
    uids = [asset.uid for asset in small.assets()]
    assert uids == ["procedural_000000", "procedural_000001", "procedural_000002"]
    assert [asset.uid for asset in large.assets()][:3] == uids
    assert {asset.licence for asset in small.assets()} == {"CC0-1.0"}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    files = [source.fetch(small.assets()[2], tmp_path / folder) for source, folder in ((small, "a"), (large, "b"))]
    assert files[0].read_bytes() == files[1].read_bytes() == glb(0, 2)
    other = make_source(SourceConfig(kind="procedural", count=3, seed=7))
    assert other.assets()[0].uid == "procedural_000000_7"
    with pytest.raises(RenderError) as caught:
        other.fetch(small.assets()[0], tmp_path)
    assert caught.value.reason == Reason.FETCH_FAILED


def test_uid_lists_and_bad_numbers(tmp_path: Path) -> None:
    (tmp_path / "uids.txt").write_text("procedural_000001\n")
    listed = make_source(SourceConfig(kind="procedural", count=4, list=str(tmp_path / "uids.txt")))
    assert [asset.uid for asset in listed.assets()] == ["procedural_000001"]
    for bad in ({"count": 0}, {"seed": -1}):
        with pytest.raises(InputError, match=r"source\.count must be at least 1"):
            make_source(SourceConfig(kind="procedural", **bad))
