"""Muon against its formula, its AdamW half against torch's, and on a problem with a known solution."""

import pytest
import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.training.optim import Muon, ParameterGroup, is_matrix, make_optimizer, orthogonalised


def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_singular_vectors() -> None:
    rng = torch.Generator().manual_seed(0)
    for shape in ((2, 24, 60), (2, 60, 24), (1, 16, 16)):
        given = torch.randn(shape, generator=rng)
        u, _, v = torch.linalg.svd(given.double(), full_matrices=False)
        inner = u.mT @ orthogonalised(given).double() @ v.mT
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        assert float(diagonal.min()) > 0.5 and float(diagonal.max()) < 1.3
        assert float((inner - torch.diag_embed(diagonal)).abs().max()) < 0.05
    assert not orthogonalised(torch.zeros(1, 4, 4)).any()


def test_muon_takes_the_step_of_its_formula_on_kernels() -> None:
    """Nesterov momentum, flattened, orthogonalised, scaled by sqrt(rows / columns), with decoupled decay."""
    rng = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(8, 2, 1, 2, generator=rng), torch.randn(2, 8, 2, 1, 2, generator=rng)
    weight = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight], "muon": True, "lr": 0.1, "weight_decay": 0.5}], momentum=0.9)
    expected, momentum = start.clone(), torch.zeros(8, 4)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        flat = gradient.flatten(1)
        momentum = 0.9 * momentum + 0.1 * flat
        direction = orthogonalised((0.1 * flat + 0.9 * momentum)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (8 / 4) ** 0.5 * direction.view_as(expected)
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_groups_without_muon_follow_torchs_adamw() -> None:
    rng = torch.Generator().manual_seed(2)
    ours, theirs = (nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    pair = (
        Muon([{"params": [ours], **settings}], betas=(0.8, 0.95)),
        torch.optim.AdamW([theirs], betas=(0.8, 0.95), **settings),
    )
    for _ in range(5):
        gradient = torch.randn(5, 3, generator=rng)
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_muon_solves_an_ill_conditioned_linear_problem_and_resumes_bit_equal() -> None:
    """Matrix least squares with a condition number of 1e4: gradient descent at its best rate would still be far off."""
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 12, generator=rng) * torch.logspace(0, -2, 12)
    target = torch.randn(12, 12, generator=rng)

    def run(weight: nn.Parameter, optimizer: Muon, first: int, last: int) -> float:
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
            loss = (inputs @ (weight - target).T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float((inputs @ (weight.detach() - target).T).square().mean())

    def fresh() -> tuple[nn.Parameter, Muon]:
        weight = nn.Parameter(torch.zeros(12, 12))
        return weight, Muon([{"params": [weight], "muon": True, "lr": 0.3}])

    weight, optimizer = fresh()
    assert run(weight, optimizer, 0, 200) < 1e-3 * float((inputs @ target.T).square().mean())
    half, first = fresh()
    run(half, first, 0, 90)
    again, second = fresh()
    with torch.no_grad():
        again.copy_(half)
    second.load_state_dict(first.state_dict())
    run(again, second, 90, 200)
    assert torch.equal(again, weight)


def test_which_parameters_are_matrices() -> None:
    conv, bias, wide = nn.Conv2d(4, 8, 3).weight, nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(1, 9))
    assert is_matrix("down_blocks.0.conv1.weight", conv)
    assert not is_matrix("conv_in.weight", conv) and not is_matrix("decoder.conv_out.weight", conv)
    assert not is_matrix("norm.bias", bias) and not is_matrix("mix.weight", wide)
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([{"params": [bias], "muon": True}])
    with pytest.raises(InputError, match="'sgd' is not one of adamw, adamw8bit, muon"):
        make_optimizer("sgd", [ParameterGroup("all", 0.1, 0.0, parameters=[bias])], (0.9, 0.99), torch.device("cpu"))
