"""Volume rendering of a signed distance field (NeuS, arXiv 2106.10689), as functions of padded [rays, samples]."""

import torch
from torch import Tensor


def section_alpha(sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """Opacity [r,k-1] of the sections between samples with SDF values [r,k] (NeuS eq. 13).

    alpha_i = max((Phi(f_i) - Phi(f_i+1)) / Phi(f_i), 0), Phi the sigmoid with scale `inv_s`. Values at the section's
    ends are used as they are, so sections of any length are right and no slope has to be guessed.
    """
    # log of the ratio Phi(f_i+1) / Phi(f_i): exact far inside, where both are zero in float32.
    log_phi = torch.nn.functional.logsigmoid(sdf * inv_s)
    return 1 - torch.exp((log_phi[:, 1:] - log_phi[:, :-1]).clamp_max(0))


def section_weights(alpha: Tensor) -> Tensor:
    """Weights T_i alpha_i [r,k-1] of sections with opacities [r,k-1]; they add up to at most 1."""
    transmittance = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(alpha[:, :1]), transmittance[:, :-1]], dim=-1)
    return before * alpha


def sample_weights(sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """Weights [r,k] of samples with SDF values [r,k]: each section's weight, shared between its two ends.

    A section is cut where the SDF crosses zero, so an end counts the more the nearer it is to the surface.
    """
    weights = section_weights(section_alpha(sdf, inv_s))
    size = sdf.detach().abs() + 1e-6
    to_first = size[:, 1:] / (size[:, 1:] + size[:, :-1])
    zero = torch.zeros_like(weights[:, :1])
    return torch.cat([weights * to_first, zero], dim=-1) + torch.cat([zero, weights * (1 - to_first)], dim=-1)


def composite(weights: Tensor, kept: Tensor, colour: Tensor, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [r,3] on white, normal [r,3] not normalised and opacity [r] of rays with weights [r,k].

    Only the samples `kept` [m] (flat indices into r*k) have a colour [m,3] and a normal [m,3]; the others weigh next
    to nothing, and what they weigh counts as kept ones do.
    """
    opacity = weights.sum(dim=-1)
    w, ray = weights.reshape(-1).index_select(0, kept), kept // weights.shape[1]
    total = gather_rays(w, ray, len(weights))
    scale = (opacity / total.clamp_min(1e-6)).detach()[:, None]
    rgb = gather_rays(w[:, None] * colour, ray, len(weights)) * scale + (1 - opacity)[:, None]
    return rgb, gather_rays(w[:, None] * normal, ray, len(weights)), opacity


def gather_rays(values: Tensor, ray: Tensor, count: int) -> Tensor:
    """Sums [count,...] of samples' values [m,...] over the rays [m] they are on."""
    return values.new_zeros(count, *values.shape[1:]).index_add(0, ray, values)
