"""Short true runs: exact resume, kills, stops, several processes, bad steps, damaged data."""

import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.config import (
    DataConfig,
    HealthConfig,
    NoiseConfig,
    OptimConfig,
    PipelineConfig,
    TrainConfig,
    UNetConfig,
)
from nova3d.training.data import Batch, Prefetcher
from nova3d.training.ema import list_snapshots
from nova3d.training.logs import LossBySigma
from nova3d.training.loss import TrainingModule
from nova3d.training.setup import prepare
from nova3d.training.trainer import StopRequest, linear_decay_factor, train, train_step
from nova3d.utils.files import locked
from tests.helpers.processes import ScriptProcess

Make = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
STEADY = OptimConfig(learning_rate=1e-3, warmup=2, ema_decay=0.9)  # the rate does not depend on the run's length


def lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def losses(config: TrainConfig) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss_rgb"], row["loss_normal"]) for row in lines(Path(config.out) / "stats.jsonl")]


def start(config: TrainConfig, name: str = "train", **environment: str) -> ScriptProcess:
    """`scripts/train.py` on this config, as a process of its own."""
    path = Path(config.out).with_suffix(".yaml")
    configs.save(config, path)
    arguments = ["--config", path, "--device", "cpu"]
    return ScriptProcess(ROOT / "scripts/train.py", *arguments, logs=path.parent, name=name, **environment)


def wait_for_steps(config: TrainConfig, process: ScriptProcess, count: int) -> None:
    deadline = time.monotonic() + 240
    stats = Path(config.out) / "stats.jsonl"
    while not stats.exists() or len(stats.read_text().splitlines()) < count:
        assert process.alive, process.errors
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)


def test_an_interrupted_run_resumes_bit_for_bit_over_a_stage_switch(make_config: Make) -> None:
    late = {"noise": NoiseConfig(stages=[[0, -2.0, 0.1], [3, 2.0, 0.1]]), "steps": 5}
    whole = train(make_config("whole", **late), "cpu")

    def interrupt(done: int, _: int, __: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    config = make_config("cut", **late)
    with pytest.raises(KeyboardInterrupt):
        train(config, "cpu", interrupt)
    assert [step for step, *_ in losses(config)] == [1, 2, 3]
    resumed = train(config, "cpu")
    assert resumed.finished and resumed.step == 5
    assert losses(config) == losses(make_config("whole"))
    assert len({loss for _, loss, _ in losses(config)}) == 5
    a, b = weights(whole.path), weights(resumed.path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    # Step 3 (0-based) is the first of the second stage: its level says so, in both runs.
    for name in ("whole", "cut"):
        rows = lines(Path(make_config(name).out) / "stats.jsonl")
        assert ["loss_rgb/sigma_below_0.5" in row for row in rows] == [True] * 3 + [False] * 2
        assert ["loss_rgb/sigma_2_to_8" in row or "loss_rgb/sigma_8_to_32" in row for row in rows][3:] == [True] * 2
    record = json.loads((whole.path / "record.json").read_text())
    assert record["config"]["steps"] == 5 and record["step"] == 5
    assert isinstance(Nova3DPipeline.load(whole.path), Nova3DPipeline)
    other = type(config.model)(**(vars(config.model) | {"alignment": "none"}))
    with pytest.raises(InputError, match=r"another 'model.alignment' \(gta, this run has none\)"):
        train(make_config("cut", model=other), "cpu")
    with pytest.raises(InputError, match="another 'seed'"):
        train(make_config("cut", seed=1), "cpu")


def test_sigkill_and_resume_give_bit_equal_losses(make_config: Make) -> None:
    config = make_config("killed", steps=100_000, optim=STEADY)
    process = start(config)
    wait_for_steps(config, process, 5)
    process.kill()
    seen = len(losses(config)) + 1
    killed = losses(config)
    train(make_config("killed", steps=seen, optim=STEADY), "cpu")
    train(make_config("whole", steps=seen, optim=STEADY), "cpu")
    whole = losses(make_config("whole"))
    assert losses(config) == whole and killed == whole[: len(killed)]


def test_sigterm_saves_and_exits_with_0(make_config: Make) -> None:
    config = make_config("stopped", steps=100_000, checkpoint_every=90_000)
    process = start(config)
    wait_for_steps(config, process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, process.errors
    output = process.output
    done = losses(config)[-1][0]
    assert f"step-{done:08d}" in output and "stopped" in output
    saved = json.loads((Path(config.out) / f"checkpoints/step-{done:08d}/progress.json").read_text())
    assert saved["step"] == done and "parts.pt" in saved["files"]


def test_a_file_named_stop_ends_a_run_too(make_config: Make, tmp_path: Path) -> None:
    config = make_config(steps=50)
    with StopRequest(tmp_path / "run") as stop:

        def after_two(done: int, _: int, __: str) -> None:
            if done == 2:
                stop.file.touch()

        outcome = train(config, "cpu", after_two, stop)
    assert (outcome.finished, outcome.step, outcome.path.name) == (False, 3, "step-00000003")
    assert not stop.file.exists()


def test_two_processes_equal_one_with_the_doubled_batch_and_hand_over(make_config: Make, one_level: UNetConfig) -> None:
    """Two processes for two steps, then one process from their checkpoint: as one process all along."""
    make_config = partial(make_config, model=one_level)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    split = make_config("split", steps=2, effective_batch=4, accumulation=0, optim=STEADY, trackers=["tensorboard"])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pair = [start(split, rank, RANK=rank, LOCAL_RANK=rank, **where) for rank in "01"]
    for process in pair:
        assert process.wait() == 0, process.errors
    together = {"batch_size": 4, "effective_batch": 4, "optim": STEADY}
    whole = train(make_config("whole", **together), "cpu")
    assert [lines(Path(split.out) / "stats.jsonl")[k]["step"] for k in (0, 1)] == [1, 2]
    resumed = train(make_config("split", **together), "cpu")
    expected = torch.tensor(losses(make_config("whole")))
    torch.testing.assert_close(torch.tensor(losses(split)), expected, rtol=1e-5, atol=1e-6)
    a, b = weights(whole.path), weights(resumed.path)
    # Adam turns rounding of near-zero gradients into steps of the size of the rate, so only most weights are equal.
    apart = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert apart.quantile(0.99) < 1e-5 if apart.numel() < 2**24 else (apart < 1e-5).float().mean() > 0.99


def test_a_resumed_run_may_split_its_batch_into_other_micro_steps(make_config: Make, one_level: UNetConfig) -> None:
    """A step of one micro-step, then steps of four: as steps of one micro-step all along."""
    make_config = partial(make_config, model=one_level, effective_batch=4, accumulation=None, optim=STEADY)
    train(make_config("split", batch_size=4, steps=1), "cpu")
    before = weights(Path(make_config("split").out) / "model")
    resumed = train(make_config("split", batch_size=1, steps=3), "cpu")
    whole = train(make_config("whole", batch_size=4, steps=3), "cpu")
    expected = torch.tensor(losses(make_config("whole")))
    torch.testing.assert_close(torch.tensor(losses(make_config("split"))), expected, rtol=1e-5, atol=1e-6)
    a, b = weights(whole.path), weights(resumed.path)
    assert any(not torch.equal(before[name], b[name]) for name in b)
    # Adam turns rounding of near-zero gradients into steps of the size of the rate, so only most weights are equal.
    apart = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert (apart < 1e-5).float().mean() > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effective_batch": 5, "batch_size": 2}, r"effective_batch=5 is not a multiple of batch_size 2 x 1 processes"),
        ({"effective_batch": 4, "accumulation": 3}, "accumulation 3 = 3, not effective_batch=4"),
        ({"mixed_precision": "fp16"}, "mixed_precision: 'fp16' is not one of no, bf16, auto"),
        ({"trackers": ["comet"]}, r"trackers\[0\]: 'comet' is not one of tensorboard, wandb"),
        ({"noise": NoiseConfig(stages=[[5, 0.0, 1.0]])}, "noise.stages: noise stages must start at step 0"),
        ({"svd": "x", "vae": "y"}, "svd= brings all three networks"),
        ({"resume": "nowhere"}, "checkpoint 'nowhere' does not exist"),
        ({"pipeline": PipelineConfig(camera_preset="ortho16")}, "camera_preset=ortho16"),
        ({"vae": ""}, "vae= must name"),
        ({"vae": "nowhere"}, "no config.json"),
        ({"unet": "nowhere"}, "no config.json"),
    ],
)
def test_what_cannot_run_ends_in_one_line(make_config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(make_config(**changes), "cpu")
    assert "\n" not in str(caught.value)


def spoil(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int], factor: float) -> None:
    true, calls = TrainingModule.forward, [0]

    def forward(self: TrainingModule, batch: Batch) -> Tensor:
        calls[0] += 1
        return true(self, batch) * (factor if calls[0] in bad_calls else 1.0)

    monkeypatch.setattr(TrainingModule, "forward", forward)


def test_a_non_finite_step_is_skipped_with_its_objects_named(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2}, float("nan"))
    config = make_config(steps=3)
    result = train(config, "cpu")
    assert all(bool(torch.isfinite(w).all()) for w in weights(result.path).values())
    state = torch.load(Path(config.out) / "checkpoints/step-00000003/parts.pt", weights_only=True)
    assert state["ema"]["updates"] == 2
    (bad,) = lines(Path(config.out) / "bad-steps.jsonl")
    assert bad["step"] == 2 and "not finite" in bad["reason"] and bad["uids"][0] in {"o0", "o1", "o2"}
    rows = lines(Path(config.out) / "stats.jsonl")
    assert [row["skipped"] for row in rows] == [0, 1, 0] and "loss" not in rows[1]


def test_a_spike_is_skipped(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova3d.training.logs.MIN_HISTORY", 3)
    spoil(monkeypatch, {5}, 1e4)
    config = make_config(steps=6, health=HealthConfig(spike=50.0))
    train(config, "cpu")
    (bad,) = lines(Path(config.out) / "bad-steps.jsonl")
    assert bad["step"] == 5 and "over 50 times its median" in bad["reason"]


def test_five_in_a_row_stop_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(1, 99)), float("nan"))
    config = make_config(steps=20, checkpoint_every=100)
    with pytest.raises(InputError, match=r"5 bad steps in a row, last step 5 .*bad-steps.jsonl"):
        train(config, "cpu")
    assert len(lines(Path(config.out) / "bad-steps.jsonl")) == 5


def test_new_and_pretrained_gradients_make_up_the_norm(make_config: Make) -> None:
    config = make_config(steps=2, trackers=["tensorboard"])
    train(config, "cpu")
    for row in lines(Path(config.out) / "stats.jsonl"):
        assert row["grad_norm_new"] > 0 and row["grad_norm_base"] > 0
        assert row["grad_norm"] ** 2 == pytest.approx(row["grad_norm_new"] ** 2 + row["grad_norm_base"] ** 2, rel=1e-4)
    assert list((Path(config.out) / "logs").glob("events.out.tfevents.*"))


def test_a_damaged_object_is_fatal_or_left_out_by_config(
    make_config: Make, make_shards: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards(tmp_path / "shards", objects=3, per_shard=1)
    shard = folder / "shard-00001.tar"
    content = bytearray(shard.read_bytes())
    offset, _ = json.loads((folder / "index.json").read_text())["samples"][1]["members"]["rgb.000.png"]
    content[offset + 20] ^= 255
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00001.tar' is damaged or truncated at object 'o1'"):
        prepare(make_config(data=DataConfig(str(folder))), "cpu")  # before the first step
    config = make_config(data=DataConfig(str(folder), on_corrupt="skip"))
    train(config, "cpu")
    assert caplog.text.count("object 'o1' is left out") == 1
    assert lines(Path(config.out) / "stats.jsonl")[-1]["lost_objects"] >= 1
    shard.unlink()
    with pytest.raises(InputError, match=r"shard-00001.tar' is missing"):
        prepare(make_config("other", data=DataConfig(str(folder))), "cpu")


def test_validation_scores_raw_and_averaged_weights_and_keeps_the_best(make_config: Make, shards: Path) -> None:
    data = DataConfig(str(shards), str(shards))
    config = make_config(data=data, validate_every=1, validation_objects=2, steps=3)
    train(config, "cpu")
    out = Path(config.out)
    rows = lines(out / "validation.jsonl")
    assert [(row["step"], row["weights"]) for row in rows] == [(s, w) for s in (1, 2, 3) for w in ("raw", "ema")]
    assert rows[0]["psnr"] != rows[1]["psnr"]
    averaged = [row["psnr"] for row in rows if row["weights"] == "ema"]
    best = json.loads((out / "model-best/record.json").read_text())["step"]
    assert averaged[best - 1] == max(averaged)
    assert isinstance(Nova3DPipeline.load(out / "model-best"), Nova3DPipeline)
    assert len(list((out / "validation/step-00000003").glob("*.png"))) == 4


def test_the_rate_warms_up_holds_and_decays_to_a_twentieth() -> None:
    config = OptimConfig(warmup=10, decay_from=0.5)
    assert linear_decay_factor(config, 0, 100) == pytest.approx(0.1)
    assert linear_decay_factor(config, 9, 100) == linear_decay_factor(config, 49, 100) == 1.0
    assert linear_decay_factor(config, 75, 100) == pytest.approx(1 - 0.95 / 2)
    assert linear_decay_factor(config, 100, 100) == pytest.approx(0.05)
    assert linear_decay_factor(OptimConfig(warmup=0), 9, 10) == 1.0


def test_a_second_run_in_a_folder_is_refused_in_one_line(make_config: Make) -> None:
    config = make_config()
    Path(config.out).mkdir()
    with locked(config.out), pytest.raises(InputError, match="a training run is at work in") as caught:
        train(config, "cpu")
    assert "\n" not in str(caught.value) and not (Path(config.out) / "config.yaml").exists()


def test_a_run_that_is_refused_changes_no_file(make_config: Make, one_level: UNetConfig, shards: Path) -> None:
    make_config = partial(make_config, model=one_level, steps=1, trackers=["tensorboard"])
    out = Path(make_config().out)
    train(make_config(), "cpu")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="another 'seed'"):
        train(make_config(seed=5), "cpu")
    lost = DataConfig(str(shards), validation="nowhere")
    with pytest.raises(InputError, match="nowhere"):
        train(make_config(data=lost, validate_every=1, log_every=3), "cpu")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resume", ["never", "older"])
def test_a_run_that_starts_earlier_drops_what_later_steps_left(
    make_config: Make, one_level: UNetConfig, monkeypatch: pytest.MonkeyPatch, resume: str
) -> None:
    optim = OptimConfig(ema_profiles=[0.05], snapshot_every=1)
    make_config = partial(make_config, model=one_level, optim=optim, checkpoint_every=1, keep_checkpoints=9)
    out = Path(make_config().out)
    with monkeypatch.context() as first:
        spoil(first, {1, 3}, float("nan"))
        train(make_config(steps=3), "cpu")
    assert [line["step"] for line in lines(out / "bad-steps.jsonl")] == [1, 3]
    again = "never" if resume == "never" else str(out / "checkpoints/step-00000001")
    train(make_config(steps=2, resume=again), "cpu")
    assert [step for step, *_ in list_snapshots(out)] == [1, 2]
    assert [line["step"] for line in lines(out / "bad-steps.jsonl")] == ([] if resume == "never" else [1])


def test_a_resumed_run_goes_on_with_its_run_of_wandb(
    make_config: Make, one_level: UNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    wandb: Any = ModuleType("wandb")
    wandb.Error = type("Error", (Exception,), {})
    wandb.config = SimpleNamespace(update=lambda *_, **__: None)
    wandb.init = lambda **settings: (
        opened.append(settings) or SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("nova3d.training.logs.has", lambda _: True)
    make_config = partial(make_config, model=one_level, trackers=["wandb"], checkpoint_every=1)
    train(make_config(steps=1), "cpu")
    train(make_config(steps=2), "cpu")
    train(make_config(steps=1, resume="never"), "cpu")
    train(make_config("other", steps=1), "cpu")
    assert [settings["resume"] for settings in opened] == ["allow"] * 4
    first, resumed, anew, other = (settings["id"] for settings in opened)
    assert first == resumed and len({first, anew, other}) == 3


def test_a_resumed_run_follows_its_configs_learning_rate(make_config: Make) -> None:
    done = train(make_config(steps=2, optim=STEADY), "cpu", stop=lambda: True)
    run = prepare(make_config(optim=OptimConfig(learning_rate=5e-4, warmup=0)), "cpu")
    run.load_state(done.path)
    with Prefetcher(run.loader, run.loader.global_batch.schedule(1, 2), 0) as batches:
        train_step(run, 1, batches, LossBySigma(torch.device("cpu")), lambda: False)
    assert {group["lr"] for group in run.optimizer.param_groups} == {5e-4}
