"""Camera and task labels, added to the UNet's time embedding per frame (paper II-B, change b)."""

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from nova3d.tasks import Task

HARMONICS = 4


def label_features(cameras: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """[b,t,v,12] features of cameras [b,v,2] (azimuth relative to the input view, elevation; radians) and tasks.

    sin and cos of the elevation; sin and cos of 1..4 times the azimuth, so that a full turn changes nothing; the
    task's one-hot.
    """
    azimuth, elevation = cameras[..., :1], cameras[..., 1:]
    multiples = azimuth * torch.arange(1, HARMONICS + 1, device=cameras.device, dtype=cameras.dtype)
    camera = torch.cat([elevation.sin(), elevation.cos(), multiples.sin(), multiples.cos()], dim=-1)
    one_hot = torch.eye(len(Task), device=cameras.device, dtype=cameras.dtype)[[int(task) for task in tasks]]
    b, v, _ = camera.shape
    t = len(tasks)
    camera = camera[:, None].expand(b, t, v, -1)
    return torch.cat([camera, one_hot[None, :, None].expand(b, t, v, -1)], dim=-1)


class ViewEmbedding(nn.Module):
    """MLP from label features to the time embedding's width.

    The last linear starts at zero, weight and bias, and only that one: at step 0 nothing is added, and its gradient
    is not zero (zeroing the first one too would keep the labels dead for ever).
    """

    def __init__(self, time_embed_dim: int):
        super().__init__()
        self.mlp = TimestepEmbedding(2 + 2 * HARMONICS + len(Task), time_embed_dim)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        nn.init.zeros_(self.mlp.linear_2.weight)
        nn.init.zeros_(self.mlp.linear_2.bias)

    def forward(self, cameras: Tensor, tasks: tuple[Task, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """cameras [b,v,2] -> [b,t,v,time_embed_dim], computed in `dtype` from features in float32: the angles
        themselves have too few digits in half precision."""
        return self.mlp(label_features(cameras.float(), tasks).to(dtype))
