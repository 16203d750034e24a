"""The tensors of a micro-step: draws by index, reading ahead."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from nova3d.errors import InputError
from nova3d.training.config import NoiseConfig, TrainConfig, noise_schedule
from nova3d.training.data import Draws, GlobalBatch, Prefetcher, draw
from nova3d.training.setup import prepare

Make = Callable[..., TrainConfig]
LATENT, PICTURE = (2, 4, 4, 8, 8), (3, 32, 32)


def drawn(step: int, indices: range, seed: int = 0, config: NoiseConfig | None = None) -> Draws:
    config = config or NoiseConfig()
    return draw(config, noise_schedule(config), seed, step, indices, LATENT, PICTURE)


def test_any_split_of_the_global_batch_draws_the_same() -> None:
    whole = drawn(5, GlobalBatch(12).indices(0))
    for processes, micro_steps in ((2, 3), (3, 2), (4, 1), (1, 6)):
        size = 12 // (processes * micro_steps)
        parts = {}
        for rank in range(processes):
            split = GlobalBatch(size, processes, micro_steps, rank)
            assert split.size == 12
            for micro in range(micro_steps):
                part = drawn(5, split.indices(micro))
                parts |= {index: (part, row) for row, index in enumerate(split.indices(micro))}
        assert sorted(parts) == list(range(12))
        for name in vars(whole):
            rows = [getattr(parts[index][0], name)[parts[index][1]] for index in range(12)]
            assert torch.equal(torch.stack(rows), getattr(whole, name)), name


def test_draws_differ_by_seed_step_place_and_task_but_levels_are_shared() -> None:
    first = drawn(5, range(2))
    for other in (drawn(5, range(2), seed=1), drawn(6, range(2)), drawn(5, range(2, 4))):
        assert not torch.equal(first.noise, other.noise) and not torch.equal(first.sigma, other.sigma)
    assert first.sigma.shape == (2,)  # one level for an object's views and tasks
    assert not torch.equal(first.noise[0], first.noise[1])  # as two processes of one object each would have
    assert not torch.equal(first.noise[:, 0], first.noise[:, 1])  # the tasks
    assert not torch.equal(first.noise[:, :, 0], first.noise[:, :, 1])  # the views
    assert not torch.equal(first.noise, first.posterior)


def test_dropout_rates_are_the_configs_and_stages_switch_at_their_step() -> None:
    rates = drawn(0, range(4000), config=NoiseConfig(drop_both=0.2, drop_clip=0.1, drop_latent=0.3))
    both = rates.drop_embeds & rates.drop_latents
    for share, expected in ((both, 0.2), (rates.drop_embeds, 0.3), (rates.drop_latents, 0.5)):
        assert float(share.float().mean()) == pytest.approx(expected, abs=0.025)  # 3 standard errors
    paper = NoiseConfig()
    assert [noise_schedule(paper).at(s) for s in (0, 7999, 8000, 15_999, 16_000, 23_999, 24_000)] == [
        (1.0, 1.6),
        (1.0, 1.6),
        (1.8, 1.6),
        (1.8, 1.6),
        (2.2, 1.8),
        (2.2, 1.8),
        (2.5, 2.0),
    ]
    late = NoiseConfig(stages=[[0, -9.0, 0.01], [6, 3.0, 0.01]])
    assert drawn(5, range(2), config=late).sigma.max() < 1e-3 and drawn(6, range(2), config=late).sigma.min() > 15


@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (1, 1), (3, 1), (3, 3), (8, 2)])
def test_reading_ahead_keeps_the_order_hands_on_errors_and_ends(depth: int, threads: int) -> None:
    addresses = [(step, micro) for step in range(3) for micro in range(2)]

    def later_ones_are_faster(address: tuple[int, int]) -> tuple[int, int]:
        time.sleep(0.01 * (3 - address[0]))
        return address

    with Prefetcher(later_ones_are_faster, addresses, depth, threads) as batches:
        assert list(batches) == addresses

    def fail(address: tuple[int, int]) -> tuple[int, int]:
        if address == (1, 0):
            raise InputError("shard 7 is missing")
        return address

    with Prefetcher(fail, addresses, depth, threads) as batches:
        assert next(batches) == (0, 0) and next(batches) == (0, 1)
        with pytest.raises(InputError, match="shard 7"):
            next(batches)
    loaded: list[tuple[int, int]] = []
    endless = Prefetcher(loaded.append, ((step, 0) for step in iter(int, 1)), depth, threads)
    next(endless)
    endless.close()
    assert len(loaded) <= depth + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_several_threads_read_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)  # nobody passes alone

    def meet(address: tuple[int, int]) -> tuple[int, int]:
        together.wait()
        return address

    addresses = [(step, 0) for step in range(6)]
    with Prefetcher(meet, addresses, 3, 3) as batches:
        assert list(batches) == addresses


def test_the_run_reads_every_object_once_an_epoch_whatever_the_split(make_config: Make) -> None:
    run = prepare(make_config(batch_size=3), "cpu")
    for step in range(2):
        items, _ = run.loader((step, 0))
        assert sorted(item.uid for item in items) == ["o0", "o1", "o2"]
