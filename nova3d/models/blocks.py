"""SVD's transformer with alignment units between self-attention and cross-attention.

The classes are diffusers' own, re-classed in place: every pretrained parameter keeps its name and value, and the only
addition is a child `alignment` in a block. What differs from diffusers in how the same function is computed:
- cross-attention over one token is computed once per picture and broadcast, not for every query;
- the view index's embedding is computed once per view, not once per frame of the batch;
- spatial AND temporal blocks are checkpointed, each by itself (diffusers checkpoints the spatial one only);
- attention is split where its batch is too large for CUDA's kernels.
Axes: b object, t task, v view, l = h*w tokens, c channels, k context tokens (1 in SVD), d the context's width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from einops import rearrange
from torch import Tensor, nn

from nova3d.models.alignment import ALIGNMENTS, AlignmentAttention, AlignmentInit, attend
from nova3d.models.row_attention import RowAttention


@dataclass(frozen=True)
class RowContext:
    """What row attention needs to know beside the tokens: azimuths [b,v] in radians, and the rows of a view."""

    azimuths: Tensor
    rows: int


class SpatialBlock(BasicTransformerBlock):
    """x [(b t v), l, c]: self-attention, alignment, cross-attention, feed-forward (algorithm 2, spatial part)."""

    alignment: AlignmentAttention | None
    row_attention: RowAttention | None

    def forward(self, x: Tensor, context: Tensor, views: int, row: RowContext | None = None) -> Tensor:
        """context [b,t,k,d]; `row` where the block has row attention."""
        x = x + attend(self.attn1, self.norm1(x))
        if self.row_attention is not None:
            assert row is not None
            x = x + self.row_attention(x, row.azimuths, context.shape[1], row.rows)
        if self.alignment is not None:
            x = x + self.alignment(x, (context.shape[1], views))
        x = x + cross_attention(self, x, context.flatten(0, 1), repeats=views)
        return x + self.ff(self.norm3(x))


class TemporalBlock(TemporalBasicTransformerBlock):
    """x [(b t v), l, c], attends over v at each token: the temporal part of algorithm 2, in SVD's true order."""

    alignment: AlignmentAttention | None

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        """context [b,t,k,d]."""
        tokens = x.shape[1]
        x = rearrange(x, "(n v) l c -> (n l) v c", v=views)
        x = x + self.ff_in(self.norm_in(x)) if self.is_res else self.ff_in(self.norm_in(x))
        x = x + attend(self.attn1, self.norm1(x))
        if self.alignment is not None:
            x = x + self.alignment(x, (context.shape[1], tokens))
        x = x + cross_attention(self, x, context.flatten(0, 1), repeats=tokens)
        forwarded = self.ff(self.norm3(x))
        x = x + forwarded if self.is_res else forwarded
        return rearrange(x, "(n l) v c -> (n v) l c", l=tokens)


def cross_attention(block: SpatialBlock | TemporalBlock, x: Tensor, context: Tensor, repeats: int) -> Tensor:
    """The cross-attention branch of x [(n r), q, c] to context [n,k,d], each of which serves `repeats` = r rows.

    Over one context token the softmax is 1 whatever the query, so the branch is to_out(to_v(context)) for every query:
    exact, and neither queries nor keys need be computed. Returned as [(n r),1,c] then, to broadcast over q.
    """
    attention: Attention = block.attn2
    if context.shape[1] == 1:
        return attention.to_out[0](attention.to_v(context)).repeat_interleave(repeats, dim=0)
    return attention(block.norm2(x), encoder_hidden_states=context.repeat_interleave(repeats, dim=0))


class SpatioTemporalTransformer(TransformerSpatioTemporalModel):
    """diffusers' TransformerSpatioTemporalModel over spatial and temporal blocks that know of tasks.

    `azimuths` [b,v] is set by NovaUNet.forward before its blocks run, where they have row attention: the arguments by
    which diffusers' UNet blocks call a transformer have no place for it.
    """

    azimuths: Tensor | None = None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image_only_indicator: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """hidden_states [(b t v), c, h, w]; encoder_hidden_states [b,t,k,d]; image_only_indicator [(b t), v] gives v.

        The arguments' names are those by which diffusers' UNet blocks call.
        """
        views, (h, w) = image_only_indicator.shape[-1], hidden_states.shape[-2:]
        x = self.proj_in(self.norm(hidden_states).flatten(2).transpose(1, 2))
        index = self._index_embedding(views, x).repeat(len(x) // views, 1)[:, None]
        row = RowContext(self.azimuths, h) if self.azimuths is not None else None
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = self._run(spatial, x, encoder_hidden_states, views, row)
            over_time = self._run(temporal, x + index, encoder_hidden_states, views)
            # SVD's mix, alpha * spatial + (1 - alpha) * temporal, in one pass over memory.
            x = torch.lerp(over_time, x, self.time_mixer.mix_factor.sigmoid().to(x.dtype))
        return (self.proj_out(x).transpose(1, 2).unflatten(-1, (h, w)) + hidden_states,)

    def _index_embedding(self, views: int, like: Tensor) -> Tensor:
        """[v,c] embedding of the view's index."""
        index = torch.arange(views, device=like.device)
        return self.time_pos_embed(self.time_proj(index).to(like.dtype))

    def _run(self, block: nn.Module, *arguments: Any) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


def adopt(
    transformer: TransformerSpatioTemporalModel, alignment: str, init: AlignmentInit, row_attention: bool = False
) -> None:
    """Turn a diffusers transformer and its blocks into ours, in place, with fresh units.

    Args:
        transformer: of diffusers' class, changed in place.
        alignment: a name of ALIGNMENTS, which says which blocks get alignment units and of which class.
        init: how these units start, see AlignmentAttention.initialise.
        row_attention: whether the spatial blocks get row attention.
    """
    arm = ALIGNMENTS[alignment]
    transformer.__class__ = SpatioTemporalTransformer
    for block in transformer.transformer_blocks:
        block.__class__ = SpatialBlock
        block.row_attention = RowAttention(block.attn1.query_dim, block.attn1.heads) if row_attention else None
        _add_unit(block, arm.spatial, "spatial", init)
    for block in transformer.temporal_transformer_blocks:
        block.__class__ = TemporalBlock
        _add_unit(block, arm.temporal, "temporal", init)


def _add_unit(
    block: SpatialBlock | TemporalBlock, unit: type[AlignmentAttention] | None, fold: Any, init: AlignmentInit
) -> None:
    block.alignment = None
    if unit is not None:
        block.alignment = unit(block.attn1.query_dim, block.attn1.heads, fold)
        block.alignment.initialise(init, block.norm1, block.attn1)
    # Over SVD's single context token these have no effect and can get no gradient: DDP must not wait for one.
    for module in (block.norm2, block.attn2.to_q, block.attn2.to_k):
        module.requires_grad_(False)
