"""Averages, checkpoints, the stats log and the learning rate: what a resumed run stands on."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.training.checkpoint import (
    check_space,
    list_checkpoints,
    load_checkpoint,
    read_states,
    save_checkpoint,
    write_states,
)
from nova3d.training.config import OptimConfig
from nova3d.training.ema import (
    EMA,
    constant_decay,
    posthoc_average,
    posthoc_weights,
    power_decay,
    power_exponent,
    save_snapshot,
)
from nova3d.training.logs import LossBySigma, StatsLog, gradient_norms
from nova3d.training.trainer import learning_rate_factor


def writer(model: nn.Module) -> Callable[[Path], None]:
    return lambda folder: write_states(folder, {"model": model.state_dict()})


def reader(model: nn.Module) -> Callable[[Path], None]:
    return lambda folder: read_states(folder, {"model": model})


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


def test_checkpoints_keep_two_and_ignore_half_written_ones(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        save_checkpoint(tmp_path, step, writer(model), {"model": {"width": 2}})
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    half = tmp_path / "checkpoints/step-00000009.part"
    half.mkdir()
    (half / "parts.pt").write_bytes(b"half")
    fresh = nn.Linear(2, 2)
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}) == 3
    assert torch.equal(fresh.weight, model.weight)
    assert load_checkpoint(tmp_path / "none", reader(fresh), {}) == 0
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}, "never") == 0
    older = str(tmp_path / "checkpoints/step-00000002")
    assert load_checkpoint(tmp_path, reader(fresh), {"model": {"width": 2}}, older) == 2
    assert fresh.weight[0, 0] == 2.0


@pytest.mark.parametrize("content", ["cut", "garbage", "empty", "no progress"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(8, 8)
    for step in (1, 2):
        nn.init.constant_(model.weight, float(step))
        path = save_checkpoint(tmp_path, step, writer(model), {})
    file = path / "parts.pt"
    whole = file.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "garbage": b"\x00" * len(whole), "empty": b""}
    if content == "no progress":
        (path / "progress.json").unlink()
    else:
        file.write_bytes(damaged[content])
    fresh = nn.Linear(8, 8)
    assert load_checkpoint(tmp_path, reader(fresh), {}) == 1
    assert fresh.weight[0, 0] == 1.0
    assert "step-00000002' is truncated or damaged" in caplog.text and "the one before is taken" in caplog.text
    (tmp_path / "checkpoints/step-00000001/parts.pt").write_bytes(b"")
    with pytest.raises(InputError, match="there is none before it"):
        load_checkpoint(tmp_path, reader(fresh), {})
    save_checkpoint(tmp_path, 1, writer(model), {}, keep=1)  # what the run goes on from is never the damaged one
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(tmp_path, reader(fresh), {}) == 1


def test_a_checkpoint_of_another_model_or_other_data_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, writer(nn.Linear(2, 2)), {"model": {"width": 2, "arm": "gta"}, "shards": "a"})
    for identity, message in (
        ({"model": {"width": 2, "arm": "gta"}, "shards": "b"}, r"another 'shards' \(a, this run has b\)"),
        ({"model": {"width": 2, "arm": "none"}, "shards": "a"}, r"another 'model.arm' \(gta, this run has none\)"),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path, reader(nn.Linear(2, 2)), identity)


def test_an_unwritable_folder_and_a_full_disk_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "file", 1, writer(nn.Linear(1, 1)), {})
    with pytest.raises(InputError, match="cannot be written"):
        StatsLog(tmp_path / "file" / "sub" / "stats.jsonl", 0)

    def full(folder: Path) -> None:
        (folder / "a").write_text("x")
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, 1, writer(nn.Linear(1, 1)), {})
    with pytest.raises(InputError, match="No space left on device; older checkpoints are kept"):
        save_checkpoint(tmp_path, 2, full, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    with pytest.raises(InputError, match=r"lacks .* GB for its checkpoints"):
        check_space(tmp_path, 10**18, 2)
    check_space(tmp_path, 1, 2)


def test_stats_are_means_and_are_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    log = StatsLog(path, 0)
    log.add(0, {"loss": 1.0})
    log.add(1, {"loss": 3.0, "other": 5.0})
    assert log.flush({"extra": 1.0}) == {"loss": 2.0, "other": 5.0, "extra": 1.0}
    assert log.flush() == {}
    log.add(2, {"loss": 7.0})
    log.flush()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    StatsLog(path, 2)
    expected = {"step": 2, "loss": 2.0, "other": 5.0, "extra": 1.0}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [expected]


def test_losses_are_told_apart_by_task_and_noise_level() -> None:
    table = LossBySigma(torch.device("cpu"))
    table.add(torch.tensor([[1.0, 10.0], [3.0, float("nan")], [5.0, 50.0]]), torch.tensor([1.0, 1.9, 100.0]))
    means = LossBySigma.means(table.pop())
    assert means == {
        "loss_rgb/sigma_0.5_to_2": 2.0,
        "loss_rgb/sigma_above_32": 5.0,
        "loss_normal/sigma_0.5_to_2": 10.0,
        "loss_normal/sigma_above_32": 50.0,
    }
    assert LossBySigma.means(table.pop()) == {}


def test_gradients_of_new_and_of_other_parameters_are_told_apart() -> None:
    model = nn.Linear(2, 2)
    assert gradient_norms(model, {"bias"}) == {}
    model.weight.grad, model.bias.grad = torch.full((2, 2), 2.0), torch.tensor([3.0, 4.0])
    assert gradient_norms(model, {"bias"}) == {"grad_norm_new": 5.0, "grad_norm_base": 4.0}


def test_the_rate_warms_up_holds_and_decays_to_a_twentieth() -> None:
    config = OptimConfig(warmup=10, decay_from=0.5)
    assert learning_rate_factor(config, 0, 100) == pytest.approx(0.1)
    assert learning_rate_factor(config, 9, 100) == learning_rate_factor(config, 49, 100) == 1.0
    assert learning_rate_factor(config, 75, 100) == pytest.approx(1 - 0.95 / 2)
    assert learning_rate_factor(config, 100, 100) == pytest.approx(0.05)
    assert learning_rate_factor(OptimConfig(warmup=0), 9, 10) == 1.0
