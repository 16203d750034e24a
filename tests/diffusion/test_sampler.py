"""Noise levels and solvers against closed forms and diffusers' scheduler."""

import pytest
import torch
from torch import Tensor

from nova3d.diffusion import denoised, initial_noise, karras_sigmas, precondition, sample


def test_karras_levels_are_svd_s() -> None:
    sigmas = karras_sigmas(25)
    assert sigmas.shape == (26,) and sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas[:4], torch.tensor([700.0, 545.73, 421.57, 322.45]).double(), atol=6e-3, rtol=0)
    torch.testing.assert_close(sigmas[-3:], torch.tensor([0.00788, 0.002, 0.0]).double(), atol=6e-6, rtol=0)
    assert (sigmas.diff() < 0).all()
    assert karras_sigmas(1).tolist() == pytest.approx([700.0, 0.0])
    with pytest.raises(ValueError, match="at least 1"):
        karras_sigmas(0)


@pytest.mark.parametrize("steps", [2, 25])
def test_karras_levels_are_those_of_the_scheduler_that_svd_ships(steps: int) -> None:
    from diffusers import EulerDiscreteScheduler

    schedule = EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        interpolation_type="linear", timestep_type="continuous", timestep_spacing="leading",
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
    )  # fmt: skip
    schedule.set_timesteps(steps)
    sigmas = karras_sigmas(steps)
    torch.testing.assert_close(schedule.sigmas.double(), sigmas, rtol=1e-4, atol=1e-6)
    c_noise = precondition(sigmas[:-1])[3]
    torch.testing.assert_close(schedule.timesteps.double(), c_noise, rtol=1e-4, atol=1e-4)
    start = initial_noise((50_000,), 700.0, 0, "cpu")
    assert float(start.std()) == pytest.approx(float(schedule.init_noise_sigma), rel=0.02)


def error(solver: str, steps: int) -> float:
    """Error against the exact flow of Gaussian data N(mu, sd^2), x(s) = mu + (x(S) - mu) sqrt((sd^2 + s^2) / (sd^2 +
    S^2)), in float32."""
    mu, sd, top, bottom = 0.7, 1.4, 3.0, 0.5
    sigmas = torch.linspace(top, bottom, steps + 1, dtype=torch.float64)
    start = torch.full((1,), 2.5)
    exact = mu + (start - mu) * ((sd**2 + bottom**2) / (sd**2 + top**2)) ** 0.5
    found = sample(lambda x, s: mu + sd**2 / (sd**2 + s**2) * (x - mu), start, sigmas, solver)
    return float((found - exact).abs())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_with_their_order(solver: str, order: int) -> None:
    coarse, fine = error(solver, 12), error(solver, 24)
    assert 2 ** (order - 0.25) < coarse / fine < 2 ** (order + 0.4)
    assert error("heun", 12) < error("euler", 24) / 5


def test_sampling_gaussian_data_to_zero_restores_its_deviation() -> None:
    x = initial_noise((20_000,), 80.0, 0, "cpu")
    assert float(x.std()) == pytest.approx((80**2 + 1) ** 0.5, rel=0.02)
    result = sample(lambda x, s: x / (1 + s**2), x, karras_sigmas(40, sigma_max=80.0), "heun")
    assert float(result.std()) == pytest.approx(1.0, rel=0.03)


def test_a_seed_names_one_noise() -> None:
    assert torch.equal(initial_noise((3, 4), 700.0, 5, "cpu"), initial_noise((3, 4), 700.0, 5, "cpu"))
    assert not torch.equal(initial_noise((3, 4), 700.0, 5, "cpu"), initial_noise((3, 4), 700.0, 6, "cpu"))


def network(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.sin(3 * x + c_noise) + 0.3 * x.roll(1, -1)


def test_euler_agrees_with_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    steps = 12
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=700.0, sigma_data=1.0, prediction_type="v_prediction")
    theirs.set_timesteps(steps)
    start = initial_noise((2, 4, 6), 700.0, 0, "cpu")
    torch.testing.assert_close(theirs.sigmas.double(), karras_sigmas(steps), rtol=1e-4, atol=1e-6)

    x = start.clone()
    for t in theirs.timesteps:
        x = theirs.step(network(theirs.scale_model_input(x, t), t), t, x).prev_sample

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        _, _, c_in, c_noise = precondition(sigma)
        return denoised(network(c_in * x, c_noise), x, sigma)

    ours = sample(denoise, start, karras_sigmas(steps), "euler")
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_evaluations_callbacks_and_unknown_solvers() -> None:
    calls: list[float] = []
    seen: list[tuple[int, int]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return x * 0

    sample(denoise, torch.ones(2), karras_sigmas(5), "heun", lambda done, total, _: seen.append((done, total)))
    assert len(calls) == 9 and min(calls) > 0  # none at sigma 0
    assert seen == [(k, 5) for k in range(1, 6)]
    result = sample(denoise, torch.ones(2, dtype=torch.bfloat16), karras_sigmas(5), "euler")
    assert result.dtype == torch.float32 and torch.equal(result, torch.zeros(2))
    with pytest.raises(ValueError, match="rk4"):
        sample(denoise, torch.ones(2), karras_sigmas(5), "rk4")
