"""Normal maps: the 8-bit codec and changes of frame.

A normal map holds unit vectors in the WORLD frame of the input view (the front camera's frame), so one surface
point has one colour in all views. Background is the zero vector, which encodes to mid-grey.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def encode(normals: Tensor) -> Tensor:
    """Normals [...,3] in [-1,1] (zero where there is no surface) to uint8 [...,3], (n + 1) / 2 rounded."""
    return ((normals.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode(image: Tensor) -> tuple[Tensor, Tensor]:
    """An encoded map [...,3], uint8 or float in [0,1], to normals [...,3] and a soft mask [...].

    The mask is the decoded vector's length clipped to [0,1]: 1 on a surface, about 0 on the grey background.
    Normals are unit wherever the mask exceeds one half and zero elsewhere.
    """
    scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    vectors = scaled * 2 - 1
    length = vectors.norm(dim=-1)
    unit = F.normalize(vectors, dim=-1) * (length > 0.5)[..., None]
    return unit, length.clamp(0, 1)


def to_world(normals: Tensor, c2w: Tensor) -> Tensor:
    """Camera-frame normals [v,h,w,3] to the world frame by each view's rotation, c2w [v,4,4]."""
    return torch.einsum("vij,vhwj->vhwi", c2w[:, :3, :3], normals)


def to_camera(normals: Tensor, c2w: Tensor) -> Tensor:
    """World-frame normals [v,h,w,3] to each view's camera frame, c2w [v,4,4]."""
    return torch.einsum("vji,vhwj->vhwi", c2w[:, :3, :3], normals)


def rotate(normals: Tensor, rotation: Tensor) -> Tensor:
    """Apply one rotation [3,3] to every normal [...,3]."""
    return torch.einsum("ij,...j->...i", rotation, normals)
