"""Seeds of a run's steps: what a step draws depends on the step alone, so that a resumed run repeats it."""


def step_seed(seed: int, step: int) -> int:
    """The seed of one step.

    Args:
        seed: of the run.
        step: zero-based. Where it is below 1,000,003, no step of a run of another seed has the same one.

    Returns:
        A number that `torch.Generator.manual_seed` takes, 0 to 2**63 - 1.
    """
    return (seed * 1_000_003 + step) % 2**63
