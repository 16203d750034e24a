"""FSDP for real: two processes on a CPU under the shipped launcher config, against one process without it."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.config import DataConfig, OptimConfig, TrainConfig, UNetConfig
from nova3d.training.setup import prepare
from nova3d.training.trainer import train
from tests.helpers.processes import ScriptProcess

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"
Make = Callable[..., TrainConfig]


def lines(config: TrainConfig, name: str = "stats.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.out) / name).read_text().splitlines()]


def curve(config: TrainConfig) -> torch.Tensor:
    """[steps,5] what the log says of each step's arithmetic."""
    names = ("loss_rgb", "loss_normal", "grad_norm", "grad_norm_new", "grad_norm_base")
    return torch.tensor([[row[name] for name in names] for row in lines(config)])


def train_sharded(runs: list[TrainConfig]) -> None:
    """One after the other in the same two processes, with the environment `accelerate launch` would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["--config_file", str(ROOT / "configs/accelerate/fsdp.yaml"), "--num_processes", "2", "any.py"]
    settings, _, _ = _validate_launch_command(launch_command_parser().parse_args(launcher))
    settings.main_process_port = int(port)
    environment = prepare_multi_gpu_env(settings) | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    paths = [Path(config.out).with_suffix(".yaml") for config in runs]
    for config, path in zip(runs, paths, strict=True):
        configs.save(config, path)
    script, logs = Path(__file__).with_name("sharded.py"), paths[0].parent
    pair = [
        ScriptProcess(script, *paths, logs=logs, name=rank, **(environment | {"RANK": rank, "LOCAL_RANK": rank}))
        for rank in "01"
    ]
    try:
        for process in pair:
            assert process.wait(900) == 0, process.output + process.errors
    finally:
        for process in pair:
            process.kill()  # one that waits for the other's part


def test_sharded_runs_equal_unsharded_ones(make_config: Make, shards: Path, one_level: UNetConfig) -> None:
    """Losses, gradient norms, averages, validation of fewer objects than processes, resume and the saved model."""
    common: dict[str, Any] = {
        "effective_batch": 4,
        "steps": 2,
        "checkpoint_every": 1,
        "data": DataConfig(str(shards), str(shards)),
        "model": one_level,  # every weight and block is a message between the processes
        "optim": OptimConfig(learning_rate=1e-3, warmup=2, ema_decay=0.9),
        "validate_every": 2,
        "validation_objects": 1,
    }
    split = make_config("split", accumulation=0, **common)
    again = replace(split, out=f"{split.out}-again", resume=f"{split.out}/checkpoints/step-00000001", validate_every=0)
    half = replace(split, out=f"{split.out}-bf16", mixed_precision="bf16", steps=1, validate_every=0)
    train_sharded([split, again, half])

    whole = make_config("whole", batch_size=4, **common)
    train(whole, "cpu")
    torch.testing.assert_close(curve(split), curve(whole), rtol=1e-4, atol=1e-5)
    for row, truth in zip(lines(split, "validation.jsonl"), lines(whole, "validation.jsonl"), strict=True):
        assert row.pop("weights") == truth.pop("weights")
        assert row == pytest.approx(truth, rel=1e-3)

    saved = [load_file(Path(config.out) / "model" / UNET) for config in (split, whole)]
    assert saved[0].keys() == saved[1].keys()
    # Adam turns rounding of near-zero gradients into steps of the size of the rate, so only most weights are equal.
    apart = torch.cat([(saved[0][name] - saved[1][name]).abs().flatten() for name in saved[0]])
    assert (apart < 1e-5).float().mean() > 0.99
    for folder in ("model", "model-best"):
        assert isinstance(Nova3DPipeline.load(Path(split.out) / folder), Nova3DPipeline)

    shares = sorted((Path(split.out) / "checkpoints/step-00000002/pytorch_model_fsdp_0").glob("*.distcp"))
    sizes = [file.stat().st_size for file in shares]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)  # each process has written its half

    assert torch.equal(curve(again), curve(split)[1:])
    resumed = load_file(Path(again.out) / "model" / UNET)
    assert all(torch.equal(resumed[name], value) for name, value in saved[0].items())

    AcceleratorState._reset_state()  # it holds the precision of the run before
    plain = make_config("whole-bf16", batch_size=4, mixed_precision="bf16", **(common | {"steps": 1}))
    train(replace(plain, validate_every=0), "cpu")
    AcceleratorState._reset_state()
    torch.testing.assert_close(curve(half), curve(plain), rtol=2e-2, atol=0)
    with pytest.raises(InputError, match=r"another 'sharding' \(FSDP, this run has none\)"):
        train(replace(whole, out=split.out), "cpu")


@pytest.mark.parametrize(
    ("version", "message"), [("1", "needs FSDP of version 2"), ("2", "FSDP shards over GPUs only")]
)
def test_what_fsdp_cannot_do_here_is_one_line(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        prepare(make_config(), "cpu")
