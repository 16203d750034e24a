import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from nova3d.errors import InputError
from nova3d.fusion import isosurface as surfaces
from nova3d.fusion.config import ExtractConfig
from nova3d.fusion.isosurface import clean, extract_mesh, health, isosurface
from nova3d.utils import compat

BOX = torch.tensor([[-0.45] * 3, [0.45] * 3])
CONFIG = ExtractConfig(resolution=96, coarse=32, faces=4000, min_component=0.1)
STEP = 1.2 / 96


def ball(x: torch.Tensor, centre=(0.0, 0.0, 0.0), radius: float = 0.3) -> torch.Tensor:
    return (x - torch.tensor(centre)).norm(dim=-1) - radius


def wire(x: torch.Tensor) -> torch.Tensor:
    """A ring of 0.016, thinner than a coarse cell (0.0375) and missed by every coarse node."""
    return torch.stack([x[:, :2].norm(dim=-1) - 0.31, x[:, 2] - 0.019], dim=-1).norm(dim=-1) - 0.008


def shells(x: torch.Tensor) -> torch.Tensor:
    """Thin wavy walls that touch in many places: every ambiguous case of marching cubes."""
    a, b, c = (22 * x).unbind(-1)
    gyroid = a.sin() * b.cos() + b.sin() * c.cos() + c.sin() * a.cos()
    return torch.maximum((gyroid.abs() - 0.3) / 30, x.norm(dim=-1) - 0.4)


def test_sphere_is_closed_outward_and_where_it_should_be():
    mesh = extract_mesh(lambda x: ball(x, (0.05, 0.1, -0.02)), BOX, CONFIG, 0.6)
    assert mesh.is_watertight
    assert len(mesh.faces) <= 4000
    assert abs(mesh.volume / (4 / 3 * np.pi * 0.3**3) - 1) < 0.02  # positive: faces look outward
    distance = np.linalg.norm(mesh.vertices - [0.05, 0.1, -0.02], axis=1)
    assert np.abs(distance - 0.3).max() < 0.003


def test_axes_are_not_exchanged():
    sizes = torch.tensor([0.4, 0.25, 0.1])
    mesh = extract_mesh(lambda x: (x.abs() - sizes).amax(dim=-1), BOX, CONFIG, 0.6)
    np.testing.assert_allclose(mesh.bounds[1], sizes.numpy(), atol=0.01)


def same(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    shapes = len(a[0]) == len(b[0]) and len(a[1]) == len(b[1])
    distance, which = cKDTree(b[0]).query(a[0])
    return shapes and distance.max() < 1e-3 * STEP and len(np.unique(which)) == len(b[0])


@pytest.mark.parametrize("field", [ball, wire, shells])
def test_sparse_reading_gives_the_dense_surface(field):
    read = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        read.append(len(x))
        return field(x)

    sparse = isosurface(counted, BOX, STEP, 3)
    cost = sum(read)
    read.clear()
    dense = isosurface(counted, BOX, STEP, 1)
    assert len(dense[1]) > 1000
    assert same(sparse, dense)
    assert field is shells or cost < 0.3 * np.prod(np.ceil(0.9 / STEP) + np.ones(3))


def test_a_part_that_the_coarse_pass_sees_once_is_followed_to_its_end():
    # Twenty times too steep for a distance, it is small nowhere near the wire: only the ball on it gives it away.
    def lollipop(x: torch.Tensor) -> torch.Tensor:
        return 20 * torch.minimum(wire(x), ball(x, (0.31, 0, 0.019), 0.06))

    sparse, dense = (isosurface(lollipop, BOX, STEP, factor) for factor in (3, 1))
    assert dense[0][:, 0].min() < -0.3  # the far end of the ring
    assert same(sparse, dense)
    alone = isosurface(lambda x: 20 * wire(x), BOX, STEP, 3)
    assert len(alone[1]) == 0  # what no coarse node sees is not there


def test_slabs_and_batches_change_nothing(monkeypatch):
    whole = isosurface(shells, BOX, STEP, 3)
    monkeypatch.setattr(surfaces, "_SLAB", 1 << 15)
    monkeypatch.setattr(surfaces, "_BATCH", 1 << 14)
    pieces = isosurface(shells, BOX, STEP, 3)
    assert same(pieces, whole)
    assert trimesh.Trimesh(*pieces, process=False).is_watertight


@pytest.mark.extras
@pytest.mark.parametrize("field", [ball, wire])
def test_both_kernels_give_one_surface(field, monkeypatch):
    pytest.importorskip("mcubes")
    monkeypatch.setattr(surfaces, "_SLAB", 1 << 16)  # several slabs, which have to be welded
    ours, theirs = (isosurface(field, BOX, STEP, 3, kernel) for kernel in ("skimage", "mcubes"))
    assert len(ours[1]) > 1000
    assert same(ours, theirs)
    meshes = [trimesh.Trimesh(*surface, process=False) for surface in (ours, theirs)]
    assert all(mesh.is_watertight and mesh.is_winding_consistent for mesh in meshes)
    assert meshes[0].volume == pytest.approx(meshes[1].volume, rel=1e-4)


@pytest.mark.extras
def test_pymcubes_closes_ambiguous_cells_too():
    pytest.importorskip("mcubes")
    ours, theirs = (
        trimesh.Trimesh(*isosurface(shells, BOX, STEP, 3, kernel), process=False) for kernel in ("skimage", "mcubes")
    )
    assert theirs.is_watertight
    assert theirs.volume == pytest.approx(ours.volume, rel=0.01)


def test_a_kernel_that_cannot_work_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(compat, "has", lambda package: False)
    for kernel, message in (
        ("mcubes", "extract.kernel 'mcubes' needs PyMCubes: pip install 'nova3d[mcubes]', or use skimage"),
        ("lewiner", "extract.kernel 'lewiner' is none of skimage, mcubes"),
    ):
        with pytest.raises(InputError) as refused:
            isosurface(ball, BOX, STEP, 3, kernel)
        assert str(refused.value) == message


def test_specks_and_bubbles_go_and_main_parts_stay():
    def scene(x: torch.Tensor) -> torch.Tensor:
        two = torch.minimum(ball(x, (-0.2, 0, 0), 0.17), ball(x, (0.2, 0, 0), 0.15))
        speck = ball(x, (0, 0.4, 0), 0.03)
        bubble = ball(x, (-0.2, 0, 0), 0.07)
        return torch.maximum(torch.minimum(two, speck), -bubble)

    mesh = extract_mesh(scene, BOX, CONFIG, 0.6)
    assert mesh.body_count == 2
    assert mesh.vertices[:, 1].max() < 0.2
    expected = 4 / 3 * np.pi * (0.17**3 + 0.15**3)  # the bubble, 17 % of the largest part's area, is filled
    assert abs(mesh.volume / expected - 1) < 0.03


def test_small_parts_stay_only_where_so_many_are_asked_for():
    balls = [trimesh.creation.icosphere(2, radius) for radius in (0.3, 0.02, 0.01)]
    for place, one in enumerate(balls):
        one.apply_translation([0.5 * place, 0, 0])
    mesh = trimesh.util.concatenate(balls)
    for parts in (1, 2, 3, 4):
        assert clean(mesh, 0.01, least_parts=parts).body_count == min(parts, 3)
    assert clean(mesh, 0.004).body_count == 2


def test_a_crumb_that_decimation_pinches_off_goes(monkeypatch):
    """Two balls that the picture shows apart; decimation leaves a third, smaller one."""

    def scene(x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(ball(x, (-0.2, 0, 0), 0.2), ball(x, (0.3, 0, 0), 0.03))

    def pinching(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
        crumb = trimesh.creation.icosphere(1, 0.01)
        crumb.apply_translation([0, 0.4, 0])
        return trimesh.util.concatenate([mesh, crumb])

    def cells_at(points: np.ndarray) -> np.ndarray:
        return (np.floor(points[:, 0] / STEP) * 1000 + np.floor(points[:, 1] / STEP)).astype(int)

    monkeypatch.setattr(surfaces, "decimate", pinching)
    mesh = extract_mesh(scene, BOX, CONFIG, 0.6, cells_at, parts=2)
    assert mesh.body_count == 2
    assert mesh.bounds[1] == pytest.approx([0.33, 0.2, 0.2], abs=0.01)


def test_a_surface_cut_by_the_box_is_closed():
    mesh = extract_mesh(lambda x: x[:, 0], BOX, CONFIG, 0.6)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_no_surface_is_an_input_error():
    with pytest.raises(InputError, match="no surface"):
        extract_mesh(lambda x: torch.ones(len(x)), BOX, CONFIG, 0.6)


def test_health_of_known_shapes():
    ring = health(trimesh.creation.torus(0.3, 0.1))
    assert ring["watertight"]
    assert (ring["genus"], ring["euler"], ring["components"], ring["degenerate_faces"]) == (1, 0, 1, 0)
    assert ring["volume"] == pytest.approx(2 * np.pi**2 * 0.3 * 0.1**2, rel=0.05)
    assert ring["area"] == pytest.approx(4 * np.pi**2 * 0.3 * 0.1, rel=0.05)

    box = trimesh.creation.box()
    two = trimesh.util.concatenate([box, box.copy().apply_translation([2, 0, 0])])
    assert [health(two)[k] for k in ("genus", "euler", "components", "faces")] == [0, 4, 2, 24]
    opened = health(trimesh.Trimesh(box.vertices, box.faces[1:], process=False))
    assert not opened["watertight"]
    assert opened["boundary_edges"] == 3
    assert "genus" not in opened

    fan = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4], [0, 0, 1]])
    crossed = health(trimesh.Trimesh(np.random.default_rng(0).normal(size=(5, 3)), fan, process=False))
    assert crossed["non_manifold_edges"] == 1
    assert crossed["degenerate_faces"] == 1
