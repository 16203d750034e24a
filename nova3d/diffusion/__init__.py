"""EDM diffusion as maths on plain tensors; knows no network."""

from nova3d.diffusion.edm import denoised, loss, precondition, weight
from nova3d.diffusion.guidance import guide, view_scales
from nova3d.diffusion.noise import NoiseSchedule
from nova3d.diffusion.sampler import SOLVERS, initial_noise, karras_sigmas, sample

__all__ = [
    "SOLVERS",
    "NoiseSchedule",
    "denoised",
    "guide",
    "initial_noise",
    "karras_sigmas",
    "loss",
    "precondition",
    "sample",
    "view_scales",
    "weight",
]
