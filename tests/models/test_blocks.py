"""Exact shortcuts (cross-attention over one token, convolutions over time) and the label features."""

import pytest
import torch
from torch import nn

from nova3d.models.alignment import attention_in_chunks
from nova3d.models.blocks import (
    TemporalConv,
    ViewEmbedding,
    convert_in_place,
    cross_attention,
    fold_temporal_convs,
    group_norms,
    label_features,
)
from nova3d.tasks import TASKS, Task


@torch.no_grad()
def test_cross_attention_over_one_token_is_a_broadcast() -> None:
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    torch.manual_seed(0)
    transformer = TransformerSpatioTemporalModel(2, 16, in_channels=32, cross_attention_dim=12)
    convert_in_place(transformer, "none", "copied")
    for block in (*transformer.transformer_blocks, *transformer.temporal_transformer_blocks):
        x, context = torch.randn(6, 5, 32), torch.randn(3, 1, 12)  # two rows for each of three contexts
        full = block.attn2(block.norm2(x), encoder_hidden_states=context.repeat_interleave(2, dim=0))
        short = cross_attention(block, x, context, repeats=2)
        torch.testing.assert_close(short.expand_as(full), full, atol=1e-6, rtol=1e-5)
        two = torch.randn(3, 2, 12)  # more tokens take the full path
        branch = cross_attention(block, x, two, repeats=2)
        assert branch.shape == x.shape and not torch.allclose(branch[:, 0], branch[:, 1])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_blocks_hand_their_layout_to_the_unit(kind: str) -> None:
    """One token of object 1, normal, view 2 moves: what hears of it is its view, or its position in all views."""
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    torch.manual_seed(0)
    b, t, v, l, c = 2, 2, 3, 5, 32
    transformer = TransformerSpatioTemporalModel(2, 16, in_channels=c, cross_attention_dim=12)
    convert_in_place(transformer, "gta", "copied")
    blocks = transformer.transformer_blocks if kind == "spatial" else transformer.temporal_transformer_blocks
    block, context = blocks[0], torch.randn(b, 1, 1, 12).expand(b, t, 1, 12)
    nn.init.normal_(block.alignment.attn.to_out[0].weight, std=0.2)
    x = torch.randn(b, t, v, l, c)
    moved = x.clone()
    moved[1, 1, 2, 3] += torch.randn(c)

    def run(z: torch.Tensor) -> torch.Tensor:
        return block(z.flatten(0, 2), context, v).reshape(z.shape)

    heard = (run(moved) - run(x)).abs().amax(dim=-1) > 1e-6  # b t v l
    expected = torch.zeros(b, t, v, l, dtype=torch.bool)
    if kind == "spatial":
        expected[1, :, 2] = True
    else:
        expected[1, :, :, 3] = True
    assert torch.equal(heard, expected)


@torch.no_grad()
@pytest.mark.parametrize("limit", [1, 3, 6, 7])
def test_attention_in_parts_of_the_batch_is_the_same_attention(limit: int) -> None:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention, x = Attention(query_dim=16, heads=2, dim_head=8), torch.randn(7, 5, 16)
    calls: list[int] = []
    attention.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    torch.testing.assert_close(attention_in_chunks(attention, x, limit), attention(x), atol=1e-6, rtol=1e-5)
    assert max(calls[:-1]) <= limit and sum(calls[:-1]) == 7


def test_a_convolution_over_time_is_the_3d_one_with_its_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0))
    model = nn.Sequential(nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(6, 6, 3, padding=1))
    model[0].load_state_dict(plain.state_dict())
    assert fold_temporal_convs(model) == 1
    assert type(model[0]) is TemporalConv and type(model[1]) is nn.Conv3d
    assert fold_temporal_convs(model) == 0
    x = torch.randn(2, 4, 5, 3, 7)
    grads = []
    for conv in (plain, model[0]):
        given = x.clone().requires_grad_()
        out = conv(given)
        (out * torch.arange(out.numel()).reshape(out.shape) / out.numel()).sum().backward()
        grads.append((out.detach(), given.grad, conv.weight.grad, conv.bias.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_norm_groups() -> None:
    with group_norms(8):
        model = nn.Sequential(nn.GroupNorm(32, 64), nn.Linear(2, 2))
        assert nn.GroupNorm(32, 48).num_groups == 8  # which 32 does not divide
    assert model[0].num_groups == 8 and nn.GroupNorm(32, 64).num_groups == 32
    with group_norms(7), pytest.raises(ValueError, match="does not divide a width of 64"):
        nn.GroupNorm(32, 64)


def test_label_features_are_periodic_and_tell_views_and_tasks_apart() -> None:
    azimuth = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    cameras = torch.stack([azimuth, torch.full_like(azimuth, 0.3)], dim=-1)[None]
    features = label_features(cameras, TASKS)
    assert features.shape == (1, 2, 16, 12)
    turned = cameras + torch.tensor([2 * torch.pi, 0.0], dtype=torch.float64)
    torch.testing.assert_close(label_features(turned, TASKS), features, atol=1e-12, rtol=0)
    distances = torch.cdist(features[0, 0], features[0, 0]) + torch.eye(16)
    assert distances.min() > 0.3
    assert torch.equal(features[0, 0, :, :-2], features[0, 1, :, :-2])
    assert torch.equal(features[0, :, 0, -2:], torch.eye(2, dtype=torch.float64))
    alone = label_features(cameras, (Task.NORMAL,))
    assert torch.equal(alone[0, 0], features[0, 1])  # the label is the task's, not its place's


@torch.no_grad()
def test_labels_add_nothing_at_the_start() -> None:
    embedding = ViewEmbedding(32)
    assert torch.equal(embedding(torch.rand(2, 3, 2), TASKS), torch.zeros(2, 2, 3, 32))
    assert embedding.mlp.linear_1.weight.abs().max() > 0  # or no label would ever learn
