import math
from dataclasses import replace

import pytest
import torch

from nova3d.cameras import orbit
from nova3d.experiments.fusion_inputs import perturb_poses
from nova3d.fusion.config import PoseConfig
from nova3d.fusion.optimize import fit
from nova3d.fusion.poses import PoseRefiner, rotation_matrix
from nova3d.metrics.poses import pose_errors


def refiner(model: str = "orthographic", **changes) -> PoseRefiner:
    poses = PoseRefiner(orbit(6, size=16, model=model), PoseConfig(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        poses.omega.copy_(torch.randn(6, 3, generator=generator) * 0.05)
        poses.tau.copy_(torch.randn(6, 3, generator=generator) * 0.02)
    return poses


def test_rotation_is_a_rotation_and_smooth_at_zero():
    omega = torch.randn(10, 3, dtype=torch.float64)
    rotation = rotation_matrix(omega)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(10, 3, 3))
    quarter = rotation_matrix(torch.tensor([0.0, math.pi / 2, 0.0]))
    torch.testing.assert_close(quarter @ torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(rotation_matrix(omega), torch.linalg.matrix_exp(torch.stack([
        torch.linalg.cross(o.expand(3, 3), torch.eye(3, dtype=torch.float64)).T for o in omega])))  # fmt: skip
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_matrix, (zero,))


@pytest.mark.parametrize("angle", [0.0, 1e-6, 9.9e-4, 1.1e-3, 0.3, 3.0])  # the series holds below 1e-3
def test_rotation_is_the_matrix_exponential(angle):
    omega = angle * torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    x, y, z = omega.tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation_matrix(omega), torch.matrix_exp(skew), atol=3e-15, rtol=0)


def test_origins_and_directions_both_move_and_cameras_agree():
    for model in ("orthographic", "perspective"):
        poses = refiner(model)
        cameras = orbit(6, size=16, model=model)
        origins, directions = cameras.rays()
        view = torch.arange(6)[:, None, None].expand(6, 16, 16)
        moved = poses(origins.reshape(-1, 3), directions.reshape(-1, 3), view.reshape(-1))
        expected = poses.cameras(cameras).rays()
        for ours, theirs in zip(moved, expected, strict=True):
            torch.testing.assert_close(ours, theirs.reshape(-1, 3), atol=1e-5, rtol=0)


def test_projection_fixes_the_frame():
    poses = refiner()
    poses.project()
    assert float(poses.omega[0].detach().abs().max()) == 0
    assert float(poses.tau[0].detach().abs().max()) == 0
    axis = torch.einsum("vij,vj->vi", rotation_matrix(poses.omega), poses.back)
    assert (poses.tau * axis).sum(-1).abs().max() < 1e-6  # unobservable
    assert (poses.tau[1:] @ poses.back[0]).mean().abs() < 1e-6  # the object may not slide
    before = poses.tau.detach().clone()
    poses.project()
    torch.testing.assert_close(poses.tau.detach(), before)


def test_perspective_keeps_motion_along_the_axis():
    poses = refiner("perspective")
    poses.project()
    assert (poses.tau[1:] * poses.back[1:]).sum(-1).abs().max() > 1e-3


def test_caps():
    poses = refiner(max_rotation_deg=1.0, max_translation=0.005)
    poses.project()
    deltas = poses.deltas()
    assert 0 < deltas["rotation_deg_max"] <= 1.0001
    assert 0 < deltas["translation_max"] <= 0.00501
    assert float(poses.prior().detach()) > 0


def test_starts_at_the_queried_poses():
    cameras = orbit(3, size=8)
    poses = PoseRefiner(cameras, PoseConfig())
    torch.testing.assert_close(poses.cameras(cameras).c2w, cameras.c2w, rtol=0, atol=0)
    vectors = torch.randn(3, 3)
    torch.testing.assert_close(poses.rotate(vectors, torch.arange(3)), vectors)


def test_view_0_is_exactly_where_it_was():
    cameras = orbit(6, size=16)
    poses = refiner()
    poses.project()
    moved = poses.cameras(cameras).c2w
    assert torch.equal(moved[0], cameras.c2w[0])
    assert not torch.equal(moved[1], cameras.c2w[1])
    origins, directions = (rays[0].reshape(-1, 3) for rays in cameras.rays())
    for ours, theirs in zip(poses(origins, directions, torch.zeros(256, dtype=torch.long)), (origins, directions),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


def test_prior_is_the_weighted_sum_of_the_motions_lengths():
    poses = refiner(prior_rotation=2.0, prior_translation=5.0)
    expected = 2 * poses.omega.norm(dim=-1).sum() + 5 * poses.tau.norm(dim=-1).sum()
    torch.testing.assert_close(poses.prior(), expected)
    # a length pulls alike however far a view has moved
    (pull,) = torch.autograd.grad(poses.prior(), poses.omega)
    torch.testing.assert_close(pull.norm(dim=-1), torch.full((6,), 2.0))


def test_prior_has_a_gradient_at_rest():
    poses = PoseRefiner(orbit(3, size=8), PoseConfig())
    poses.prior().backward()
    assert torch.equal(poses.omega.grad, torch.zeros(3, 3))
    assert torch.equal(poses.tau.grad, torch.zeros(3, 3))


def test_settling_takes_the_running_mean_of_the_steps():
    poses = PoseRefiner(orbit(4, size=8), PoseConfig(average=0.75))
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(2, 4, 3)
    for _ in range(5):
        with torch.no_grad():
            poses.omega.add_(torch.randn(4, 3, generator=generator) * 0.01)
            poses.tau.add_(torch.randn(4, 3, generator=generator) * 0.01)
        poses.project()
        expected = 0.75 * expected + 0.25 * torch.stack([poses.omega.detach(), poses.tau.detach()])
    last = poses.omega.detach().clone()
    poses.freeze()
    torch.testing.assert_close(torch.stack([poses.omega, poses.tau]).detach(), expected)
    assert not torch.allclose(poses.omega, last)
    assert float(poses.omega[0].detach().abs().max()) == 0


@pytest.mark.parametrize(("degrees", "mean", "largest"), [(0.0, 0.45, 0.9), (4.0, 2.0, 3.5)])
def test_wrong_poses_are_found_again_and_right_ones_stay(shapes, degrees, mean, largest):
    cameras = orbit(8, size=64)
    views = shapes.draw(shapes.letter_f(), cameras)
    config = shapes.tiny_config()
    config.optim.steps, config.conflict.mode = 200, "none"
    if degrees:
        config.encoding.levels, config.encoding.finest, config.encoding.start_levels = 3, 24, 3.0
        config.pose = replace(config.pose, lr=3e-3, start=0.02)
    state = fit(perturb_poses(views, degrees, 0.0, seed=0), config)
    errors = pose_errors(state.cameras.c2w, cameras.c2w)
    assert float(state.poses.omega.detach().abs().max()) > 0
    assert float(errors[1:].mean()) < mean
    assert float(errors.max()) < largest
    assert torch.equal(state.cameras.c2w[0], cameras.c2w[0])
