"""Short true runs: exact resume, non-finite losses, a loss that falls."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nova3d.data.latents import LatentEncoder
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.batches import Batch, generator, make_batch
from nova3d.training.config import NoiseConfig, PipelineConfig, TrainConfig
from nova3d.training.module import Denoising, build
from nova3d.training.trainer import MAX_BAD_STEPS, train
from nova3d.training.validation import compare

Make = Callable[..., TrainConfig]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def losses(out: str) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (Path(out) / "stats.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss_rgb"], row["loss_normal"]) for row in rows]


def test_a_killed_run_resumes_bit_for_bit(make_config: Make) -> None:
    whole = train(make_config("whole"), "cpu")

    def kill(done: int, _: int, __: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    config = make_config("killed")
    with pytest.raises(KeyboardInterrupt):
        train(config, "cpu", kill)
    assert [step for step, *_ in losses(config.out)] == [1, 2, 3]
    resumed = train(config, "cpu")
    assert losses(config.out) == losses(make_config("whole").out)
    assert len({loss for _, loss, _ in losses(config.out)}) == 4
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    record = json.loads((whole / "record.json").read_text())
    assert record["config"]["steps"] == 4
    assert isinstance(Nova3DPipeline.load(whole), Nova3DPipeline)
    with pytest.raises(InputError, match="another 'model'"):
        train(make_config("killed", model=replace_alignment(config, "none")), "cpu")


def replace_alignment(config: TrainConfig, alignment: str) -> object:
    return type(config.model)(**(vars(config.model) | {"alignment": alignment}))


def spoil(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int]) -> None:
    true, calls = Denoising.forward, [0]

    def forward(self: Denoising, batch: Batch) -> Tensor:
        calls[0] += 1
        return true(self, batch) * (float("nan") if calls[0] in bad_calls else 1.0)

    monkeypatch.setattr(Denoising, "forward", forward)


def test_a_non_finite_step_is_skipped(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2})
    config = make_config(steps=2)
    result = train(config, "cpu")
    assert all(bool(torch.isfinite(w).all()) for w in weights(result).values())
    state = torch.load(Path(config.out) / "checkpoints/step-00000002.pt", weights_only=True)
    assert state["parts"]["ema"]["updates"] == 1


def test_five_in_a_row_stop_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(1, 99)))
    done: list[int] = []
    config = make_config(steps=20, checkpoint_every=100)
    with pytest.raises(InputError, match=f"not finite {MAX_BAD_STEPS} steps in a row.*last at step 4"):
        train(config, "cpu", lambda step, _, __: done.append(step))
    assert done == []


@pytest.fixture
def parts(make_config: Make) -> tuple[Denoising, MultiViewDataset, LatentEncoder]:
    config = make_config()
    torch.manual_seed(0)
    module = build(config, 64, 8)
    return module, MultiViewDataset(config.data.shards), LatentEncoder(module._frozen[0], "cpu")


def test_the_loss_of_one_batch_falls(parts: tuple[Denoising, MultiViewDataset, LatentEncoder]) -> None:
    module, dataset, encoder = parts
    batch = make_batch(dataset, encoder, NoiseConfig([[0, 0.5, 0.2]], drop_both=0), [0], 0, generator(0, 0, 0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module(batch).mean()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]


def test_draws_are_functions_of_seed_rank_and_step(parts: tuple[Denoising, MultiViewDataset, LatentEncoder]) -> None:
    _, dataset, encoder = parts

    def draw(*address: int, noise: NoiseConfig | None = None) -> Batch:
        return make_batch(dataset, encoder, noise or NoiseConfig(), [0, 1], address[2], generator(*address))

    first, again = draw(0, 0, 5), draw(0, 0, 5)
    drawn = ("x0", "noise", "sigma", "noise_aug", "picture_noise")
    assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in drawn)
    for other in ((1, 0, 5), (0, 1, 5), (0, 0, 6)):
        assert not torch.equal(first.noise, draw(*other).noise)
        assert not torch.equal(first.sigma, draw(*other).sigma)
    assert first.x0.shape == (2, 2, 4, 4, 8, 8) and first.sigma.shape == (2,)  # one level for views and tasks
    assert not torch.equal(first.noise[:, 0], first.noise[:, 1])  # but noise of its own for each task
    assert first.cameras[:, 0].abs().max() < 1e-5  # view 0 is the input view
    assert draw(0, 0, 5, noise=NoiseConfig(drop_both=1)).drop_latents.all()
    only = draw(0, 0, 5, noise=NoiseConfig(drop_both=0, drop_clip=1, drop_latent=0))
    assert only.drop_embeds.all() and not only.drop_latents.any()
    late = NoiseConfig(stages=[[0, -9.0, 0.01], [6, 3.0, 0.01]])
    assert draw(0, 0, 5, noise=late).sigma.max() < 1e-3 and draw(0, 0, 6, noise=late).sigma.min() > 15


def test_missing_pretrained_parts_are_one_line(make_config: Make, tmp_path: Path) -> None:
    for changes, message in (
        ({"vae": ""}, "vae= must name"),
        ({"vae": str(tmp_path)}, "no config.json"),
        ({"unet": str(tmp_path / "none")}, "no config.json"),
    ):
        with pytest.raises(InputError, match=message):
            build(make_config(**changes), 64, 8)


def test_validation_numbers_of_equal_and_of_opposite_views(
    make_views: Callable[..., object],
) -> None:
    views = make_views()
    same = compare(views, views)
    assert same["psnr"] > 90 and same["normal_angle"] < 0.1 and same["iou"] == 1.0
    other = type(views)(1 - views.rgb, -views.normals, views.mask, views.cameras)
    against = compare(other, views)
    assert against["psnr"] < 15 and against["normal_angle"] > 179 and against["iou"] == 1.0


def test_shards_of_another_rig_are_refused(make_config: Make) -> None:
    with pytest.raises(InputError, match="camera_preset=ortho16"):
        train(make_config(pipeline=PipelineConfig(camera_preset="ortho16", steps=2)), "cpu")
