import torch

from nova3d.metrics.poses import pose_errors


def test_pose_errors_are_right_for_small_and_large_angles():
    true = torch.eye(4).expand(4, 4, 4).clone()
    found = true.clone()
    angles = torch.tensor([0.0, 1e-3, 1.0, 179.0])
    sin, cos = angles.deg2rad().sin(), angles.deg2rad().cos()
    found[:, 0, 0], found[:, 0, 2], found[:, 2, 0], found[:, 2, 2] = cos, sin, -sin, cos
    torch.testing.assert_close(pose_errors(found, true).float(), angles, rtol=1e-3, atol=1e-6)
