import numpy as np
import pytest
import trimesh

from nova3d.errors import InputError
from nova3d.evaluation import chamfer, f_score, load_mesh, normal_consistency, volume_iou
from nova3d.evaluation.mesh_metrics import (
    SurfaceMatch,
    _lattice,
    is_closed,
    match_points,
    match_surfaces,
    moved,
    nearest,
    sample_surface,
)
from nova3d.evaluation.mesh_scores import MeshReference, score_meshes
from nova3d.evaluation.protocols import MeshRules

SAMPLES = 4000


def plane(height: float) -> trimesh.Trimesh:
    """A 2 x 2 square at y = height; its longest side is 2, so distances are halved."""
    corners = [[-1, height, -1], [1, height, -1], [1, height, 1], [-1, height, 1]]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


def box(low: list[float], high: list[float]) -> trimesh.Trimesh:
    return trimesh.creation.box(bounds=[low, high])


def hook() -> trimesh.Trimesh:
    """A closed shape that no mirror or rotation maps to itself."""
    return trimesh.util.concatenate(
        [box([0, 0, 0], [1, 0.2, 0.2]), box([0, 0, 0], [0.2, 0.6, 0.2]), box([0.8, 0, 0], [1, 0.2, 0.5])]
    )


def test_chamfer_of_parallel_planes_is_their_distance_in_longest_sides():
    assert chamfer(plane(0.5), plane(0.0), SAMPLES) == pytest.approx(0.25, rel=0.01)


def test_chamfer_of_concentric_spheres_is_the_difference_of_radii():
    inner, outer = (trimesh.creation.icosphere(4, radius) for radius in (0.8, 1.0))
    assert chamfer(inner, outer, SAMPLES) == pytest.approx(0.1, rel=0.03)  # diameter 2 -> 1


def test_chamfer_does_not_depend_on_the_unit_nor_on_the_tessellation():
    inner, outer = (trimesh.creation.icosphere(3, radius) for radius in (0.8, 1.0))
    value = chamfer(inner, outer, SAMPLES)
    scaled = [mesh.copy().apply_scale(1000).apply_translation([5, 6, 7]) for mesh in (inner, outer)]
    assert chamfer(*scaled, SAMPLES) == pytest.approx(value, rel=1e-4)
    lopsided = inner.subdivide(face_index=np.flatnonzero(inner.triangles_center[:, 0] > 0))
    assert chamfer(lopsided, outer, SAMPLES) == pytest.approx(value, rel=0.01)


def test_same_mesh_scores_the_sampling_limit_and_is_repeatable():
    mesh = trimesh.creation.icosphere(3, 0.5)
    limit = chamfer(mesh, mesh, SAMPLES)
    assert 0 < limit < np.sqrt(mesh.area / SAMPLES)
    assert chamfer(mesh, mesh, SAMPLES) == limit


def test_f_score_is_the_harmonic_mean_of_precision_and_recall():
    half = trimesh.Trimesh([[-1, 0, -1], [0, 0, -1], [0, 0, 1], [-1, 0, 1]], [[0, 1, 2], [0, 2, 3]], process=False)
    # all of the half plane lies on the plane (precision 1); half of the plane, and a rim of 0.02 of 1, is near it
    assert f_score(half, plane(0.0), 0.02, SAMPLES) == pytest.approx(2 * 0.52 / 1.52, abs=0.02)
    assert f_score(plane(0.5), plane(0.0), 0.2, SAMPLES) == 0.0
    assert f_score(plane(0.5), plane(0.0), 0.3, SAMPLES) == 1.0


def test_normal_consistency_is_the_cosine_and_ignores_winding():
    tilted = plane(0.0).apply_transform(trimesh.transformations.rotation_matrix(np.radians(30), [1, 0, 0]))
    assert normal_consistency(tilted, plane(0.0), SAMPLES) == pytest.approx(np.cos(np.radians(30)), abs=1e-6)
    flipped = plane(0.0)
    flipped.invert()
    assert normal_consistency(flipped, plane(0.0), SAMPLES) == pytest.approx(1.0)


def test_iou_of_two_boxes():
    a, b = box([0, 0, 0], [1, 1, 1]), box([0.5, 0, 0], [1.5, 1, 1])
    assert volume_iou(a, b, 96) == pytest.approx(1 / 3, abs=0.02)
    assert volume_iou(a, a, 96) == 1.0


def test_iou_counts_an_open_crack_as_closed_and_a_wide_hole_as_drained():
    solid = box([0, 0, 0], [1, 1, 1])
    soup = trimesh.Trimesh(*_unwelded(solid, gap=0.002), process=False)
    assert not is_closed(soup)
    assert volume_iou(soup, solid, 64) > 0.9
    lidless = solid.copy()
    lidless.update_faces(solid.face_normals[:, 1] < 0.5)
    assert volume_iou(lidless, solid, 64) < 0.2


def test_iou_ignores_inner_surfaces_and_winding():
    solid = box([0, 0, 0], [1, 1, 1])
    hollow = trimesh.util.concatenate([solid, box([0.3] * 3, [0.6] * 3)])
    flipped = solid.copy()
    flipped.invert()
    assert volume_iou(hollow, solid, 48) == 1.0
    assert volume_iou(flipped, solid, 48) == 1.0


def test_rotated_box_does_not_leak():
    solid = box([-0.5] * 3, [0.5] * 3)
    turned = solid.copy().apply_transform(trimesh.transformations.rotation_matrix(0.6, [1, 2, 3]))
    assert volume_iou(turned, turned.convex_hull.subdivide_loop(0), 64) == 1.0
    grid_volume = volume_iou(turned, box([-3] * 3, [3] * 3), 120)  # one voxel is 0.05
    assert grid_volume * 216 == pytest.approx(1.0, abs=0.25)  # the whole surface voxel counts: a little over 1


def test_a_prediction_of_absurd_size_scores_badly_and_does_not_exhaust_memory():
    assert volume_iou(box([-500] * 3, [500] * 3), box([0, 0, 0], [1, 1, 1]), 64) < 0.001


def test_a_mirrored_asymmetric_mesh_scores_worse_everywhere():
    reference = hook()
    mirrored = reference.copy().apply_transform(np.diag([-1.0, 1, 1, 1])).apply_translation([1, 0, 0])
    assert np.allclose(mirrored.bounds, reference.bounds)
    right, wrong = (match_surfaces(mesh, reference, SAMPLES) for mesh in (reference, mirrored))
    assert wrong.chamfer() > 3 * right.chamfer()
    assert wrong.f_score(0.02) < right.f_score(0.02) - 0.2
    assert wrong.normal_consistency() < right.normal_consistency()
    assert volume_iou(mirrored, reference, 64) < 0.7


def test_lattice_stays_within_half_a_voxel_of_every_surface_point():
    triangle = np.array([[[0, 0, 0], [7.3, 0, 0], [-3, 1.1, 0.4]]])  # obtuse and thin
    lattice = np.concatenate(list(_lattice(triangle, 0.8)))
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], 2000)
    points = weights @ triangle[0]
    distance = np.linalg.norm(points[:, None] - lattice[None], axis=-1).min(axis=1)
    assert distance.max() < 0.5


def test_seams_do_not_open_a_mesh():
    solid = box([0, 0, 0], [1, 1, 1])
    assert is_closed(trimesh.Trimesh(*_unwelded(solid, gap=0.0), process=False))


def test_load_mesh_applies_transforms_and_keeps_the_file(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box([0, 0, 0], [1, 1, 1]), transform=trimesh.transformations.translation_matrix([2, 0, 0]))
    scene.export(tmp_path / "mesh.glb")
    assert np.allclose(load_mesh(tmp_path / "mesh.glb").bounds, [[2, 0, 0], [3, 1, 1]])


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"not a mesh", "cannot be read")])
def test_load_mesh_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "mesh.glb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_mesh(path)


def test_an_empty_mesh_is_refused():
    empty = trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False)
    with pytest.raises(InputError, match="no surface"):
        chamfer(empty, hook(), 10)
    with pytest.raises(InputError, match="no surface"):
        volume_iou(hook(), empty, 16)


def _unwelded(mesh: trimesh.Trimesh, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """The faces, each shrunk towards its middle by `gap` of its size, sharing no vertex."""
    triangles = mesh.triangles
    triangles = triangles + gap * (triangles.mean(axis=1, keepdims=True) - triangles)
    return triangles.reshape(-1, 3), np.arange(len(triangles) * 3).reshape(-1, 3)


def test_moved_samples_are_samples_of_the_moved_mesh():
    transform = trimesh.transformations.rotation_matrix(0.4, [1, 2, 3]) @ np.diag([-3.0, 3, 3, 1])
    transform[:3, 3] = [1, 2, 3]
    surface = sample_surface(hook(), 50, 0).moved(transform)
    placed = moved(hook(), transform)
    assert placed.volume == pytest.approx(27 * hook().volume)  # a mirror leaves the faces turned outwards
    _, distance, face = trimesh.proximity.closest_point_naive(placed, surface.points)
    assert distance.max() < 1e-9
    assert np.linalg.norm(surface.normals, axis=1) == pytest.approx(1.0)
    assert (surface.normals * placed.face_normals[face]).sum(axis=1) == pytest.approx(1.0, abs=1e-6)


def test_z_order_moves_points_with_their_normals_and_brings_neighbours_together():
    surface = sample_surface(trimesh.creation.icosphere(subdivisions=3), 2000, 0)
    ordered = surface.in_z_order()
    index = np.lexsort(surface.points.T), np.lexsort(ordered.points.T)
    assert (surface.points[index[0]] == ordered.points[index[1]]).all()
    assert (surface.normals[index[0]] == ordered.normals[index[1]]).all()
    steps = [np.linalg.norm(np.diff(points, axis=0), axis=1).mean() for points in (surface.points, ordered.points)]
    assert steps[1] < steps[0] / 8
    target = sample_surface(trimesh.creation.box(), 2000, 1)
    assert match_points(ordered, target).chamfer() == pytest.approx(match_points(surface, target).chamfer(), rel=1e-12)


def test_nearest_is_the_brute_force_one():
    generator = np.random.default_rng(0)
    points, queries = generator.random((300, 3)), generator.random((50, 3)) + np.array([2, 0, 0])
    every = np.linalg.norm(queries[:, None] - points[None], axis=-1)
    distance, index = nearest(queries, points)
    assert distance == pytest.approx(every.min(axis=1)) and (index == every.argmin(axis=1)).all()


def test_mirror_margin_is_the_distance_of_the_mirrored_mesh_minus_its_own():
    rules = MeshRules(surface_samples=SAMPLES, ious=("iou16_flood",))
    ref = MeshReference.prepare(hook(), rules, 0)
    mirrored = hook().apply_transform(np.diag([-1.0, 1, 1, 1])).apply_translation([1, 0, 0])
    right, wrong = score_meshes(hook(), ref, rules)[0], score_meshes(mirrored, ref, rules)[0]
    assert right["mirror_margin"] > 0.03 > -0.03 > wrong["mirror_margin"]
    assert right["mirror_margin"] == pytest.approx(wrong["cd_l2_area4k"] - right["cd_l2_area4k"], abs=1e-3)


def test_alignments_that_move_nothing_score_what_the_known_frame_does():
    rules = MeshRules(alignments=("known", "bbox"), surface_samples=SAMPLES, ious=("iou16_flood",))
    ref = MeshReference.prepare(hook(), rules, 0)
    row = score_meshes(hook(), ref, rules)[0]
    aligned = {name for name in row if name.endswith("_bbox")}
    assert len(aligned) == 5 and all(row[name] == row[name.removesuffix("_bbox")] for name in aligned)
    smaller = score_meshes(hook().apply_scale(0.9), ref, rules)[0]
    assert smaller["cd_l2_area4k_bbox"] < smaller["cd_l2_area4k"] / 2


def test_a_match_among_some_samples_averages_over_these():
    distances, cosines = np.array([0.1, 0.2, 0.6]), np.array([1.0, 0.5, 0.0])
    match = SurfaceMatch(distances, distances * 2, cosines, cosines / 2)
    some = match.among(np.array([True, True, False]), np.array([False, False, True]))
    assert some.chamfer() == pytest.approx((0.15 + 1.2) / 2)
    assert some.normal_consistency() == pytest.approx((0.75 + 0.0) / 2)
