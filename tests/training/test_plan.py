"""The cost of a run: counted, and tried for one step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from nova3d.errors import InputError
from nova3d.training.config import OptimConfig, TrainConfig, UNetConfig
from nova3d.training.devices import use_device
from nova3d.training.plan import dry_run, plan

ROOT = Path(__file__).parents[2]
Make = Callable[..., TrainConfig]


def test_the_plan_counts_a_step_of_a_small_model(make_config: Make, one_level: UNetConfig) -> None:
    optim = OptimConfig(name="adamw8bit", ema_device="cpu")
    whole = plan(make_config(batch_size=2, model=one_level), 32)
    assert whole.weights == 4 * whole.parameters and whole.averages == 4 * whole.trained
    assert whole.optimizer == 8 * whole.trained and 0 < whole.new < whole.trained < whole.parameters
    frugal = plan(make_config(gradient_checkpointing=True, optim=optim, model=one_level), 32)
    assert frugal.optimizer == 2 * whole.trained and frugal.averages == 0
    assert whole.flops == pytest.approx(2 * frugal.flops)
    assert 0.1 < frugal.activations / whole.activations < 0.4  # half the objects, and less kept of each


def test_the_plan_takes_the_precision_and_the_device_of_the_run(make_config: Make, one_level: UNetConfig) -> None:
    activations = [
        plan(make_config(mixed_precision=precision, model=one_level), 32, device="cuda").activations
        for precision in ("auto", "bf16", "no")
    ]
    assert activations[0] == activations[1] < activations[2]
    AcceleratorState._reset_state(reset_partial_state=True)
    next(dry_run(make_config(model=one_level), "cpu"))
    assert PartialState()._cpu  # which Accelerator(cpu=True) cannot change any more


def test_a_named_gpu_becomes_the_current_one_where_no_launcher_shares_gpus_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:3"):
        use_device(device)
    assert chosen == [torch.device("cuda:3")]
    monkeypatch.setenv("LOCAL_RANK", "0")
    use_device("cuda")
    with pytest.raises(InputError, match="device 'cuda:3' names one GPU, but the launcher gives every process its own"):
        use_device("cuda:3")


def test_a_dry_run_takes_one_step_and_writes_no_run(make_config: Make) -> None:
    config = make_config(trackers=["tensorboard"])
    lines = list(dry_run(config, "cpu", peak=1.0))
    assert any(line.startswith("activations") for line in lines) and lines[-1].startswith("loss")
    assert not list(Path(config.out).iterdir())
