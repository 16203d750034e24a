"""EDM in SVD's parametrisation, on plain tensors (paper appendix VI; Karras et al. 2022).

x = x0 + sigma n. SVD's network F is a v-predictor: D(x) = c_skip x + c_out F(c_in x). The paper's printed c_out
(eq. 8) lacks the factor -sigma; with the form below its weight (eq. 12) is exactly 1 / c_out^2.
"""

import torch
from torch import Tensor


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise for noise levels `sigma` of any shape, data deviation 1 (eqs. 7-10)."""
    root = (sigma**2 + 1).sqrt()
    return 1 / root**2, -sigma / root, 1 / root, sigma.log() / 4


def weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (1 + sigma^2) / sigma^2 on the denoiser's squared error (eq. 12)."""
    return (1 + sigma**2) / sigma**2


def loss(network_output: Tensor, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """||F - (n - sigma x0) / sqrt(1 + sigma^2)||^2, unreduced.

    Equals weight(sigma) ||D - x0||^2 without its cancellation at small sigma. `sigma` broadcasts against the
    others: one value per object, [b,1,1,1,1,1] for [b,t,v,c,h,w].
    """
    target = (noise - sigma * x0) / (1 + sigma**2).sqrt()
    return (network_output - target) ** 2


def denoised(network_output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D = c_skip x + c_out F, the estimate of x0."""
    c_skip, c_out, _, _ = precondition(sigma)
    return c_skip * x + c_out * network_output


def per_object(sigma: Tensor, like: Tensor) -> Tensor:
    """[b] reshaped to broadcast against `like` [b,...]."""
    return sigma.reshape(-1, *[1] * (like.dim() - 1)).to(torch.promote_types(like.dtype, torch.float32))
