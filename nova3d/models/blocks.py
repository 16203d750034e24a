"""SVD's transformer blocks with an alignment unit between self-attention and cross-attention.

They are diffusers' own blocks, re-classed in place: every pretrained parameter keeps its name and value, and the
only addition is a child `alignment`. Axes: b object, t task, v view, l = h*w tokens, c channels.
"""

from typing import Any, Literal

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from nova3d.models.alignment import AlignmentAttention, AlignmentInit


class SpatialBlock(BasicTransformerBlock):
    """x [(b t v), l, c]: self-attention, alignment, cross-attention, feed-forward (algorithm 2, spatial part)."""

    alignment: AlignmentAttention | None
    num_tasks: int
    num_views: int

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, encoder_hidden_states: Tensor | None = None, *_: Any
    ) -> Tensor:
        # The order of diffusers' arguments: its gradient checkpointing passes them by position.
        assert encoder_hidden_states is not None
        x = hidden_states
        x = x + self.attn1(self.norm1(x))
        if self.alignment is not None:
            x = x + self.alignment(x, (self.num_tasks, self.num_views))
        x = x + cross_attention(self, x, encoder_hidden_states)
        return x + self.ff(self.norm3(x))


class TemporalBlock(TemporalBasicTransformerBlock):
    """x [(b t v), l, c], attends over v at each token: the temporal part of algorithm 2, in SVD's true order."""

    alignment: AlignmentAttention | None
    num_tasks: int

    def forward(self, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.shape[1]
        x = rearrange(hidden_states, "(n v) l c -> (n l) v c", v=num_frames)
        x = x + self.ff_in(self.norm_in(x)) if self.is_res else self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        if self.alignment is not None:
            x = x + self.alignment(x, (self.num_tasks, tokens))
        x = x + cross_attention(self, x, encoder_hidden_states)
        forwarded = self.ff(self.norm3(x))
        x = x + forwarded if self.is_res else forwarded
        return rearrange(x, "(n l) v c -> (n v) l c", l=tokens)


def cross_attention(block: SpatialBlock | TemporalBlock, x: Tensor, context: Tensor) -> Tensor:
    """The cross-attention branch. Over one context token the softmax is 1 whatever the query, so the branch is
    to_out(to_v(context)) for every query: exact, and the queries need not be computed."""
    attention: Attention = block.attn2
    if context.shape[1] == 1:
        return attention.to_out[0](attention.to_v(context))
    return attention(block.norm2(x), encoder_hidden_states=context)


def adopt(
    block: nn.Module, kind: Literal["spatial", "temporal"], aligned: bool, init: AlignmentInit
) -> SpatialBlock | TemporalBlock:
    """Turn a diffusers block into ours, in place, with a freshly initialised alignment unit where `aligned`."""
    adopted: SpatialBlock | TemporalBlock
    block.__class__ = SpatialBlock if kind == "spatial" else TemporalBlock
    adopted = block  # type: ignore[assignment]
    adopted.alignment = None
    if aligned:
        unit = AlignmentAttention(adopted.attn1.query_dim, adopted.attn1.heads, kind)
        adopted.alignment = unit
        unit.initialise(init, adopted.norm1, adopted.attn1)
    # Over SVD's single context token these have no effect and can get no gradient: DDP must not wait for one.
    for module in (adopted.norm2, adopted.attn2.to_q, adopted.attn2.to_k):
        module.requires_grad_(False)
    return adopted
