"""Karras noise levels and the Euler and Heun solvers of the probability-flow ODE (Karras et al. 2022, alg. 1)."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
SOLVERS = ("euler", "heun")


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """[n+1] float64 noise levels from sigma_max to sigma_min, then 0 (eq. 5 of Karras et al.; SVD's limits)."""
    if n < 1:
        raise ValueError(f"steps must be at least 1, got {n}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (top + ramp * (bottom - top)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    solver: str = "heun",
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate dx/dsigma = (x - D(x, sigma)) / sigma from sigmas[0] to sigmas[-1].

    `denoise(x, sigma)` returns the estimate D of x0. x is float32 noise already scaled to sigmas[0]; it stays
    float32 throughout. solver: "euler" or "heun"; Heun costs two evaluations a step, except for the last one to
    sigma 0. `callback(done, total, x)` follows every step. Raises ValueError for another solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver '{solver}' is not one of {', '.join(SOLVERS)}")
    x = x.float()
    steps = len(sigmas) - 1
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        s, s_next = sigma.to(x), following.to(x)
        slope = (x - denoise(x, s).float()) / s
        moved = x + (s_next - s) * slope
        if solver == "heun" and following > 0:
            corrected = (moved - denoise(moved, s_next).float()) / s_next
            moved = x + (s_next - s) * (slope + corrected) / 2
        x = moved
        if callback:
            callback(index + 1, steps, x)
    return x


def initial_noise(shape: tuple[int, ...], sigma_max: float, seed: int, device: torch.device | str) -> Tensor:
    """Noise of the deviation x has at sigma_max, sqrt(sigma_max^2 + 1); drawn on the CPU so that one seed gives
    one result on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device) * (sigma_max**2 + 1) ** 0.5
