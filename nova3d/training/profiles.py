"""Choosing the EMA's length after training: power-function averages, their snapshots and their mixtures.

Karras et al. 2024 ("Analyzing and improving the training dynamics of diffusion models", section 3). The average with
the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) over 0 <= tau <= t stretches with the run; its relative width
sigma_rel is the profile's standard deviation over t. Any profile is close to a mixture of the stored ones.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nova3d.errors import InputError
from nova3d.training.ema import EMA, Decay

FOLDER = "ema-profiles"


def exponent(sigma_rel: float) -> float:
    """gamma of a profile of relative width sigma_rel, between 0 and sqrt(1/12).

    The profile's variance is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): a cubic in gamma with one positive root.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel must lie between 0 and 0.2887, got {sigma_rel}")
    s = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def power(sigma_rel: float) -> Decay:
    """The decay whose running average has this profile: d = (1 - 1/n)^(gamma + 1) at the n-th update."""
    gamma = exponent(sigma_rel)
    return lambda n: (1 - 1 / n) ** (gamma + 1)


def overlap(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """Integral of the product of two profiles, (t, gamma) each: closed form of two powers up to the shorter length."""
    t, both = min(t_a, t_b), gamma_a + gamma_b + 1
    scale = (gamma_a + 1) * (gamma_b + 1) / both
    return float(scale * np.exp(both * np.log(t) - (gamma_a + 1) * np.log(t_a) - (gamma_b + 1) * np.log(t_b)))


def mixture(stored: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> np.ndarray:
    """Weights of stored profiles (step, sigma_rel) whose sum is nearest, in the least squares of the profiles, to the
    profile of width sigma_rel at `step`."""
    given = [(float(t), exponent(rel)) for t, rel in stored]
    wanted = (float(step), exponent(sigma_rel))
    matrix = np.array([[overlap(*a, *b) for b in given] for a in given])
    # Neighbouring snapshots are nearly equal: least squares where a plain inverse would blow rounding up.
    return np.linalg.lstsq(matrix, np.array([overlap(*a, *wanted) for a in given]), rcond=1e-12)[0]


def save_snapshot(out: Path, step: int, sigma_rel: float, average: EMA, is_main: bool = True) -> None:
    """Keep a running average of `step` under out/ema-profiles, whole, in float16; every process must call it."""
    folder = out / FOLDER
    path = folder / f"step-{step:08d}-{sigma_rel:.3f}.safetensors"
    weights = {name: value.half().cpu().contiguous() for name, value in average.state_dict()["weights"].items()}
    if not is_main:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        save_file(weights, aside)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the EMA snapshot '{path}': {error}") from error


def list_snapshots(out: Path) -> list[tuple[int, float, Path]]:
    """(step, sigma_rel, file) of every snapshot of a run, in order."""
    found = [
        (match, path)
        for path in sorted((out / FOLDER).glob("*.safetensors"))
        if (match := re.fullmatch(r"step-(\d{8})-(\d\.\d{3})\.safetensors", path.name))
    ]
    return [(int(match[1]), float(match[2]), path) for match, path in found]


def synthesise(out: Path, sigma_rel: float, step: int = 0) -> dict[str, Tensor]:
    """float32 weights of the average of width sigma_rel at `step` (0: the last one), from a run's snapshots up to it.

    Raises InputError where there are none.
    """
    snapshots = [entry for entry in list_snapshots(out) if not step or entry[0] <= step]
    if not snapshots:
        raise InputError(f"'{out / FOLDER}' holds no snapshot; train with optim.ema_profiles=[0.05,0.1]")
    try:
        shares = mixture([entry[:2] for entry in snapshots], step or snapshots[-1][0], sigma_rel)
    except ValueError as error:
        raise InputError(str(error)) from error
    total: dict[str, Tensor] = {}
    for share, (_, _, path) in zip(shares, snapshots, strict=True):
        for name, value in load_file(path).items():
            total[name] = total.get(name, torch.zeros(value.shape)) + float(share) * value.float()
    return total


def export_profile(out: Path, sigma_rel: float, step: int = 0) -> Path:
    """Write a finished run's model with the average of width sigma_rel as out/model-ema-0.050; returns the folder."""
    from nova3d.pipeline import Nova3DPipeline  # heavy, and needed here alone

    weights = synthesise(out, sigma_rel, step)
    pipeline = Nova3DPipeline.load(out / "model")
    for prefix, part in (("unet.", pipeline.unet), ("trained_encoder.", pipeline.image_encoder)):
        if part is None:
            continue
        chosen = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        surplus = part.load_state_dict(chosen, strict=False).unexpected_keys
        if surplus:
            raise InputError(f"the snapshots in '{out / FOLDER}' are of another model: it has no '{surplus[0]}'")
    folder = out / f"model-ema-{sigma_rel:.3f}"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
