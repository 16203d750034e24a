"""The layers of SVD's networks as they are here: transformer blocks, temporal convolutions, norms, view embedding.

The classes are diffusers' own, re-classed in place: every pretrained parameter keeps its name and value. The
transformer gets alignment units between self-attention and cross-attention, as children `alignment` of its blocks. What
differs from diffusers in how the same function is computed:
- cross-attention over one token is computed once per picture and broadcast, not for every query;
- the view index's embedding is computed once per view, not once per frame of the batch;
- spatial AND temporal blocks are checkpointed, each by itself (diffusers checkpoints the spatial one only);
- attention is split where its batch is too large for CUDA's kernels;
- convolutions over time only are computed as 2-D convolutions.
Axes: b object, t task, v view, l = h*w tokens, c channels, k context tokens (1 in SVD), d the context's width.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from einops import rearrange
from torch import Tensor, nn

from nova3d.models.alignment import ALIGNMENTS, AlignmentAttention, AlignmentInit, attention_in_chunks
from nova3d.models.row_attention import RowAttention
from nova3d.tasks import Task

HARMONICS = 4  # of the azimuth, in ViewEmbedding


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
        x = x + attention_in_chunks(self.attn1, self.norm1(x))
        if self.row_attention is not None:
            assert row is not None
            x = x + self.row_attention(x, row.azimuths, context.shape[1], row.rows)
        if self.alignment is not None:
            x = x + self.alignment(x, (context.shape[1], views))
        x = x + cross_attention(self, x, context.flatten(0, 1), repeats=views)
        return x + self.ff(self.norm3(x))


class TemporalBlock(TemporalBasicTransformerBlock):
    """x [(b t v), l, c], attends over v at each token: the temporal part of algorithm 2.

    The order is that of SVD's block: feed-forward in, self-attention, alignment, cross-attention, feed-forward.
    Algorithm 2 omits the two feed-forward layers. It draws the temporal ResBlock here, which SVD runs before the
    spatial block.
    """

    alignment: AlignmentAttention | None

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        """context [b,t,k,d]."""
        tokens = x.shape[1]
        x = rearrange(x, "(n v) l c -> (n l) v c", v=views)
        x = x + self.ff_in(self.norm_in(x)) if self.is_res else self.ff_in(self.norm_in(x))
        x = x + attention_in_chunks(self.attn1, self.norm1(x))
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
    """diffusers' TransformerSpatioTemporalModel over spatial and temporal blocks that take the task axis.

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


def convert_in_place(
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
    """Camera and task labels, added to the UNet's time embedding per frame (paper II-B, change b).

    An MLP from label features to the time embedding's width.

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


class TemporalConv(nn.Conv3d):
    """A Conv3d whose kernel has spatial size 1x1; takes and returns [b,c,v,h,w].

    SVD's temporal layers are Conv3d with kernel (3,1,1). They mix frames and nothing in space, so folding height and
    width into one axis turns them into a Conv2d with kernel (3,1): the same sums and no new parameter. On a CPU that
    is several times faster, since torch has no fast 3-D convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, w = x.shape
        folded = x.flatten(3)  # b c v (h w)
        padding = (int(self.padding[0]), 0)
        y = F.conv2d(folded, self.weight.squeeze(-1), self.bias, padding=padding)
        return y.reshape(b, y.shape[1], y.shape[2], h, w)


def fold_temporal_convs(model: nn.Module) -> int:
    """Make every Conv3d of `model` that is temporal only, stride 1, undilated, a TemporalConv, in place.

    Parameters, their names and the function computed stay the same. Returns how many were changed.
    """
    changed = 0
    for module in model.modules():
        if type(module) is not nn.Conv3d or module.groups != 1 or module.padding_mode != "zeros":
            continue
        temporal = module.kernel_size[1:] == (1, 1) and tuple(module.padding)[1:] == (0, 0)
        if temporal and module.stride == (1, 1, 1) and module.dilation == (1, 1, 1):
            module.__class__ = TemporalConv
            changed += 1
    return changed


@contextmanager
def group_norms(groups: int) -> Iterator[None]:
    """Give every GroupNorm that this thread constructs in the block the same number of groups.

    diffusers' video blocks fix 32 groups. At a width of 32 that is one channel a group, which normalises away each
    picture's mean colour, and widths such as 48 are not divisible: small models need fewer.

    Args:
        groups: groups of every GroupNorm, whatever its constructor is told.

    Raises:
        ValueError: in the block, where a width is not divisible.
    """
    construct, thread = nn.GroupNorm.__init__, threading.get_ident()

    def with_groups(self: nn.GroupNorm, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            if num_channels % groups:
                raise ValueError(f"norm_groups {groups} does not divide a width of {num_channels}")
            num_groups = groups
        construct(self, num_groups, num_channels, *args, **kwargs)

    nn.GroupNorm.__init__ = with_groups  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = construct  # type: ignore[method-assign]
