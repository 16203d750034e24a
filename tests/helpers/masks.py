"""Silhouettes whose visual hull is known."""

import torch

from nova3d.cameras import Cameras


def discs(radius: float, cameras: Cameras, shift: float = 0.0) -> torch.Tensor:
    """[v,h,w] silhouettes of a ball of `radius` in orthographic cameras, moved to the right by `shift` world units."""
    origins, directions = cameras.rays()
    closest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    right = cameras.c2w[:, None, None, :3, 0]
    return ((closest - shift * right).norm(dim=-1) < radius).float()
