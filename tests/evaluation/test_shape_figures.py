import math

import numpy as np
import pytest
import trimesh

from nova3d.cameras import ORTHO_SPAN, preset
from nova3d.evaluation.baselines import cut_out_mesh, speck
from nova3d.evaluation.shape_figures import THIN, count_solids, front_view, shape_figures
from nova3d.inflate import inflated_mesh
from nova3d.metrics import INPUT_SIZE
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize

PIXEL = ORTHO_SPAN / INPUT_SIZE


@pytest.fixture(scope="module")
def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(5, 0.5)


def figures(mesh: trimesh.Trimesh, ref: trimesh.Trimesh) -> dict[str, float]:
    return shape_figures(mesh, ref, front_view(ref))


def test_a_ball_has_the_figures_of_a_ball(ball):
    front = front_view(ball)
    assert float(front.mask.sum()) * PIXEL**2 == pytest.approx(math.pi / 4, rel=2e-3)
    assert float(front.thickness.max()) == pytest.approx(1.0, abs=2e-3)
    found = figures(ball, ball)
    # A chord shorter than THIN lies within a rim of width d with (THIN / 2)^2 = r^2 - (r - d)^2.
    rim = 0.5 - math.sqrt(0.25 - (THIN / 2) ** 2)
    assert found["thin_share"] == pytest.approx(1 - (1 - rim / 0.5) ** 2, abs=3e-3)
    depth = 2.5 * PIXEL - PIXEL / 2  # the outline is half a pixel inside the first pixel outside
    assert found["rim_angle_deg"] == pytest.approx(math.degrees(math.asin(1 - depth / 0.5)), abs=2)
    assert (found["input_iou"], found["side_width"], found["parts"]) == (1.0, 1.0, 1.0)


def test_a_cut_out_and_an_inflated_outline_are_told_apart(ball):
    picture = rasterize(from_trimesh([ball]), preset("ortho16", 256)[0], supersample=1, light="flat").rgba[0]
    slab = figures(cut_out_mesh(picture, ORTHO_SPAN / 256), ball)
    blown = figures(inflated_mesh(picture, ORTHO_SPAN / 256), ball)
    assert min(slab["input_iou"], blown["input_iou"]) > 0.98
    assert slab["rim_angle_deg"] == pytest.approx(0, abs=0.1) and blown["rim_angle_deg"] > 60
    assert slab["side_width"] == pytest.approx(0.05, rel=0.01) and blown["side_width"] > 0.9
    assert slab["thin_share"] == 0


def test_a_shell_is_thin_although_it_is_wide(ball):
    inner = trimesh.Trimesh(ball.vertices * 0.99, ball.faces[:, ::-1], process=False)
    shell = trimesh.util.concatenate([ball, inner])
    assert figures(shell, ball)["thin_share"] > 0.5  # the wall of 0.005, seen obliquely towards the rim
    twice = trimesh.util.concatenate([ball, ball])
    assert figures(twice, ball)["thin_share"] == pytest.approx(figures(ball, ball)["thin_share"], abs=1e-3)


def test_parts_are_those_of_the_solid(ball):
    apart = [trimesh.creation.box([0.2] * 3).apply_translation([x, 0, 0]) for x in (-0.4, 0, 0.4)]
    assert count_solids(trimesh.util.concatenate(apart)) == 3
    assert count_solids(trimesh.util.concatenate([ball, trimesh.creation.box([0.2] * 3)])) == 1  # one within the other
    split = trimesh.Trimesh(ball.vertices[ball.faces].reshape(-1, 3), np.arange(3 * len(ball.faces)).reshape(-1, 3))
    assert count_solids(split) == 1  # a soup of triangles


def test_a_failed_prediction_has_figures_too(ball):
    found = figures(speck(), ball)
    assert found["input_iou"] < 1e-4 and found["thin_share"] == 1.0
    assert found["side_width"] == pytest.approx(1e-3) and found["parts"] == 1
