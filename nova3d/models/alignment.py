"""Geometry-temporal alignment (GTA) attention between the RGB and the normal sequence (paper II-C).

Algorithm 1 gives each query of either task the keys and values of both tasks. Algorithm 2 places it in a spatial and in
a temporal form, each between self-attention and cross-attention. Both forms fold the task axis into the tokens, for
queries, keys and values alike::

    spatial:  (b t v) l c -> (b v) (t l) c    the tokens of one view attend to its RGB and normal tokens
    temporal: (b t l) v c -> (b l) (t v) c    one latent position attends to itself in all views of both tasks

This is algorithm 1 without copies of keys and values, and independent of the batch order. The GTA matrix is never
formed: it is the attention matrix of the folded tokens, which the attention kernel computes in blocks. t and v come
from the blocks (`nova3d/models/blocks.py`), to which `NovaUNet.forward` passes them.
Axes: b object, t task, v view, l = h*w tokens, c channels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from nova3d.choices import AlignmentInit

ALIGNMENT_INITS: tuple[AlignmentInit, ...] = get_args(AlignmentInit)

# CUDA's fused attention kernels put the batch on a grid axis of at most 65,535 and fail beyond it. SVD's temporal
# attention has a batch of b*t*h*w: 8 pairs of 64x64 latents are too many.
MAX_ATTENTION_BATCH = 65_535


def attention_in_chunks(attention: Attention, x: Tensor, limit: int = MAX_ATTENTION_BATCH) -> Tensor:
    """Self-attention in chunks of the batch, whose rows are independent.

    Args:
        attention: diffusers' module.
        x: [n,q,c] tokens.
        limit: the most rows that go through `attention` together.

    Returns:
        [n,q,c].
    """
    if len(x) <= limit:
        return attention(x)
    return torch.cat([attention(chunk) for chunk in x.split(limit)])


class AlignmentAttention(nn.Module):
    """Pre-norm residual attention over the tokens of all tasks: one alignment unit of a transformer block.

    The unit of another arm is a subclass of this class. `initialise` of a subclass sets every parameter that is not of
    a linear layer or a LayerNorm, because `NovaUNet.from_svd` constructs the network without storage and resets only
    those layers. A unit gets the tokens alone: no cameras and no view angles.

    Args:
        dim: c, the width of the tokens.
        heads: of the attention; dim is divided among them.
        fold: the form, "spatial" or "temporal". It is kept for subclasses that differ by form; this class computes
            both alike.
    """

    def __init__(self, dim: int, heads: int, fold: Literal["spatial", "temporal"]):
        super().__init__()
        self.fold = fold
        self.norm = nn.LayerNorm(dim)
        self.attn = Attention(query_dim=dim, heads=heads, dim_head=dim // heads)

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """The residual branch.

        Args:
            x: float [(b t v),l,c] tokens for "spatial", [(b t l),v,c] for "temporal".
            shape: (t, inner), inner = v for "spatial" and l for "temporal".

        Returns:
            [(b t v),l,c] or [(b t l),v,c] as x, of its dtype.

        Raises:
            ValueError: where the batch holds no whole groups of t * inner rows.
        """
        tasks, inner = shape
        if x.shape[0] % (tasks * inner):
            raise ValueError(f"batch {x.shape[0]} does not hold {tasks} tasks of {inner}")
        # Both forms fold (b t i) n c -> (b i) (t n) c; only the meaning of the inner axis i differs.
        tokens = rearrange(self.norm(x), "(b t i) n c -> (b i) (t n) c", t=tasks, i=inner)
        return rearrange(attention_in_chunks(self.attn, tokens), "(b i) (t n) c -> (b t i) n c", t=tasks, i=inner)

    @torch.no_grad()
    def initialise(self, init: AlignmentInit, norm: nn.LayerNorm, attention: Attention) -> None:
        """Set the weights so that the branch is (near) zero at step 0.

        Args:
            init: "copied" takes norm, q, k and v from the block's own self-attention and sets output weight and bias
                to zero: the model is its pretrained self exactly, and the copied q, k find correspondences already.
                "random" leaves q, k, v as constructed and sets output weight and bias to zero. "wonder3d" sets the
                output weight to zero and leaves its bias as constructed, as Wonder3D does: not exactly zero.
            norm: the layer norm before the block's self-attention.
            attention: the block's self-attention.
        """
        output = self.attn.to_out[0]
        nn.init.zeros_(output.weight)
        if init != "wonder3d":
            nn.init.zeros_(output.bias)
        if init == "copied":
            self.norm.load_state_dict(norm.state_dict())
            for name in ("to_q", "to_k", "to_v"):
                getattr(self.attn, name).load_state_dict(getattr(attention, name).state_dict())


@dataclass(frozen=True)
class Arm:
    """Which blocks have alignment units, and of which class."""

    spatial: type[AlignmentAttention] | None = None
    """The units of the spatial blocks; None for blocks without."""
    temporal: type[AlignmentAttention] | None = None
    """The units of the temporal blocks."""


# Every arm by its name, the value of NovaUNet's `alignment`. A further arm is a file that adds itself, and a line in
# nova3d/models/__init__.py that imports it: docs/how-to/extending.md has a complete example.
# `cross_domain` is Wonder3D's attention. It has the units of `gta_spatial` in the same place. The two differ by
# `alignment_init` alone, which is "wonder3d" for `cross_domain` in the ablations and "copied" for `gta_spatial`.
ALIGNMENTS: dict[str, Arm] = {
    "none": Arm(),
    "cross_domain": Arm(spatial=AlignmentAttention),
    "gta": Arm(spatial=AlignmentAttention, temporal=AlignmentAttention),
    "gta_spatial": Arm(spatial=AlignmentAttention),
    "gta_temporal": Arm(temporal=AlignmentAttention),
}
