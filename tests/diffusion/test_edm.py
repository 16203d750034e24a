"""EDM in SVD's parametrisation: the identities of the paper's appendix, corrected, and the noise schedule."""

import pytest
import torch

from nova3d.diffusion import NoiseSchedule, denoised, guide, loss, precondition, view_scales, weight
from nova3d.diffusion.edm import per_object

SIGMAS = torch.logspace(-2.7, 2.85, 23, dtype=torch.float64)


def test_preconditioning_identities() -> None:
    c_skip, c_out, c_in, c_noise = precondition(SIGMAS)
    one = torch.ones_like(SIGMAS)
    torch.testing.assert_close(weight(SIGMAS) * c_out**2, one)
    torch.testing.assert_close(c_in**2 * (SIGMAS**2 + 1), one)  # the input has unit variance
    torch.testing.assert_close(c_skip**2 * (SIGMAS**2 + 1) + c_out**2, one)
    torch.testing.assert_close((4 * c_noise).exp(), SIGMAS)
    assert (c_out < 0).all()  # SVD predicts v: the sign belongs to it
    printed = 1 / (SIGMAS**2 + 1).sqrt()  # the paper's eq. 8, a misprint
    assert ((weight(SIGMAS) * printed**2 - 1).abs() > 0.1).any()


def test_the_loss_is_the_weighted_error_of_the_denoiser() -> None:
    rng = torch.Generator().manual_seed(0)
    sigma = SIGMAS.reshape(-1, 1, 1)
    x0, noise, output = (torch.randn(len(SIGMAS), 4, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    d = denoised(output, x0 + sigma * noise, sigma)
    torch.testing.assert_close(loss(output, x0, noise, sigma), weight(sigma) * (d - x0) ** 2, rtol=1e-6, atol=1e-8)


def test_the_target_gives_the_clean_picture_back() -> None:
    rng = torch.Generator().manual_seed(1)
    sigma = SIGMAS.reshape(-1, 1)
    x0, noise = (torch.randn(len(SIGMAS), 7, generator=rng, dtype=torch.float64) for _ in range(2))
    target = (noise - sigma * x0) / (1 + sigma**2).sqrt()
    assert (loss(target, x0, noise, sigma) == 0).all()
    torch.testing.assert_close(denoised(target, x0 + sigma * noise, sigma), x0, atol=1e-9, rtol=1e-9)


def test_the_network_is_asked_for_unit_variance_and_for_nothing_new_without_noise() -> None:
    rng = torch.Generator().manual_seed(2)
    x0, noise = (torch.randn(20_000, generator=rng, dtype=torch.float64) for _ in range(2))
    for sigma in SIGMAS[::4]:
        target = (noise - sigma * x0) / (1 + sigma**2).sqrt()
        assert float(target.var()) == pytest.approx(1.0, abs=0.03)
        assert float((precondition(sigma)[2] * (x0 + sigma * noise)).var()) == pytest.approx(1.0, abs=0.03)
    tiny = torch.tensor(1e-6, dtype=torch.float64)
    torch.testing.assert_close(denoised(noise, x0, tiny), x0, atol=1e-5, rtol=0)  # whatever the network says


def test_one_level_per_object_broadcasts() -> None:
    like = torch.zeros(3, 2, 4, 4, 8, 8)
    assert per_object(torch.tensor([1.0, 2, 3]), like).shape == (3, 1, 1, 1, 1, 1)
    assert per_object(torch.tensor([1.0]), like.bfloat16()).dtype == torch.float32


def test_stages_switch_at_the_paper_s_steps() -> None:
    schedule = NoiseSchedule()
    expected = {0: (1.0, 1.6), 7_999: (1.0, 1.6), 8_000: (1.8, 1.6), 15_999: (1.8, 1.6), 16_000: (2.2, 1.8)}
    expected |= {23_999: (2.2, 1.8), 24_000: (2.5, 2.0), 10**6: (2.5, 2.0)}
    assert {step: schedule.at(step) for step in expected} == expected
    for stages in ([], [(5, 0.0, 1.0)], [(0, 0.0, 1.0), (0, 1.0, 1.0)], [(0, 0.0, 1.0), (9, 1.0, 1.0), (4, 1.0, 1.0)]):
        with pytest.raises(ValueError, match="start at step 0"):
            NoiseSchedule(stages)


@pytest.mark.parametrize("step", [0, 8_000, 20_000, 24_000])
def test_levels_are_log_normal_with_the_stage_s_moments(step: int) -> None:
    mean, std = NoiseSchedule().at(step)
    logs = NoiseSchedule().draw(step, 40_000, torch.Generator().manual_seed(0)).log()
    assert abs(float(logs.mean()) - mean) < 4 * std / 200
    assert abs(float(logs.std()) / std - 1) < 0.02


def test_guidance_scales() -> None:
    angles = torch.arange(16) * (2 * torch.pi / 16)
    triangle = view_scales("triangle", 1.0, 2.5, angles)
    torch.testing.assert_close(triangle[0], torch.tensor(1.0))
    torch.testing.assert_close(triangle[8], torch.tensor(2.5))
    torch.testing.assert_close(triangle[1:], triangle[1:].flip(0))  # left equals right
    torch.testing.assert_close(triangle[4], torch.tensor(1.75))
    torch.testing.assert_close(view_scales("triangle", 1.0, 2.5, angles - 2 * torch.pi), triangle, atol=1e-5, rtol=0)
    torch.testing.assert_close(view_scales("linear", 1.0, 3.0, angles), torch.linspace(1, 3, 16))
    assert (view_scales("constant", 1.0, 3.0, angles) == 3).all()
    with pytest.raises(ValueError, match="square"):
        view_scales("square", 1.0, 2.0, angles)  # type: ignore[arg-type]


def test_guiding_moves_from_unconditional_towards_and_past_conditional_per_view() -> None:
    c, u = torch.randn(2, 1, 2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    result = guide(c, u, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(result[:, :, 0], u[:, :, 0])
    torch.testing.assert_close(result[:, :, 1], c[:, :, 1])
    torch.testing.assert_close(result[:, :, 2], 2 * c[:, :, 2] - u[:, :, 2])
