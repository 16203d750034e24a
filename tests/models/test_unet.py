"""NovaUNet against diffusers' own UNet, and what its labels and alignment units do at and after the start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d.models import AlignmentAttention, NovaUNet
from nova3d.models.alignment import ALIGNMENTS
from nova3d.models.blocks import SpatioTemporalTransformer, TemporalConv
from nova3d.tasks import TASKS, Task

Inputs = dict[str, Tensor]


def stock_output(stock: nn.Module, inputs: Inputs) -> Tensor:
    """The stock UNet's answer: every (object, task) is a video of its own."""
    ids = torch.stack([torch.tensor([6.0, 127.0, float(aug)]) for aug in inputs["noise_aug"]])
    with torch.no_grad():
        out = stock(
            inputs["sample"].flatten(0, 1),
            inputs["c_noise"].repeat_interleave(2),
            inputs["image_embeds"].repeat_interleave(2, dim=0),
            added_time_ids=ids.repeat_interleave(2, dim=0),
        ).sample
    return out.unflatten(0, (2, 2))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_arm_starts_as_svd_s_function(
    stock: nn.Module, inputs: Inputs, make_unet: Callable[..., NovaUNet], alignment: str
) -> None:
    unet = make_unet(alignment=alignment, id_mode="constant", norm_groups=32)
    missing, unexpected = unet.load_state_dict(stock.state_dict(), strict=False)
    assert sorted(missing) == sorted(unet.new_parameter_names) and unexpected == []
    with torch.no_grad():
        ours = unet(**inputs).sample
    expected = stock_output(stock, inputs)
    assert ours.shape == (2, 2, 4, 4, 8, 8)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.1


def test_dropping_the_constant_ids_keeps_the_function(
    stock: nn.Module, inputs: Inputs, make_unet: Callable[..., NovaUNet]
) -> None:
    unet = make_unet(alignment="gta", id_mode="fold", norm_groups=32)
    state = stock.state_dict()
    weight, encode = state["add_embedding.linear_1.weight"], stock.add_time_proj
    constants = encode(torch.tensor([6.0, 127.0])).flatten()
    state["add_embedding.linear_1.weight"] = weight[:, 64:]
    state["add_embedding.linear_1.bias"] = state["add_embedding.linear_1.bias"] + weight[:, :64] @ constants
    unet.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(unet(**inputs).sample, stock_output(stock, inputs), atol=2e-5, rtol=1e-4)


def units(unet: NovaUNet) -> list[AlignmentAttention]:
    return [module for module in unet.modules() if isinstance(module, AlignmentAttention)]


@pytest.mark.parametrize(
    ("alignment", "folds"),
    [
        ("none", set()),
        ("gta", {"spatial", "temporal"}),
        ("gta_spatial", {"spatial"}),
        ("gta_temporal", {"temporal"}),
        ("cross_domain", {"spatial"}),
    ],
)
def test_arms_have_the_units_they_are_named_for(
    make_unet: Callable[..., NovaUNet], alignment: str, folds: set[str]
) -> None:
    unet = make_unet(alignment=alignment)
    assert {unit.fold for unit in units(unet)} == folds
    assert len(units(unet)) == 4 * len(folds)  # one down, one mid, two up transformers


def test_first_gradients_reach_what_starts_at_zero_and_only_that(
    inputs: Inputs, make_unet: Callable[..., NovaUNet]
) -> None:
    unet = make_unet(alignment="gta")
    plain = make_unet(alignment="none")
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if ".alignment." not in k})
    out = unet(**inputs).sample
    with torch.no_grad():
        assert torch.equal(out, plain(**inputs).sample)
    out.square().mean().backward()
    mlp = unet.view_embedding.mlp
    assert mlp.linear_2.weight.grad.abs().max() > 0 and mlp.linear_2.bias.grad.abs().max() > 0
    assert mlp.linear_1.weight.grad.abs().max() == 0
    for unit in units(unet):
        assert unit.attn.to_out[0].weight.grad.abs().max() > 0
        assert unit.attn.to_out[0].bias.grad.abs().max() > 0
        assert unit.attn.to_q.weight.grad.abs().max() == 0
    trainable = {n for n, p in unet.named_parameters() if p.requires_grad}
    assert {n for n, p in unet.named_parameters() if p.grad is not None} == trainable  # DDP waits for every one


def test_after_one_step_gradients_reach_what_did_not_get_one(
    inputs: Inputs, make_unet: Callable[..., NovaUNet]
) -> None:
    unet = make_unet(alignment="gta")
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn(2, 2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        optimizer.zero_grad()
        (unet(**inputs).sample - target).square().mean().backward()
        optimizer.step()
    assert unet.view_embedding.mlp.linear_1.weight.grad.abs().max() > 0
    for unit in units(unet):
        for projection in (unit.attn.to_q, unit.attn.to_k, unit.attn.to_v, unit.norm):
            assert projection.weight.grad.abs().max() > 0


def test_queries_and_keys_over_one_token_get_no_gradient_in_stock_svd(stock: nn.Module, inputs: Inputs) -> None:
    """Why ours neither computes nor trains them."""
    ids = torch.tensor([[6.0, 127.0, 0.02]]).expand(2, 3)
    out = stock(inputs["sample"][:, 0], inputs["c_noise"], inputs["image_embeds"], added_time_ids=ids).sample
    out.square().mean().backward()
    frozen = [p for n, p in stock.named_parameters() if ".attn2.to_q" in n or ".attn2.to_k" in n or ".norm2." in n]
    idle = [p for p in frozen if p.grad.abs().max() < 1e-9]
    in_transformers = [n for n, _ in stock.named_parameters() if ".attn2.to_q" in n]
    assert len(idle) >= 4 * len(in_transformers)  # to_q, to_k, norm2's weight and bias; resnets have a norm2, too
    assert stock.conv_in.weight.grad.abs().max() > 1e-6
    stock.zero_grad(set_to_none=True)


def disable_order(unet: NovaUNet) -> None:
    """Take away what tells the order of views: the index embedding and the convolutions over time."""
    for module in unet.modules():
        if isinstance(module, SpatioTemporalTransformer):
            for parameter in module.time_pos_embed.parameters():
                nn.init.zeros_(parameter)
        if isinstance(module, TemporalConv):
            module.weight.data[:, :, [0, 2]] = 0  # each view's own tap stays


@torch.no_grad()
@pytest.mark.parametrize("ordered", [False, True])
def test_views_are_told_apart_by_their_camera_and_by_order(
    inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Callable[..., NovaUNet], ordered: bool
) -> None:
    unet = shaken(make_unet(alignment="gta"))
    if not ordered:
        disable_order(unet)
    turn = torch.tensor([2, 0, 3, 1])
    moved = inputs | {"sample": inputs["sample"][:, :, turn], "cameras": inputs["cameras"][:, turn]}
    apart = (unet(**moved).sample - unet(**inputs).sample[:, :, turn]).abs().max()
    assert apart > 1e-3 if ordered else apart < 1e-5


@torch.no_grad()
def test_cross_domain_is_the_spatial_arm_with_its_own_name(
    inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Callable[..., NovaUNet]
) -> None:
    spatial, cross = shaken(make_unet(alignment="gta_spatial")), make_unet(alignment="cross_domain")
    cross.load_state_dict(spatial.state_dict())
    assert torch.equal(cross(**inputs).sample, spatial(**inputs).sample)
    assert not any(".alignment." in name for name in make_unet(alignment="none").state_dict())


def test_a_short_overfit_tells_the_tasks_apart(inputs: Inputs, make_unet: Callable[..., NovaUNet]) -> None:
    """One object whose two tasks have the same noisy input and different answers: only labels can tell them."""
    unet = make_unet(alignment="gta").train()
    given = {name: value[:1] for name, value in inputs.items()}
    given["cameras"] = given["cameras"][:, :2]
    given["sample"] = given["sample"][:, :1, :2].expand(-1, 2, -1, -1, -1, -1).contiguous()
    rng = torch.Generator().manual_seed(2)
    target = torch.randn(1, 2, 2, 4, 8, 8, generator=rng) * 0.1 + torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1, 1, 1)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=4e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (unet(**given).sample - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.8 and losses[-1] < 0.1
    with torch.no_grad():
        wrong = unet(**given, tasks=TASKS[::-1]).sample
    assert (wrong - target).square().mean() > 2  # the other label gives the other task


@torch.no_grad()
def test_objects_may_come_in_any_order(
    inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Callable[..., NovaUNet]
) -> None:
    unet = shaken(make_unet(alignment="gta"))
    flipped = unet(**{name: value.flip(0) for name, value in inputs.items()}).sample
    torch.testing.assert_close(flipped.flip(0), unet(**inputs).sample, atol=1e-5, rtol=1e-4)


def test_labels_count_and_tasks_exchange_after_the_start(
    inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Callable[..., NovaUNet]
) -> None:
    unet, alone = shaken(make_unet(alignment="gta")), shaken(make_unet(alignment="none"))
    perturbed = inputs | {"sample": inputs["sample"].clone()}
    perturbed["sample"][0, Task.NORMAL] += 1
    with torch.no_grad():
        base, moved = unet(**inputs).sample, unet(**perturbed).sample
        assert (base - moved)[0, Task.RGB].abs().max() > 1e-4  # the RGB half hears of the normal half
        assert torch.equal(base[1], moved[1])  # objects never mix
        assert torch.equal(alone(**inputs).sample[0, Task.RGB], alone(**perturbed).sample[0, Task.RGB])
        turned = unet(**inputs | {"cameras": inputs["cameras"] + torch.tensor([0.5, 0.0])}).sample
        assert (turned - base).abs().max() > 1e-4
        full = unet(**inputs | {"cameras": inputs["cameras"] + torch.tensor([2 * torch.pi, 0.0])}).sample
        torch.testing.assert_close(full, base, atol=1e-4, rtol=1e-3)
        swapped = unet(**inputs | {"sample": inputs["sample"].flip(1)}, tasks=TASKS[::-1]).sample
        torch.testing.assert_close(swapped.flip(1), base, atol=1e-5, rtol=1e-4)


def test_a_batch_equals_its_objects_alone(inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Any) -> None:
    unet = shaken(make_unet(alignment="gta"))
    with torch.no_grad():
        both = unet(**inputs).sample
        singles = [unet(**{k: v[i : i + 1] for k, v in inputs.items()}).sample for i in range(2)]
    torch.testing.assert_close(both, torch.cat(singles), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(
    inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Any
) -> None:
    grads = []
    for checkpointing in (False, True):
        unet = shaken(make_unet(alignment="gta")).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**inputs).sample.square().mean().backward()
        grads.append({n: p.grad for n, p in unet.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_saving_and_loading_keeps_every_weight(
    tmp_path: Path, inputs: Inputs, make_unet: Callable[..., NovaUNet], shaken: Any
) -> None:
    unet = shaken(make_unet(alignment="gta_temporal"))
    unet.save_pretrained(tmp_path)
    loaded = NovaUNet.from_pretrained(tmp_path)
    assert loaded.config.alignment == "gta_temporal" and loaded.config.norm_groups == 8
    expected = unet.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():  # not bit for bit: weights mapped from a file lie differently in memory, and sums reorder
        torch.testing.assert_close(loaded(**inputs).sample, unet(**inputs).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alignment": "gat"}, "alignment 'gat'"),
        ({"alignment_init": "zero"}, "alignment_init 'zero'"),
        ({"id_mode": "drop"}, "id_mode 'drop'"),
        ({"projection_class_embeddings_input_dim": 96}, "must be 32"),
        ({"norm_groups": 7}, "norm_groups 7"),
    ],
)
def test_unknown_settings_are_refused(make_unet: Callable[..., NovaUNet], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_unet(**wrong)


def test_tasks_must_fit_the_sample(inputs: Inputs, make_unet: Callable[..., NovaUNet]) -> None:
    with pytest.raises(ValueError, match="2 tasks, but 1"):
        make_unet(alignment="none")(**inputs, tasks=(Task.RGB,))
