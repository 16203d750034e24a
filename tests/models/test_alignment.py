"""Alignment attention against algorithm 1 written out, and who may hear of whom."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d.models import AlignmentAttention

B, T, V, L, C, HEADS = 2, 2, 3, 5, 16, 2


def unit(fold: Any) -> AlignmentAttention:
    torch.manual_seed(3)
    made = AlignmentAttention(C, HEADS, fold)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def literal(made: AlignmentAttention, rgb: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1 for one group of tokens [n,c] of each domain: keys and values of both, queries of each."""

    def heads(x: Tensor) -> Tensor:
        return x.reshape(len(x), HEADS, C // HEADS).transpose(0, 1)

    attn = made.attn
    z = [nn.functional.layer_norm(x, (C,), made.norm.weight, made.norm.bias) for x in (rgb, normal)]
    k = torch.cat([heads(x @ attn.to_k.weight.T) for x in z], dim=1)
    v = torch.cat([heads(x @ attn.to_v.weight.T) for x in z], dim=1)
    results = []
    for x in z:
        scores = heads(x @ attn.to_q.weight.T) @ k.transpose(1, 2) / (C // HEADS) ** 0.5
        mixed = (scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(len(x), C)
        results.append(mixed @ attn.to_out[0].weight.T + attn.to_out[0].bias)
    return results[0], results[1]


@torch.no_grad()
def test_both_forms_are_algorithm_1() -> None:
    x = torch.randn(B, T, V, L, C, generator=torch.Generator().manual_seed(0))
    spatial, temporal = unit("spatial"), unit("temporal")
    in_space = spatial(x.flatten(0, 2), (T, V)).reshape(x.shape)
    over_time = temporal(x.transpose(2, 3).flatten(0, 2), (T, L)).reshape(B, T, L, V, C).transpose(2, 3)
    for b in range(B):
        for v in range(V):
            expected = torch.stack(literal(spatial, x[b, 0, v], x[b, 1, v]))
            torch.testing.assert_close(in_space[b, :, v], expected, atol=1e-5, rtol=1e-4)
        for l in range(L):
            expected = torch.stack(literal(temporal, x[b, 0, :, l], x[b, 1, :, l]))
            torch.testing.assert_close(over_time[b, :, :, l], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("fold", ["spatial", "temporal"])
def test_exchange_stays_in_the_view_or_in_the_position(fold: Any) -> None:
    made = unit(fold)
    x = torch.randn(B, T, V, L, C, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[1, 1, 2, 3] += torch.randn(C, generator=torch.Generator().manual_seed(1))  # object 1, normal, view 2, l 3

    def run(z: Tensor) -> Tensor:
        if fold == "spatial":
            return made(z.flatten(0, 2), (T, V)).reshape(x.shape)
        return made(z.transpose(2, 3).flatten(0, 2), (T, L)).reshape(B, T, L, V, C).transpose(2, 3)

    changed = (run(moved) - run(x)).abs().amax(dim=-1) > 1e-6  # b t v l
    expected = torch.zeros(B, T, V, L, dtype=torch.bool)
    if fold == "spatial":
        expected[1, :, 2] = True
    else:
        expected[1, :, :, 3] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_equal_domains_reduce_it_to_self_attention() -> None:
    made = unit("spatial")
    x = torch.randn(V, L, C, generator=torch.Generator().manual_seed(0))
    result = made(torch.cat([x, x]), (2, V))
    torch.testing.assert_close(result[:V], made.attn(made.norm(x)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result[:V], result[V:])


@pytest.mark.parametrize(("init", "exact"), [("copied", True), ("random", True), ("wonder3d", False)])
def test_initialisations(init: Any, exact: bool) -> None:
    torch.manual_seed(0)
    donor = unit("spatial")
    made = AlignmentAttention(C, HEADS, "spatial")
    made.initialise(init, donor.norm, donor.attn)
    with torch.no_grad():
        branch = made(torch.randn(T * V, L, C), (T, V))
    assert (bool((branch == 0).all())) is exact
    assert torch.equal(made.attn.to_q.weight, donor.attn.to_q.weight) is (init == "copied")
    assert torch.equal(made.norm.weight, donor.norm.weight) is (init == "copied")


def test_a_batch_without_whole_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold 2 tasks of 3"):
        unit("spatial")(torch.zeros(7, L, C), (2, 3))
