"""Attention along image rows over all views (Era3D, Li et al. 2024), for rigs in which a point keeps its row.

In a ring of level orthographic cameras around a vertical axis, an epipolar line is an image row. Every token attends to
the tokens of its row in all views, so one unit can match a point's appearances wherever it is seen.
Axes: b object, t task, v view, h w token rows and columns, c channels.
"""

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

from nova3d.models.alignment import attention_in_chunks

HARMONICS = 2  # of the azimuth, and of the column's phase


def row_features(azimuths: Tensor, columns: int) -> Tensor:
    """Position features of the tokens of a row.

    A point at radius r and angle p projects to the column r sin(p - a) of the view at azimuth a, so that sines and
    cosines of the azimuth, columns and their products describe where two tokens can show one point.

    Args:
        azimuths: [b,v] radians.
        columns: w, tokens per row.

    Returns:
        [b,v,w,f] float32, f = 12 for two harmonics.
    """
    order = torch.arange(1, HARMONICS + 1, device=azimuths.device, dtype=torch.float32)
    angle = azimuths.float()[..., None] * order
    turn = torch.cat([angle.sin(), angle.cos()], dim=-1)  # b v 4
    x = (torch.arange(columns, device=azimuths.device, dtype=torch.float32) + 0.5) / columns * 2 - 1
    phase = torch.pi / 2 * x[:, None] * order
    place = torch.cat([x[:, None], x[:, None] ** 2, phase.sin(), phase.cos()], dim=-1)  # w 6
    turn = turn[:, :, None].expand(-1, -1, columns, -1)
    place = place.expand(*azimuths.shape, -1, -1)
    return torch.cat([turn, place, turn[..., :1] * x[:, None], turn[..., HARMONICS : HARMONICS + 1] * x[:, None]], -1)


FEATURES = 2 * HARMONICS + 2 + 2 * HARMONICS + 2


class RowAttention(nn.Module):
    """Pre-norm residual attention over the tokens of one row in all views of a task. Its output starts at zero."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.position = nn.Linear(FEATURES, dim)
        self.attn = Attention(query_dim=dim, heads=heads, dim_head=dim // heads)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Set the output to zero, so that a model is its former self at step 0."""
        nn.init.zeros_(self.attn.to_out[0].weight)
        nn.init.zeros_(self.attn.to_out[0].bias)

    def forward(self, x: Tensor, azimuths: Tensor, tasks: int, rows: int) -> Tensor:
        """The residual branch.

        Args:
            x: [(b t v),l,c] tokens, l = h*w in row-major order.
            azimuths: [b,v] radians relative to the input view.
            tasks: t.
            rows: h.

        Returns:
            [(b t v),l,c].
        """
        views, columns = azimuths.shape[1], x.shape[1] // rows
        position = self.position(row_features(azimuths, columns).to(x.dtype))
        position = repeat(position, "b v w c -> (b t v) (h w) c", t=tasks, h=rows)
        tokens = rearrange(self.norm(x) + position, "(n v) (h w) c -> (n h) (v w) c", v=views, h=rows)
        return rearrange(attention_in_chunks(self.attn, tokens), "(n h) (v w) c -> (n v) (h w) c", h=rows, v=views)
