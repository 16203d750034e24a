"""Exact shortcuts (cross-attention over one token, convolutions over time) and the label features."""

import pytest
import torch
from torch import nn

from nova3d.models.blocks import adopt, cross_attention
from nova3d.models.norms import set_norm_groups
from nova3d.models.temporal_conv import TemporalConv, fold_temporal_convs
from nova3d.models.view_embedding import ViewEmbedding, label_features
from nova3d.tasks import TASKS, Task


@torch.no_grad()
def test_cross_attention_over_one_token_is_a_broadcast() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    block = adopt(BasicTransformerBlock(16, 2, 8, cross_attention_dim=12), "spatial", False, "copied")
    x, context = torch.randn(3, 5, 16), torch.randn(3, 1, 12)
    full = block.attn2(block.norm2(x), encoder_hidden_states=context)
    short = cross_attention(block, x, context)
    torch.testing.assert_close(short.expand_as(full), full, atol=1e-6, rtol=1e-5)
    two = torch.randn(3, 2, 12)  # more tokens take the full path
    assert cross_attention(block, x, two).shape == x.shape
    assert not torch.allclose(cross_attention(block, x, two)[:, 0], cross_attention(block, x, two)[:, 1])


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
    model = nn.Sequential(nn.GroupNorm(32, 64), nn.Linear(2, 2))
    set_norm_groups(model, 8)
    assert model[0].num_groups == 8
    with pytest.raises(ValueError, match="does not divide a width of 64"):
        set_norm_groups(model, 7)


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
