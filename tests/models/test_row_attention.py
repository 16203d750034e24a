"""Row attention mixes the tokens of one row over all views, and nothing else."""

import torch

from nova3d.models.attention_backend import pick_attention, use_attention
from nova3d.models.row_attention import FEATURES, RowAttention, row_features

B, T, V, H, W, C = 2, 2, 3, 4, 5, 8
AZIMUTHS = torch.tensor([[0.0, 2.0, 4.0], [0.0, 1.0, 3.0]])


def unit() -> RowAttention:
    torch.manual_seed(0)
    made = RowAttention(C, heads=2)
    torch.nn.init.normal_(made.attn.to_out[0].weight)
    return made.eval()


def test_it_starts_as_nothing() -> None:
    x = torch.randn(B * T * V, H * W, C)
    assert not RowAttention(C, heads=2)(x, AZIMUTHS, T, H).any()


def test_a_token_moves_the_tokens_of_its_row_in_all_views_of_its_object_and_task() -> None:
    made, x = unit(), torch.randn(B, T, V, H, W, C)
    changed = x.clone()
    changed[1, 0, 2, 3, 1, 0] += 1  # not all channels: the norm would take that out
    outputs = [made(part.reshape(B * T * V, H * W, C), AZIMUTHS, T, H).view(x.shape) for part in (x, changed)]
    moved = (outputs[1] - outputs[0]).abs().amax(dim=-1) > 1e-6
    expected = torch.zeros_like(moved)
    expected[1, 0, :, 3] = True
    assert torch.equal(moved, expected)


def test_the_result_is_that_of_attention_written_out() -> None:
    made, x = unit(), torch.randn(B, T, V, H, W, C)
    result = made(x.reshape(B * T * V, H * W, C), AZIMUTHS, T, H).view(x.shape)
    position = made.position(row_features(AZIMUTHS, W))
    for b, t, row in ((0, 0, 0), (1, 1, 2)):
        tokens = (made.norm(x[b, t, :, row]) + position[b]).reshape(V * W, C)
        q, k, v = (getattr(made.attn, f"to_{name}")(tokens).view(V * W, 2, C // 2) for name in "qkv")
        weights = torch.einsum("qhc,khc->hqk", q, k).div((C // 2) ** 0.5).softmax(dim=-1)
        mixed = torch.einsum("hqk,khc->qhc", weights, v).reshape(V * W, C)
        expected = made.attn.to_out[0](mixed).view(V, W, C)
        assert torch.allclose(result[b, t, :, row], expected, atol=1e-5)


def test_features_return_after_a_full_turn_and_tell_columns_and_views_apart() -> None:
    features = row_features(AZIMUTHS, W)
    assert features.shape == (B, V, W, FEATURES)
    assert torch.allclose(row_features(AZIMUTHS + 2 * torch.pi, W), features, atol=1e-5)
    distance = torch.cdist(features[0].flatten(0, 1), features[0].flatten(0, 1)) + torch.eye(V * W)
    assert float(distance.min()) > 0.1


def test_both_attention_backends_agree() -> None:
    made, x = unit(), torch.randn(B * T * V, H * W, C)
    use_attention(made, "sdpa")
    fused = made(x, AZIMUTHS, T, H)
    use_attention(made, "products")
    assert torch.allclose(made(x, AZIMUTHS, T, H), fused, atol=1e-5)
    assert pick_attention(torch.device("cpu"), torch.bfloat16) == "products"
    assert pick_attention(torch.device("cpu"), torch.float32) == "sdpa"
    assert pick_attention(torch.device("cuda"), torch.bfloat16) == "sdpa"
