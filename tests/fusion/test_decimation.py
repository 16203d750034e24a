import numpy as np
import pytest
import trimesh

from nova3d.fusion.decimation import decimate, split_pinched_vertices
from nova3d.fusion.isosurface import health


def struts(seed: int = 0) -> trimesh.Trimesh:
    """A closed lattice of struts of one voxel: far too fine for its budget, so that collapses must pinch it."""
    solid = np.zeros((21, 21, 21), dtype=bool)
    on = np.arange(2, 20, 4)
    grid = np.isin(np.arange(21), on)
    for axis in range(3):
        bars = np.moveaxis(solid, axis, 0)
        bars[2:19] |= (grid[:, None] & grid[None])[None]
    mesh = trimesh.voxel.ops.matrix_to_marching_cubes(solid)
    noise = np.random.default_rng(seed).normal(scale=0.05, size=mesh.vertices.shape)
    return trimesh.Trimesh(mesh.vertices + noise, mesh.faces, process=False)


@pytest.mark.parametrize("faces", [3000, 2000])
def test_decimation_never_pinches_a_closed_mesh(faces):
    mesh = struts()
    assert mesh.is_watertight
    smaller = decimate(mesh, faces)
    report = health(smaller)
    assert report["watertight"], report
    assert report["non_manifold_edges"] == 0
    assert len(smaller.faces) <= faces
    assert smaller.volume > 0.5 * mesh.volume


def test_what_was_pinched_is_apart_when_vertices_are_welded_by_position():
    smaller = decimate(struts(), 2000)
    places, place = np.unique(np.asarray(smaller.vertices, np.float32), axis=0, return_inverse=True)
    assert len(places) == len(smaller.vertices)
    welded = trimesh.Trimesh(places, place.reshape(-1)[smaller.faces], process=False)
    assert welded.is_watertight and welded.is_winding_consistent


def test_health_welds_by_position():
    box = trimesh.creation.box()
    loose = trimesh.Trimesh(box.vertices[box.faces.reshape(-1)], np.arange(36).reshape(-1, 3), process=False)
    assert health(loose)["watertight"] and health(loose)["boundary_edges"] == 0
    touching = health(trimesh.Trimesh(*two_boxes("edge"), process=False))
    assert touching["watertight"] and touching["non_manifold_edges"] == 1
    opened = health(trimesh.Trimesh(loose.vertices, loose.faces[1:], process=False))
    assert not opened["watertight"] and opened["boundary_edges"] == 3
    turned = np.array(box.faces)
    turned[0] = turned[0, ::-1]
    assert not health(trimesh.Trimesh(box.vertices, turned, process=False))["watertight"]


def test_a_ball_stays_a_ball():
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    smaller = decimate(mesh, 1000)
    assert 900 < len(smaller.faces) <= 1000
    assert health(smaller)["genus"] == 0
    assert np.abs(np.linalg.norm(smaller.vertices, axis=1) - 0.4).max() < 0.003
    assert decimate(mesh, 10**6) is mesh


def test_an_open_mesh_is_decimated_as_it_is():
    mesh = trimesh.creation.icosphere(subdivisions=4)
    half = trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.triangles_center[:, 1] > 0], process=False)
    smaller = decimate(half, 500)
    assert len(smaller.faces) <= 500
    assert health(smaller)["boundary_edges"] > 0


def two_boxes(shared: str) -> tuple[np.ndarray, np.ndarray]:
    """Two cubes that share the vertices of one edge, or one vertex."""
    a, b = trimesh.creation.box(), trimesh.creation.box()
    b.apply_translation([1, 1, 0] if shared == "edge" else [1, 1, 1])
    vertices, index = np.unique(np.concatenate([a.vertices, b.vertices]), axis=0, return_inverse=True)
    return vertices, index.reshape(-1)[np.concatenate([a.faces, b.faces + 8])]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shared", "parts"), [("edge", 1), ("vertex", 2)])
def test_touching_solids_become_manifold(shared, parts, seed):
    vertices, faces = two_boxes(shared)
    order = np.random.default_rng(seed).permutation(len(vertices))  # the answer hangs on no numbering
    vertices, faces = vertices[order], np.argsort(order)[faces]
    faces = np.random.default_rng(seed).permutation(faces)
    report = health(trimesh.Trimesh(*split_pinched_vertices(vertices, faces), process=False))
    assert report["watertight"]
    assert report["components"] == parts  # along an edge the solid stays in one piece
    assert report["genus"] == 0
    assert report["volume"] == pytest.approx(2)


def test_unpinched_surfaces_keep_their_place():
    vertices, faces = two_boxes("edge")
    moved, _ = split_pinched_vertices(vertices, faces)
    middle = [[0.5, 0.5, 0.0]]  # of the shared edge, where a pair of neighbours gets a vertex of its own
    assert {tuple(v) for v in moved} <= {tuple(v) for v in np.concatenate([vertices, middle])}


def test_fins_and_collapsed_faces_go():
    box = trimesh.creation.box()
    vertices = np.concatenate([box.vertices, [[2.0, 0, 0]]])
    a, b = box.faces[0][:2]
    fin = [[a, b, 8], [b, a, 8], [a, a, b]]
    _, faces = split_pinched_vertices(vertices, np.concatenate([box.faces, fin]))
    assert len(faces) == 12


def test_an_open_surface_is_refused():
    box = trimesh.creation.box()
    with pytest.raises(ValueError, match="not closed"):
        split_pinched_vertices(np.asarray(box.vertices), np.asarray(box.faces)[1:])
