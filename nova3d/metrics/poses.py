"""Errors of camera poses."""

import torch
from torch import Tensor


def pose_errors(found: Tensor, true: Tensor) -> Tensor:
    """Angles between the rotations of cameras and the true ones.

    Args:
        found: [v,4,4] float, camera to world.
        true: [v,4,4] float, camera to world, in the same frame.

    Returns:
        [v] float64, degrees in [0,180].
    """
    relative = found[:, :3, :3].double() @ true[:, :3, :3].double().mT
    # atan2 of the sine and cosine: acos loses small angles
    sine = torch.stack(
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        dim=-1,
    ).norm(dim=-1)
    return torch.atan2(sine, relative.diagonal(dim1=1, dim2=2).sum(dim=-1) - 1).rad2deg()
