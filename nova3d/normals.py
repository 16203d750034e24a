"""Normal maps: the 8-bit codec and changes of frame.

A normal map holds unit vectors in the world frame of the input view (the front camera's frame), so that one surface
point has one colour in all views. Background is the zero vector, which encodes to mid-grey.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def encode(normals: Tensor) -> Tensor:
    """Encode normals as 8-bit colours, (n + 1) / 2 rounded.

    Args:
        normals: [...,3] float in [-1,1]; zero where there is no surface.

    Returns:
        [...,3] uint8.
    """
    return ((normals.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode(image: Tensor) -> tuple[Tensor, Tensor]:
    """Decode an encoded normal map, whether 8-bit or predicted.

    Args:
        image: [...,3] uint8, or float in [0,1].

    Returns:
        normals: [...,3] float32, unit where the mask exceeds one half and zero elsewhere.
        mask: [...] float32 in [0,1], the decoded vector's length: 1 on a surface, about 0 on the grey background.
    """
    scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    vectors = scaled * 2 - 1
    length = vectors.norm(dim=-1)
    unit = F.normalize(vectors, dim=-1) * (length > 0.5)[..., None]
    return unit, length.clamp(0, 1)


def to_world(normals: Tensor, c2w: Tensor) -> Tensor:
    """Camera-frame normals to the world frame.

    Args:
        normals: [v,h,w,3] float, each view's in its camera's frame.
        c2w: [v,4,4] float, camera to world.

    Returns:
        [v,h,w,3] float, world frame.
    """
    return torch.einsum("vij,vhwj->vhwi", c2w[:, :3, :3], normals)


def to_camera(normals: Tensor, c2w: Tensor) -> Tensor:
    """World-frame normals to each view's camera frame, the inverse of `to_world`.

    Args:
        normals: [v,h,w,3] float, world frame.
        c2w: [v,4,4] float, camera to world.

    Returns:
        [v,h,w,3] float, each view's in its camera's frame.
    """
    return torch.einsum("vji,vhwj->vhwi", c2w[:, :3, :3], normals)


def rotate(normals: Tensor, rotation: Tensor) -> Tensor:
    """Apply one rotation to every normal.

    Args:
        normals: [...,3] float.
        rotation: [3,3] float.

    Returns:
        [...,3] float.
    """
    return torch.einsum("ij,...j->...i", rotation, normals)
