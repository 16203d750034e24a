"""Elucidated diffusion models (EDM) as functions of plain tensors, without any network."""

from nova3d.diffusion.edm import (
    SOLVERS,
    Denoise,
    Guidance,
    NoiseSchedule,
    denoised,
    guide,
    init_noise_sigma,
    initial_noise,
    karras_sigmas,
    loss,
    precondition,
    sample,
    solver_step,
    view_scales,
    weight,
)

__all__ = [
    "SOLVERS",
    "Denoise",
    "Guidance",
    "NoiseSchedule",
    "denoised",
    "guide",
    "init_noise_sigma",
    "initial_noise",
    "karras_sigmas",
    "loss",
    "precondition",
    "sample",
    "solver_step",
    "view_scales",
    "weight",
]
