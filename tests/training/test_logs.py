"""stats.jsonl, losses by noise level, gradient norms."""

import json
from pathlib import Path

import torch
from torch import nn

from nova3d.training.config import HealthConfig
from nova3d.training.logs import MIN_HISTORY, BadStepDetector, LossBySigma, StatsLog, gradient_norms


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


def test_a_step_is_bad_above_a_multiple_of_the_median_whatever_the_largest_was() -> None:
    detector = BadStepDetector(HealthConfig(spike=5.0, max_bad=2))
    values = [1.0, 4.0] + [1.0] * (MIN_HISTORY - 2)
    assert [detector.check(value, 1.0) for value in values] == [None] * MIN_HISTORY
    assert detector.check(4.9, 1.0) is None
    reason = detector.check(5.1, 1.0)
    assert reason is not None and "the loss 5.1 is over 5 times its median" in reason and not detector.too_many
    reason = detector.check(1.0, 5.1)
    assert reason is not None and reason.startswith("the gradient norm 5.1") and detector.too_many
    assert detector.check(1.0, 1.0) is None and not detector.too_many  # bad values are not remembered


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
