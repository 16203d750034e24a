import numpy as np
import pytest
import trimesh

from nova3d.errors import InputError
from nova3d.evaluation import chamfer
from nova3d.evaluation.mesh_metrics import SurfaceSamples, moved, to_unit
from nova3d.evaluation.mesh_scores import MeshReference, align, icp, units_fault
from nova3d.evaluation.protocols import MESH_REGISTRATIONS, MeshRules


def hook() -> trimesh.Trimesh:
    """A closed shape that no mirror or rotation maps to itself, in the unit frame."""
    parts = [([0, 0, 0], [1, 0.2, 0.2]), ([0, 0, 0], [0.2, 0.6, 0.2]), ([0.8, 0, 0], [1, 0.2, 0.5])]
    mesh = trimesh.util.concatenate([trimesh.creation.box(bounds=bounds) for bounds in parts])
    return moved(mesh, to_unit(mesh))


def bare(points: np.ndarray) -> SurfaceSamples:
    return SurfaceSamples(points, np.zeros_like(points))


def similarity(yaw_deg: float, scale: float, shift: list[float]) -> np.ndarray:
    transform = trimesh.transformations.rotation_matrix(np.radians(yaw_deg), [0, 1, 0])
    transform[:3, :3] *= scale
    transform[:3, 3] = shift
    return transform


def left_over(transform: np.ndarray, mesh: trimesh.Trimesh, ref: trimesh.Trimesh) -> float:
    """The farthest that a vertex of `mesh`, a moved copy of `ref`, is from where it came from."""
    return float(np.linalg.norm(moved(mesh, transform).vertices - ref.vertices, axis=1).max())


def test_each_alignment_undoes_what_it_may_and_no_more():
    ref = hook()
    boxed, turned, tilted = (
        moved(ref, similarity(*how))
        for how in ((0, 1.3, [0.2, 0, 0.1]), (97, 1.0, [0.1, 0, 0]), (97, 0.8, [0.2, -0.1, 0]))
    )
    found = {name: align(mesh, ref, MESH_REGISTRATIONS) for name, mesh in (("b", boxed), ("t", turned), ("s", tilted))}
    assert all(np.array_equal(transforms["known"], np.eye(4)) for transforms in found.values())
    assert left_over(found["b"]["bbox"], boxed, ref) < 1e-9
    assert left_over(found["t"]["bbox"], turned, ref) > 0.3
    assert left_over(found["t"]["bbox_yaw"], turned, ref) < 0.2  # 97 degrees is no multiple of 15
    assert left_over(found["s"]["bbox_yaw_icp_scale"], tilted, ref) < 0.01
    scale = np.cbrt(np.linalg.det(found["s"]["bbox_yaw_icp"][:3, :3]) / np.linalg.det(found["s"]["bbox_yaw"][:3, :3]))
    assert scale == pytest.approx(1.0)  # rigid: ICP without scale keeps the box's


def test_no_alignment_mirrors():
    ref = hook()
    mirrored = moved(ref, np.diag([-1.0, 1, 1, 1]))
    for name, transform in align(mirrored, ref, MESH_REGISTRATIONS).items():
        assert np.linalg.det(transform[:3, :3]) > 0, name
        assert chamfer(moved(mirrored, transform), ref, 3000) > 2 * chamfer(ref, ref, 3000), name


def test_icp_never_reflects_even_where_that_would_fit_best():
    generator = np.random.default_rng(0)
    flat = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0), [0.0]), axis=-1).reshape(-1, 3) / 6
    relief = flat + generator.uniform(-0.03, 0.03, (36, 1)) * [0, 0, 1]
    transform = icp(relief, bare(relief * [1, 1, -1]), np.eye(4), scale=False)
    assert np.linalg.det(transform[:3, :3]) == pytest.approx(1.0)


def test_icp_with_scale_does_not_leave_a_small_body_inside_a_large_one():
    axis = np.linspace(-0.5, 0.5, 9)
    solid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    # every point of the small one has a near pair already
    transform = icp(solid * 0.5, bare(solid), np.eye(4), scale=True)
    assert np.cbrt(np.linalg.det(transform[:3, :3])) > 1.5


def test_only_what_is_wanted_is_found_and_names_are_checked():
    assert list(align(hook(), hook(), ["bbox"])) == ["bbox"]
    with pytest.raises(InputError, match="alignment 'yaw' is not one of known, bbox"):
        align(hook(), hook(), ["yaw"])


def test_a_mesh_without_surface_is_refused():
    with pytest.raises(InputError, match="no surface"):
        align(trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False), hook(), ["bbox"])


def test_a_reference_in_other_units_is_noticed():
    rules = MeshRules(points=("area",), surface_samples=100, ious=(), mirror_margin=False)
    millimetres = moved(hook(), similarity(0, 1000.0, [0, 0, 0]))
    ref = MeshReference.prepare(millimetres, rules, 0)
    assert "0.001 times as long as the reference: are they in different units" in units_fault(hook(), ref, rules)
    assert units_fault(moved(millimetres, similarity(30, 2.0, [50, 0, 0])), ref, rules) == ""
    unit = MeshRules(points=("area",), surface_samples=100, ious=(), mirror_margin=False, frame="unit")
    assert units_fault(hook(), ref, unit) == "" and "1e+03 times" in units_fault(millimetres, ref, unit)
