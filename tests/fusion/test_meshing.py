import numpy as np
import pytest
import torch
import trimesh

from nova3d.errors import InputError
from nova3d.fusion import meshing
from nova3d.fusion.config import ExtractConfig

BOX = torch.tensor([[-0.45] * 3, [0.45] * 3])
CONFIG = ExtractConfig(resolution=96, coarse=32, faces=4000)


def ball(x: torch.Tensor, centre=(0.0, 0.0, 0.0), radius: float = 0.3) -> torch.Tensor:
    return (x - torch.tensor(centre)).norm(dim=-1) - radius


def test_sphere_is_closed_outward_and_where_it_should_be():
    mesh = meshing.extract(lambda x: ball(x, (0.05, 0.1, -0.02)), BOX, CONFIG, 0.6)
    assert mesh.is_watertight
    assert len(mesh.faces) <= 4000
    assert abs(mesh.volume / (4 / 3 * np.pi * 0.3**3) - 1) < 0.02  # positive: faces look outward
    distance = np.linalg.norm(mesh.vertices - [0.05, 0.1, -0.02], axis=1)
    assert np.abs(distance - 0.3).max() < 0.003
    assert meshing.health(mesh)["components"] == 1


def test_axes_are_not_exchanged():
    sizes = torch.tensor([0.4, 0.25, 0.1])
    mesh = meshing.extract(lambda x: (x.abs() - sizes).amax(dim=-1), BOX, CONFIG, 0.6)
    np.testing.assert_allclose(mesh.bounds[1], sizes.numpy(), atol=0.01)


def test_reading_near_the_surface_only_changes_nothing():
    near, *_ = meshing.sample_volume(ball, BOX, CONFIG, 0.6)
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return ball(x)

    meshing.sample_volume(counted, BOX, CONFIG, 0.6)
    everywhere, origin, step = meshing.sample_volume(ball, BOX, ExtractConfig(resolution=96, coarse=96), 0.6)
    assert sum(calls) < 0.6 * everywhere.size
    small = trimesh.voxel.ops.matrix_to_marching_cubes(near < 0)
    large = trimesh.voxel.ops.matrix_to_marching_cubes(everywhere < 0)
    assert abs(small.volume - large.volume) < 0.01 * large.volume
    assert step == pytest.approx(1.2 / 96)
    assert (origin < -0.45).all()


def test_specks_and_bubbles_go_and_main_parts_stay():
    def scene(x: torch.Tensor) -> torch.Tensor:
        two = torch.minimum(ball(x, (-0.2, 0, 0), 0.17), ball(x, (0.2, 0, 0), 0.15))
        speck = ball(x, (0, 0.4, 0), 0.03)
        bubble = ball(x, (-0.2, 0, 0), 0.05)
        return torch.maximum(torch.minimum(two, speck), -bubble)

    mesh = meshing.extract(scene, BOX, CONFIG, 0.6)
    assert mesh.body_count == 2
    assert mesh.vertices[:, 1].max() < 0.2
    expected = 4 / 3 * np.pi * (0.17**3 + 0.15**3)
    assert abs(mesh.volume / expected - 1) < 0.03


def test_a_surface_cut_by_the_box_is_closed():
    mesh = meshing.extract(lambda x: x[:, 0], BOX, CONFIG, 0.6)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_no_surface_is_an_input_error():
    with pytest.raises(InputError, match="no surface"):
        meshing.extract(lambda x: torch.ones(len(x)), BOX, CONFIG, 0.6)
