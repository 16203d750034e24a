"""Seeds of steps."""

import pytest
import torch

from nova3d.utils.seeds import step_seed


@pytest.mark.parametrize("seed", [0, 7, -12345, 10**13])
def test_every_step_of_every_run_draws_its_own_numbers(seed: int) -> None:
    pairs = [(seed + i, step) for i in range(3) for step in (0, 1, 29_999)]
    seeds = [step_seed(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs) and all(0 <= number < 2**63 for number in seeds)
    for (run, step), number in zip(pairs, seeds, strict=True):
        former = torch.Generator().manual_seed(run * 1_000_003 + step)  # what earlier runs drew, also with such seeds
        ours = torch.Generator().manual_seed(number)
        assert torch.equal(torch.randn(99, generator=ours), torch.randn(99, generator=former))


def test_the_largest_seed_that_fusion_takes_is_a_generator_s() -> None:
    torch.Generator().manual_seed(step_seed(2**63 - 1, 10**6))
