"""Does it learn? A known loss curve, and one object overfitted until RGB and normals come apart by their label."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nova3d.data.multiview import MultiViewDataset
from nova3d.tasks import Task
from nova3d.training.config import HealthConfig, NoiseConfig, OptimConfig, TrainConfig, noise_schedule
from nova3d.training.data import Batch, Draws, LatentEncoder, ShardSource, draw, make_batch
from nova3d.training.networks import build_module
from nova3d.training.trainer import train

Make = Callable[..., TrainConfig]
GOLDEN = Path(__file__).with_name("golden.json")


def test_fifty_steps_follow_the_known_loss_curve(make_config: Make) -> None:
    """Means of ten steps; another CPU's rounding stays far inside the tolerance, a changed formula does not."""
    optim = OptimConfig(learning_rate=1e-3, warmup=5, ema_decay=0.9)
    config = make_config(steps=50, checkpoint_every=50, optim=optim, health=HealthConfig(spike=0))
    train(config, "cpu")
    rows = [json.loads(line) for line in (Path(config.out) / "stats.jsonl").read_text().splitlines()]
    curve = {
        key: [sum(row[key] for row in rows[k : k + 10]) / 10 for k in range(0, 50, 10)]
        for key in ("loss_rgb", "loss_normal", "grad_norm")
    }
    golden = json.loads(GOLDEN.read_text())
    for key, values in curve.items():
        assert values == pytest.approx(golden[key], rel=0.02), (key, values)
    assert curve["loss_rgb"][-1] < 0.85 * curve["loss_rgb"][0]


def test_one_object_is_learnt_and_the_tasks_come_apart_by_their_label(make_config: Make, shards: Path) -> None:
    """Fresh noise every step, at a level that hides which of the two is shown, so that only the label can tell."""
    config = make_config()
    torch.manual_seed(0)
    module, _ = build_module(config, 8)
    source, encoder = ShardSource(MultiViewDataset(shards, [0])), LatentEncoder(module.vae, "cpu", keep=False)
    item = source.load(0, 0)
    latent = encoder.moments(item)
    noise = NoiseConfig([[0, 1.5, 0.3]], drop_both=0, drop_clip=0, drop_latent=0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)

    def batch(step: int) -> Batch:
        shape = (*latent.shape[:2], 4, *latent.shape[3:])
        draws: Draws = draw(noise, noise_schedule(noise), 0, step, range(1), shape, tuple(item.picture.shape))
        return make_batch([item], draws, encoder)

    history = []
    for step in range(45):
        optimizer.zero_grad()
        loss = module(batch(step)).mean()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
    test = batch(1000)
    with torch.no_grad():
        right, swapped = (module(test, tasks)[0] for tasks in ((Task.RGB, Task.NORMAL), (Task.NORMAL, Task.RGB)))
    assert bool((swapped > 1.5 * right).all()), (right, swapped)
