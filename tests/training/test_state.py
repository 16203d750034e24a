"""EMA, checkpoints, the stats log and the learning rate: what a resumed run stands on."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.training.checkpoint import list_checkpoints, load_checkpoint, read_checkpoint, save_checkpoint
from nova3d.training.config import OptimConfig
from nova3d.training.ema import EMA
from nova3d.training.stats import StatsLog
from nova3d.training.trainer import rate


@pytest.mark.parametrize("warmup", ["none", "inverse"])
def test_ema_follows_its_formula(warmup: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema, expected = EMA(model, 0.9, warmup), 1.0
    for n, value in enumerate((2.0, -3.0, 5.0), start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n)) if warmup == "inverse" else 0.9
        expected = decay * expected + (1 - decay) * value
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-6)
    with ema.applied(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5.0
    other = EMA(nn.Linear(1, 1, bias=False), 0.9, warmup)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 3 and torch.equal(other.weights["weight"], ema.weights["weight"])
    with pytest.raises(KeyError, match="other names"):
        EMA(nn.Linear(1, 1), 0.9).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match="'linear'"):
        EMA(model, 0.9, "linear")


def test_applied_restores_the_weights_after_an_error() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    ema = EMA(model, 0.5)
    nn.init.zeros_(model.weight)
    with pytest.raises(RuntimeError, match="stop"), ema.applied(model):
        assert torch.equal(model.weight, before)
        raise RuntimeError("stop")
    assert not model.weight.any()


def test_checkpoints_keep_two_and_ignore_half_written_ones(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        save_checkpoint(tmp_path, step, {"model": model}, {"model": {"width": 2}})
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002.pt", "step-00000003.pt"]
    (tmp_path / "checkpoints/step-00000009.part").write_bytes(b"half")
    fresh = nn.Linear(2, 2)
    assert load_checkpoint(tmp_path, {"model": fresh}, {"model": {"width": 2}}) == 3
    assert torch.equal(fresh.weight, model.weight)
    assert load_checkpoint(tmp_path / "none", {"model": fresh}, {}) == 0


@pytest.mark.parametrize("content", ["cut", "garbage", "empty"])
def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    path = save_checkpoint(tmp_path, 1, {"model": nn.Linear(8, 8)}, {})
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"\x00garbage" * 50, "empty": b""}[content])
    with pytest.raises(InputError, match="truncated or damaged") as caught:
        load_checkpoint(tmp_path, {"model": nn.Linear(8, 8)}, {})
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_checkpoint(path)


def test_a_checkpoint_of_another_model_or_other_data_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"model": nn.Linear(2, 2)}, {"model": {"width": 2}, "shards": "a"})
    with pytest.raises(InputError, match="another 'shards'"):
        load_checkpoint(tmp_path, {"model": nn.Linear(2, 2)}, {"model": {"width": 2}, "shards": "b"})
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(tmp_path, {"model": nn.Linear(3, 3)}, {"model": {"width": 2}, "shards": "a"})


def test_an_unwritable_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "file", 1, {"model": nn.Linear(1, 1)}, {})
    with pytest.raises(InputError, match="cannot be written"):
        StatsLog(tmp_path / "file" / "sub" / "stats.jsonl", 0)


def test_stats_are_means_and_are_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    log = StatsLog(path, 0)
    log.add(0, {"loss": 1.0})
    log.add(1, {"loss": 3.0, "other": 5.0})
    assert log.flush() == {"loss": 2.0, "other": 5.0}
    log.add(2, {"loss": 7.0})
    log.flush()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    StatsLog(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 2, "loss": 2.0, "other": 5.0}]


def test_the_rate_warms_up_holds_and_decays_to_a_twentieth() -> None:
    config = OptimConfig(warmup=10, decay_from=0.5)
    assert rate(config, 0, 100) == pytest.approx(0.1)
    assert rate(config, 9, 100) == rate(config, 49, 100) == 1.0
    assert rate(config, 75, 100) == pytest.approx(1 - 0.95 / 2)
    assert rate(config, 100, 100) == pytest.approx(0.05)
    assert rate(OptimConfig(warmup=0), 9, 10) == 1.0
