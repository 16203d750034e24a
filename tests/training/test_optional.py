"""What needs packages that the default set leaves out: 8-bit Adam and W&B."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nova3d.errors import InputError
from nova3d.training.config import OptimConfig, TrainConfig
from nova3d.training.setup import prepare
from nova3d.training.trainer import train

Make = Callable[..., TrainConfig]
GOLDEN = Path(__file__).with_name("golden.json")


def losses(config: TrainConfig) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (Path(config.out) / "stats.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss_rgb"], row["loss_normal"]) for row in rows]


@pytest.mark.extras
def test_eight_bit_adam_follows_adams_loss_curve_and_resumes_exactly(make_config: Make) -> None:
    """Means of ten steps, against the known ones of 32-bit AdamW on the same draws."""
    pytest.importorskip("bitsandbytes")
    optim = OptimConfig(name="adamw8bit", learning_rate=1e-3, warmup=5, ema_decay=0.9)
    config = make_config(steps=50, checkpoint_every=48, optim=optim)
    train(config, "cpu")
    golden = json.loads(GOLDEN.read_text())
    for column, key in enumerate(("loss_rgb", "loss_normal"), start=1):
        means = [sum(row[column] for row in losses(config)[k : k + 10]) / 10 for k in range(0, 50, 10)]
        assert means == pytest.approx(golden[key], rel=0.1), (key, means)
    resumed = replace(config, out=f"{config.out}-again", resume=f"{config.out}/checkpoints/step-00000048")
    train(resumed, "cpu")
    assert losses(resumed) == losses(config)[48:]


@pytest.mark.extras
def test_eight_bit_moments_take_a_quarter_of_the_memory(make_config: Make) -> None:
    pytest.importorskip("bitsandbytes")
    run = prepare(make_config(optim=OptimConfig(name="adamw8bit")), "cpu")
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    large = [p for p in run.model.parameters() if p.requires_grad and p.numel() >= 4096]  # smaller ones stay in float32
    moments = ("state1", "state2", "absmax1", "absmax2")
    held = sum(run.optimizer.state[p][name].nbytes for p in large for name in moments)
    assert held == pytest.approx(2 * sum(p.numel() for p in large), rel=0.02)


@pytest.mark.extras
def test_wandb_keeps_a_run_on_the_disk(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it keeps the mode it was first used in
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = make_config(steps=2, trackers=["wandb"])
    train(config, "cpu")
    assert wandb.run is None  # finished, so that nothing is lost where the process is killed later
    (record,) = (Path(config.out) / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for written in (b"nova3d", b"optim.learning_rate", b"grad_norm_new"):
        assert written in content, written


@pytest.mark.extras
def test_wandb_without_an_account_is_one_line(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb").teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"wandb does not start \(.+\); WANDB_MODE=offline needs no account"):
        train(make_config(trackers=["wandb"]), "cpu")


@pytest.mark.parametrize("package", ["wandb", "bitsandbytes"])
def test_a_missing_package_is_one_line(make_config: Make, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in ("optim", "logs"):
        monkeypatch.setattr(f"nova3d.training.{module}.has", lambda name: name != package)
    config = make_config(trackers=["wandb"] if package == "wandb" else [], optim=OptimConfig(name="adamw8bit"))
    message = {
        "wandb": "wandb is not installed; `pip install 'nova3d\\[wandb\\]'`",
        "bitsandbytes": "optim.name 'adamw8bit' needs bitsandbytes: `pip install 'nova3d\\[adam8bit\\]'`",
    }
    with pytest.raises(InputError, match=message[package]):
        prepare(config, "cpu")
