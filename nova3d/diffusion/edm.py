"""EDM diffusion in SVD's parametrisation, as maths on plain tensors (paper appendix VI; Karras et al. 2022).

x = x0 + sigma n. SVD's network F is a v-predictor: D(x) = c_skip x + c_out F(c_in x). The paper's printed c_out
(eq. 8) lacks the factor -sigma; with the form below its weight (eq. 12) is exactly 1 / c_out^2.
Axes: b object, t task, v view, c channel, h w pixels.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from nova3d.choices import Guidance, Solver

Denoise = Callable[[Tensor, Tensor], Tensor]
SOLVERS: tuple[str, ...] = get_args(Solver)
# (first step, P_mean, P_std); paper appendix VI
PAPER_STAGES = ((0, 1.0, 1.6), (8_000, 1.8, 1.6), (16_000, 2.2, 1.8), (24_000, 2.5, 2.0))


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EDM's four coefficients for data of standard deviation 1 (eqs. 7-10).

    Args:
        sigma: float [...], noise levels above 0.

    Returns:
        c_skip, c_out, c_in and c_noise = ln(sigma) / 4, each float [...] as sigma.
    """
    root = (sigma**2 + 1).sqrt()
    return 1 / root**2, -sigma / root, 1 / root, sigma.log() / 4


def weight(sigma: Tensor) -> Tensor:
    """The loss weight lambda(sigma) = (1 + sigma^2) / sigma^2 on the denoiser's squared error (eq. 12).

    `loss` includes it.

    Args:
        sigma: float [...], noise levels above 0.

    Returns:
        The weights, float [...] as sigma.
    """
    return (1 + sigma**2) / sigma**2


def loss(network_output: Tensor, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The squared error of the network's raw output, ||F - (n - sigma x0) / sqrt(1 + sigma^2)||^2, unreduced.

    Equals weight(sigma) ||D - x0||^2 without its cancellation at small sigma.

    Args:
        network_output: float [b,t,v,c,h,w], F.
        x0: float [b,t,v,c,h,w], clean latents.
        noise: float [b,t,v,c,h,w], standard normal.
        sigma: float that broadcasts against the others: [b,1,1,1,1,1], one level per object.

    Returns:
        float [b,t,v,c,h,w].
    """
    target = (noise - sigma * x0) / (1 + sigma**2).sqrt()
    return (network_output - target) ** 2


def denoised(network_output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The estimate of x0, D = c_skip x + c_out F.

    Args:
        network_output: float [b,t,v,c,h,w], F.
        x: float [b,t,v,c,h,w], noisy latents.
        sigma: float that broadcasts against them, [b,1,1,1,1,1] or scalar.

    Returns:
        D, float [b,t,v,c,h,w].
    """
    c_skip, c_out, _, _ = precondition(sigma)
    return c_skip * x + c_out * network_output


def per_object(sigma: Tensor, like: Tensor) -> Tensor:
    """[b] reshaped to broadcast against `like` [b,...], in float32 or better."""
    return sigma.reshape(-1, *[1] * (like.dim() - 1)).to(torch.promote_types(like.dtype, torch.float32))


@dataclass(frozen=True)
class NoiseSchedule:
    """The distribution of training noise levels: log-normal, its mean and deviation change with the step.

    Args:
        stages: (first step, P_mean, P_std) of log sigma ~ N(P_mean, P_std^2); the first stage starts at step 0.

    Raises:
        ValueError: where the stages are empty, do not start at 0 or are out of order.
    """

    stages: Sequence[tuple[int, float, float]] = PAPER_STAGES

    def __post_init__(self) -> None:
        starts = [stage[0] for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"noise stages must start at step 0 and ascend, got {starts}")

    def at(self, step: int) -> tuple[float, float]:
        """The distribution at a step.

        Args:
            step: the global step, 0 or more.

        Returns:
            P_mean and P_std of log sigma.
        """
        _, mean, std = [stage for stage in self.stages if stage[0] <= step][-1]
        return mean, std

    def draw(self, step: int, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels for a step, one per object, shared by its views and both tasks (eq. 3).

        Args:
            step: the global step.
            count: b.
            generator: draws them.

        Returns:
            float32 [b].
        """
        mean, std = self.at(step)
        return (mean + std * torch.randn(count, generator=generator)).exp()


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Noise levels for sampling (eq. 5 of Karras et al.; the defaults are SVD's).

    Args:
        n: number of steps, 1 or more.
        sigma_min: the last level above 0.
        sigma_max: the first level.
        rho: curvature; larger values put more levels near sigma_min.

    Returns:
        float64 [n+1], from sigma_max to sigma_min, then 0.

    Raises:
        ValueError: for n below 1.
    """
    if n < 1:
        raise ValueError(f"steps must be at least 1, got {n}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (top + ramp * (bottom - top)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def init_noise_sigma(sigma_max: float) -> float:
    """Standard deviation of the noise that sampling starts from, sqrt(sigma_max^2 + 1); diffusers has the same name.

    Args:
        sigma_max: the first noise level.

    Returns:
        The deviation of x at `sigma_max`, for data of unit deviation.
    """
    return (sigma_max**2 + 1) ** 0.5


def initial_noise(
    shape: tuple[int, ...], sigma_max: float, seed: int | torch.Generator, device: torch.device | str
) -> Tensor:
    """Noise to start sampling from, of the standard deviation `init_noise_sigma`.

    Args:
        shape: of the noise, written ... below.
        sigma_max: the first noise level.
        seed: an integer, for noise that is drawn on the CPU and equal on every device, or a generator.
        device: where the noise goes.

    Returns:
        float32 [...], on `device`.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, device=generator.device).to(device) * init_noise_sigma(sigma_max)


def solver_step(denoise: Denoise, x: Tensor, sigma: Tensor, next_sigma: Tensor, solver: str) -> Tensor:
    """One step of dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, algorithm 1).

    Args:
        denoise: denoise(x, sigma) returns the estimate D of x0, of x's shape.
        x: float32 [b,t,v,c,h,w], noisy latents at the level `sigma`.
        sigma: float scalar, the present level.
        next_sigma: float scalar, the next level, below `sigma`.
        solver: "euler", or "heun": a second evaluation, except for the step to 0.

    Returns:
        float32 [b,t,v,c,h,w], x at the level `next_sigma`.
    """
    s, s_next = sigma.to(x), next_sigma.to(x)
    slope = (x - denoise(x, s).float()) / s
    moved = x + (s_next - s) * slope
    if solver == "heun" and next_sigma > 0:
        corrected = (moved - denoise(moved, s_next).float()) / s_next
        moved = x + (s_next - s) * (slope + corrected) / 2
    return moved


def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    solver: str = "heun",
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate the probability-flow ODE from sigmas[0] to sigmas[-1].

    Args:
        denoise: denoise(x, sigma) returns the estimate D of x0, of x's shape.
        x: [b,t,v,c,h,w], noise already scaled to sigmas[0]; it stays float32 throughout.
        sigmas: float [n+1], descending, as `karras_sigmas` gives them.
        solver: "euler" or "heun".
        callback: called after every step as callback(steps done, steps, x).

    Returns:
        float32 [b,t,v,c,h,w].

    Raises:
        ValueError: for another solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver '{solver}' is not one of {', '.join(SOLVERS)}")
    x = x.float()
    for step, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas), start=1):
        x = solver_step(denoise, x, sigma, next_sigma, solver)
        if callback:
            callback(step, len(sigmas) - 1, x)
    return x


def view_scales(kind: Guidance, low: float, high: float, azimuths: Tensor) -> Tensor:
    """The scale of classifier-free guidance at each view.

    Args:
        kind: "triangle": grows with the angular distance from the input view, `low` there and `high` behind (SV3D's,
            stated on the angle). "linear": from `low` at the first to `high` at the last view (SVD's). "constant":
            `high`.
        low: the lower scale.
        high: the higher scale.
        azimuths: float [v], radians, relative to the input view.

    Returns:
        float [v].

    Raises:
        ValueError: for another kind.
    """
    match kind:
        case "triangle":
            distance = torch.remainder(azimuths + math.pi, 2 * math.pi) - math.pi
            return low + (high - low) * distance.abs() / math.pi
        case "linear":
            return torch.linspace(low, high, len(azimuths), device=azimuths.device)
        case "constant":
            return torch.full_like(azimuths, high)
    raise ValueError(f"guidance '{kind}' is not one of {', '.join(get_args(Guidance))}")


def guide(conditional: Tensor, unconditional: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance, u + s (c - u) of the conditional c and the unconditional u.

    It may be applied to the network's output or to the denoised estimate: the map between them is affine.

    Args:
        conditional: float [b,t,v,c,h,w].
        unconditional: float [b,t,v,c,h,w].
        scales: float [v].

    Returns:
        float [b,t,v,c,h,w].
    """
    return unconditional + scales.reshape(1, 1, -1, 1, 1, 1) * (conditional - unconditional)
