"""Averages: their formulas, other widths from snapshots, sharded weights."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from nova3d.errors import InputError
from nova3d.training.ema import (
    EMA,
    constant_decay,
    posthoc_average,
    posthoc_weights,
    power_decay,
    power_exponent,
    save_snapshot,
)
from nova3d.training.validation import save_model


@pytest.mark.parametrize("warmup", ["none", "inverse"])
def test_ema_follows_its_formula(warmup: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema, expected = EMA(model, constant_decay(0.9, warmup)), 1.0
    for n, value in enumerate((2.0, -3.0, 5.0), start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n)) if warmup == "inverse" else 0.9
        expected = decay * expected + (1 - decay) * value
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-6)
    with ema.applied(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5.0
    other = EMA(nn.Linear(1, 1, bias=False), constant_decay(0.9, warmup), "cpu")
    other.load_state_dict(ema.state_dict())
    assert other.updates == 3 and torch.equal(other.weights["weight"], ema.weights["weight"])
    with pytest.raises(KeyError, match="other names"):
        EMA(nn.Linear(1, 1), constant_decay(0.9)).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match="shape"):
        EMA(nn.Linear(2, 1, bias=False), constant_decay(0.9)).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match="'linear'"):
        constant_decay(0.9, "linear")


def test_frozen_weights_are_not_averaged_and_bfloat16_ones_are_in_float32() -> None:
    model = nn.Linear(2, 2).to(torch.bfloat16)
    model.bias.requires_grad_(False)
    ema = EMA(model, constant_decay(0.999))
    nn.init.zeros_(model.weight)
    before = ema.weights["weight"].clone()
    ema.update(model)
    assert set(ema.weights) == {"weight"} and ema.weights["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.weights["weight"], before * 0.999)  # bfloat16 would round this step away


def test_weights_are_averaged_in_chunks_of_a_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    lerp = torch._foreach_lerp_

    def count(averages: list[torch.Tensor], values: list[torch.Tensor], share: float) -> None:
        sizes.append(sum(value.numel() for value in values))
        lerp(averages, values, share)

    monkeypatch.setattr(torch, "_foreach_lerp_", count)
    monkeypatch.setattr("nova3d.training.ema.CHUNK", 8)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 4))
    ema = EMA(model, constant_decay(0.5))
    before = {name: value.clone() for name, value in ema.weights.items()}
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    ema.update(model)
    assert sizes == [6, 6, 3, 12, 4]  # 4 + 2, 6, 3, one larger than a chunk, 4
    for name, value in ema.weights.items():
        torch.testing.assert_close(value, (before[name] + 1) / 2)


def test_applied_restores_the_weights_after_an_error() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    ema = EMA(model, constant_decay(0.5))
    nn.init.zeros_(model.weight)
    with pytest.raises(RuntimeError, match="stop"), ema.applied(model):
        assert torch.equal(model.weight, before)
        raise RuntimeError("stop")
    assert not model.weight.any()


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_a_power_profile_has_its_width_and_its_recursion_gives_it(sigma_rel: float) -> None:
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = tau ** power_exponent(sigma_rel)
    density /= density.sum()
    mean = (density * tau).sum()
    assert float(((tau - mean) ** 2 * density).sum().sqrt()) == pytest.approx(sigma_rel, rel=1e-4)
    # Averaging the step's number itself: the profile's mean, (gamma + 1) / (gamma + 2) of the run.
    decay, average, n = power_decay(sigma_rel), 0.0, 4000
    for step in range(1, n + 1):
        average = decay(step) * average + (1 - decay(step)) * step
    gamma = power_exponent(sigma_rel)
    assert average / n == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)


def test_snapshots_are_mixed_into_another_length(tmp_path: Path) -> None:
    """Weights that follow a curve: the mixture must be near the average that was truly run, nearer than the stored."""
    model = nn.Linear(1, 1, bias=False)
    rels, wanted = (0.05, 0.1), 0.07
    stored = {rel: EMA(model, power_decay(rel)) for rel in rels}
    true = EMA(model, power_decay(wanted))
    for step in range(1, 801):
        nn.init.constant_(model.weight, math.sin(step / 60))
        for average in (*stored.values(), true):
            average.update(model)
        if step % 50 == 0:
            for rel, average in stored.items():
                save_snapshot(tmp_path, step, rel, average)
    truth = true.weights["weight"].item()
    mixed = posthoc_average(tmp_path, wanted)["weight"].item()
    nearest = min(abs(average.weights["weight"].item() - truth) for average in stored.values())
    assert abs(mixed - truth) < 0.02 < nearest
    shares = posthoc_weights([(t, rel) for t in (400, 800) for rel in rels], 800, 0.1)
    torch.testing.assert_close(torch.from_numpy(shares), torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
    with pytest.raises(InputError, match="holds no snapshot"):
        posthoc_average(tmp_path / "none", 0.07)


def test_processes_that_write_nothing_copy_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights are copied")

    monkeypatch.setattr(EMA, "state_dict", refuse)
    monkeypatch.setattr("nova3d.training.validation.full_state_dict", refuse)
    model = nn.Linear(2, 2)
    average = EMA(model, constant_decay(0.5))
    save_snapshot(tmp_path, 1, 0.05, average, is_main=False)
    waited: list[bool] = []
    accelerator = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(True))
    run: Any = SimpleNamespace(accelerator=accelerator, model=model, ema=average)
    save_model(run, tmp_path / "model", 1)
    assert waited and not list(tmp_path.iterdir())


def test_sharded_weights_are_averaged_and_saved_whole() -> None:
    """FSDP 2 shards parameters as DTensors: their average must equal that of whole ones, and load into either."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain, sharded = nn.Linear(3, 4), nn.Linear(3, 4)
        sharded.load_state_dict(plain.state_dict())
        for name, value in list(sharded.named_parameters()):
            setattr(sharded, name, nn.Parameter(distribute_tensor(value.data, mesh, [Shard(0)])))
        assert isinstance(sharded.weight, DTensor)
        a, b = EMA(plain, constant_decay(0.5)), EMA(sharded, constant_decay(0.5))
        for model in (plain, sharded):
            with torch.no_grad():
                model.weight.mul_(3)
        a.update(plain)
        b.update(sharded)
        state = b.state_dict()
        assert not isinstance(state["weights"]["weight"], DTensor)
        torch.testing.assert_close(state["weights"], a.state_dict()["weights"])
        a.load_state_dict(state)
        b.load_state_dict(a.state_dict())
        with b.applied(sharded):
            torch.testing.assert_close(sharded.weight.full_tensor(), a.weights["weight"])
    finally:
        torch.distributed.destroy_process_group()
