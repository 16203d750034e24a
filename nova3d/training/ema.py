"""Exponential moving averages of the weights, of one decay or of power-function profiles chosen after training.

Power-function averages follow Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
section 3. An average with the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) over 0 <= tau <= t stretches with
the run. Its relative width sigma_rel is the profile's standard deviation over t. Snapshots of two such averages are
enough to approximate any other width afterwards (post-hoc EMA).
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from nova3d.errors import InputError
from nova3d.utils.files import replacing

log = logging.getLogger(__name__)
Decay = Callable[[int], float]  # the n-th update, from 1, to the decay d
SNAPSHOTS = "ema-profiles"  # their folder in a run's
CHUNK = 2**26  # elements of the weights that are moved to the averages' device at once, 256 MiB, if no weight has more


def constant_decay(decay: float, warmup: str = "none") -> Decay:
    """The decay of an exponential moving average.

    Args:
        decay: d.
        warmup: "none", or "inverse": d = min(decay, (1 + n) / (10 + n)), so that a short run forgets its start.

    Returns:
        The decay at the n-th update.

    Raises:
        ValueError: for another warm-up.
    """
    if warmup not in ("none", "inverse"):
        raise ValueError(f"EMA warm-up '{warmup}' is not one of none, inverse")
    return lambda n: min(decay, (1 + n) / (10 + n)) if warmup == "inverse" else decay


def power_exponent(sigma_rel: float) -> float:
    """gamma of a power-function profile.

    The profile's variance is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): a cubic in gamma with one positive root.

    Args:
        sigma_rel: relative width, between 0 and sqrt(1/12).

    Returns:
        gamma.

    Raises:
        ValueError: for another width.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel must lie between 0 and 0.2887, got {sigma_rel}")
    s = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def power_decay(sigma_rel: float) -> Decay:
    """The decay whose running average has a power-function profile: d = (1 - 1/n)^(gamma + 1) at the n-th update."""
    gamma = power_exponent(sigma_rel)
    return lambda n: (1 - 1 / n) ** (gamma + 1)


class EMA:
    """w_ema <- d w_ema + (1 - d) w after every step, in float32, over the weights that are trained.

    Weights sharded as DTensors (FSDP 2) are averaged shard by shard; `state_dict` holds full tensors all the same.

    Args:
        model: whose weights are averaged.
        decay: d at the n-th update.
        device: of the averages; None keeps them beside the weights.
    """

    def __init__(self, model: nn.Module, decay: Decay, device: str | None = None):
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {k: _copy(v, device) for k, v in _trainable_parameters(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model` by one step; raises KeyError where its weights' names changed."""
        self.updates += 1
        pairs = [(_local(self.weights[name]), _local(value)) for name, value in _trainable_parameters(model)]
        share = 1 - self.decay(self.updates)
        for chunk in _chunks(pairs, CHUNK):
            # A copy to main memory that does not block may be read before it is there.
            values = [value.to(average.device, torch.float32, non_blocking=average.is_cuda) for average, value in chunk]
            torch._foreach_lerp_([average for average, _ in chunk], values, share)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of a weight only."""
        return any(isinstance(value, DTensor) for value in self.weights.values())

    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into `model`."""
        with torch.no_grad():
            for name, value in _trainable_parameters(model):
                _local(value).copy_(_local(self.weights[name]))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """`model` with the averages inside the block, and its own weights again after it."""
        kept = {name: _copy(value, "cpu", value.dtype) for name, value in _trainable_parameters(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _trainable_parameters(model):
                    _local(value).copy_(_local(kept[name]))

    def state_dict(self) -> dict[str, Any]:
        """`weights`: full float32 tensors by name; `updates`. With sharded weights every process must call it."""
        gathered = {k: full_tensor(v).cpu() if isinstance(v, DTensor) else v for k, v in self.weights.items()}
        return {"weights": gathered, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back; raises KeyError where the names, ValueError where the shapes are another model's."""
        if state["weights"].keys() != self.weights.keys():
            raise KeyError("EMA weights have other names than the model's")
        for name, value in state["weights"].items():
            mine = self.weights[name]
            if value.shape != mine.shape:
                raise ValueError(f"EMA weight '{name}' has the shape {tuple(value.shape)}, not {tuple(mine.shape)}")
            if isinstance(mine, DTensor):
                value = distribute_tensor(value.to(mine.device), mine.device_mesh, mine.placements)
            _local(mine).copy_(_local(value))
        self.updates = int(state["updates"])


def full_tensor(value: Tensor) -> Tensor:
    """A weight that may be sharded as one tensor. Sharded ones are gathered, so every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state_dict(
    model: nn.Module, average: EMA | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The state of a model with no weight sharded. With sharded weights every process must call it.

    Args:
        model: whose state is taken.
        average: its averages replace the weights that it follows.
        device: of the result; tensors that are there already are not copied.

    Returns:
        Full tensors by name.
    """
    averages = average.weights if average else {}
    return {k: full_tensor(averages.get(k, v)).detach().to(device) for k, v in model.state_dict().items()}


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _copy(value: Tensor, device: str | None, dtype: torch.dtype = torch.float32) -> Tensor:
    copy = value.detach().to(dtype).clone()
    return copy.to(device) if device else copy


def _trainable_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.data) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _chunks(pairs: list[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The pairs in order, in lists of `size` elements at most, or of one pair."""
    chunk: list[tuple[Tensor, Tensor]] = []
    elements = 0
    for pair in pairs:
        if chunk and elements + pair[0].numel() > size:
            yield chunk
            chunk, elements = [], 0
        chunk.append(pair)
        elements += pair[0].numel()
    if chunk:
        yield chunk


def profile_product(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """The inner product of two profiles, in closed form.

    Args:
        t_a: length of the first profile, in steps.
        gamma_a: its exponent.
        t_b: length of the second profile.
        gamma_b: its exponent.

    Returns:
        The integral of their product up to the shorter length.
    """
    t, both = min(t_a, t_b), gamma_a + gamma_b + 1
    scale = (gamma_a + 1) * (gamma_b + 1) / both
    return float(scale * np.exp(both * np.log(t) - (gamma_a + 1) * np.log(t_a) - (gamma_b + 1) * np.log(t_b)))


def posthoc_weights(stored: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> np.ndarray:
    """The mixture of stored profiles that is nearest to another profile, by least squares of the profiles.

    Args:
        stored: n pairs (step, sigma_rel).
        step: length of the wanted profile.
        sigma_rel: its width.

    Returns:
        float64 [n], the weight of each stored profile.
    """
    given = [(float(t), power_exponent(rel)) for t, rel in stored]
    wanted = (float(step), power_exponent(sigma_rel))
    matrix = np.array([[profile_product(*a, *b) for b in given] for a in given])
    # Neighbouring snapshots are nearly equal: least squares where a plain inverse would blow rounding up.
    return np.linalg.lstsq(matrix, np.array([profile_product(*a, *wanted) for a in given]), rcond=1e-12)[0]


def save_snapshot(out: Path, step: int, sigma_rel: float, average: EMA, is_main: bool = True) -> None:
    """Write a running average under out/ema-profiles, as full float16 tensors. Every process must call it.

    Args:
        out: the run's folder.
        step: finished steps.
        sigma_rel: width of the average.
        average: the average.
        is_main: whether this process writes.

    Raises:
        InputError: where the file cannot be written.
    """
    path = out / SNAPSHOTS / f"step-{step:08d}-{sigma_rel:.3f}.safetensors"
    if not is_main and not average.sharded:
        return
    weights = {name: value.half().cpu().contiguous() for name, value in average.state_dict()["weights"].items()}
    if not is_main:
        return
    try:
        with replacing(path) as aside:
            save_file(weights, aside)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the EMA snapshot '{path}': {error}") from error


def list_snapshots(out: Path) -> list[tuple[int, float, Path]]:
    """(step, sigma_rel, file) of every snapshot of a run, in order."""
    found = [
        (match, path)
        for path in sorted((out / SNAPSHOTS).glob("*.safetensors"))
        if (match := re.fullmatch(r"step-(\d{8})-(\d\.\d{3})\.safetensors", path.name))
    ]
    return [(int(match[1]), float(match[2]), path) for match, path in found]


def discard_snapshots(out: Path, after: int) -> None:
    """Remove a run's snapshots of steps after `after`: they are of another course of training than what follows.

    Args:
        out: the run's folder.
        after: finished steps of the run that starts or is resumed.
    """
    late = [path for step, _, path in list_snapshots(out) if step > after]
    if late:
        log.info("%d EMA snapshots of steps after %d are removed: they will be made again", len(late), after)
    for path in late:
        path.unlink()


def posthoc_average(out: Path, sigma_rel: float) -> dict[str, Tensor]:
    """An average of any width, from a run's snapshots.

    Args:
        out: the run's folder.
        sigma_rel: the wanted width, of a profile as long as the last snapshot's.

    Returns:
        float32 weights by name.

    Raises:
        InputError: where there are no snapshots, or for an impossible width.
    """
    snapshots = list_snapshots(out)
    if not snapshots:
        raise InputError(f"'{out / SNAPSHOTS}' holds no snapshot; train with optim.ema_profiles=[0.05,0.1]")
    try:
        shares = posthoc_weights([entry[:2] for entry in snapshots], snapshots[-1][0], sigma_rel)
    except ValueError as error:
        raise InputError(str(error)) from error
    total: dict[str, Tensor] = {}
    for share, (_, _, path) in zip(shares, snapshots, strict=True):
        for name, value in load_file(path).items():
            total[name] = total.get(name, torch.zeros(value.shape)) + float(share) * value.float()
    return total


def export_posthoc_model(out: Path, sigma_rel: float) -> Path:
    """Write a finished run's model with another EMA width, as out/model-ema-0.050.

    Args:
        out: the run's folder, with its model and its snapshots.
        sigma_rel: the wanted width.

    Returns:
        The model's folder.

    Raises:
        InputError: where the snapshots are missing or of another model.
    """
    from nova3d.pipeline import Nova3DPipeline  # heavy, and needed here alone

    weights = posthoc_average(out, sigma_rel)
    pipeline = Nova3DPipeline.load(out / "model")
    for prefix, part in (("unet.", pipeline.unet), ("trained_encoder.", pipeline.image_encoder)):
        if part is None:
            continue
        chosen = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        surplus = part.load_state_dict(chosen, strict=False).unexpected_keys
        if surplus:
            raise InputError(f"the snapshots in '{out / SNAPSHOTS}' are of another model: it has no '{surplus[0]}'")
    folder = out / f"model-ema-{sigma_rel:.3f}"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
