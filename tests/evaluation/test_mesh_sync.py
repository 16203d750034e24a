import math
import sys
import types

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import preset
from nova3d.evaluation import mesh_metrics
from nova3d.evaluation.mesh_metrics import mesh2sdf_iou, unproject, visible_chamfer, visible_points, voxel_means
from nova3d.evaluation.mesh_scores import MeshReference, score_meshes
from nova3d.evaluation.protocols import MeshRules

SYNC = MeshRules(
    frame="unit",
    points=("visible16",),
    f_score_thresholds=(),
    ious=("iou64_mesh2sdf", "iou32_flood"),
    mirror_margin=False,
)


def ball(radius: float) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius)


def test_unprojected_points_are_half_a_pixel_beside_where_they_were_drawn():
    cameras = preset("syncdreamer16", 64)[[0, 5]]
    target = torch.tensor([[0.1, -0.2, 0.15]])
    pixels, depth = cameras.project(target)
    row, column = int(pixels[1, 0, 1]), int(pixels[1, 0, 0])
    maps = torch.zeros(2, 64, 64)
    maps[1, row, column] = depth[1, 0]
    (point,) = unproject(maps, cameras)
    again, z = cameras.project(torch.from_numpy(point)[None].float())
    assert again[1, 0].tolist() == pytest.approx([column, row], abs=1e-3)
    assert float(z[1, 0]) == pytest.approx(float(depth[1, 0]), abs=1e-5)


def test_voxel_means_by_hand():
    points = np.array([[0.0, 0, 0], [0.004, 0, 0], [0.006, 0, 0], [0.1, 0, 0]])
    # cells start at -0.005: 0 and 0.004 share one, 0.006 is in the next
    assert voxel_means(points, 0.01).tolist() == [[0.002, 0, 0], [0.006, 0, 0], [0.1, 0, 0]]


def test_visible_points_lie_on_the_surface_and_skip_what_no_camera_sees():
    points = visible_points(ball(0.5), 128)
    radius = np.linalg.norm(points, axis=1)
    # half a pixel is 0.002 / 2 at this distance and size; a voxel's mean lies a little inside the ball
    assert abs(radius - 0.5).max() < 0.02
    assert points[:, 1].max() > 0.48  # the cameras look down from 30 degrees: they see the top
    inner = trimesh.util.concatenate([ball(0.5), ball(0.2)])
    assert len(visible_points(inner, 128)) == len(points)


def test_visible_chamfer_is_the_mean_of_both_directed_means():
    a, b = np.array([[0.0, 0, 0]]), np.array([[3.0, 4, 0], [0, 1, 0]])
    assert visible_chamfer(a, b) == (1 + (5 + 1) / 2) / 2


@pytest.mark.usefixtures("coarse_shapes")
def test_reference_is_normalised_and_the_prediction_is_not():
    ref = MeshReference.prepare(ball(7.0).apply_translation([3, 2, 1]), SYNC, 0)
    rules = MeshRules(**{**vars(SYNC), "ious": ("iou32_flood",)})
    right, missing = score_meshes(ball(0.5), ref, rules)
    shape = ["input_iou", "thin_share", "side_width", "rim_angle_deg", "parts"]
    assert missing == {} and list(right) == ["cd_l2_visible16_v001", "iou32_flood", "watertight", *shape]
    assert right["cd_l2_visible16_v001"] < 1e-4 and right["iou32_flood"] == 1.0
    small, _ = score_meshes(ball(0.4), ref, rules)
    assert small["cd_l2_visible16_v001"] == pytest.approx(0.1, abs=0.005)


def test_without_mesh2sdf_its_column_is_nan_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "mesh2sdf", None)
    rules = MeshRules(ious=SYNC.ious, surface_samples=100, mirror_margin=False)
    row, missing = score_meshes(ball(0.5), MeshReference.prepare(ball(0.5), rules, 0), rules)
    assert math.isnan(row["iou64_mesh2sdf"]) and row["iou32_flood"] == 1.0
    assert "pip install 'nova3d[mesh2sdf]'" in missing["iou64_mesh2sdf"]


def test_mesh2sdf_is_called_as_syncdreamer_calls_it(monkeypatch):
    calls = []

    def compute(vertices, faces, size, fix, return_mesh):
        calls.append((size, fix, return_mesh, faces.shape))
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
        return np.linalg.norm(grid, axis=-1) - np.linalg.norm(vertices, axis=1).max()

    monkeypatch.setitem(sys.modules, "mesh2sdf", types.SimpleNamespace(compute=compute))
    assert mesh2sdf_iou(ball(0.4), ball(0.5)) == pytest.approx(0.8**3, abs=0.02)
    assert calls[0] == (64, False, False, ball(0.4).faces.shape)


@pytest.mark.extras
def test_the_real_mesh2sdf_agrees_with_the_flood_on_closed_meshes():
    pytest.importorskip("mesh2sdf")
    assert mesh2sdf_iou(ball(0.4), ball(0.5)) == pytest.approx(0.8**3, abs=0.03)
    assert mesh_metrics.mesh2sdf_solid(ball(0.5)).sum() * (2 / 64) ** 3 == pytest.approx(math.pi / 6, rel=0.05)
