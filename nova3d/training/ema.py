"""Moving averages of weights over the steps, keyed by name, in float32."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Decay = Callable[[int], float]  # the n-th update (from 1) to the decay d


def exponential(decay: float, warmup: str = "none") -> Decay:
    """d = decay. warmup "inverse": d = min(decay, (1 + n) / (10 + n)), which lets a short run forget its start.

    Raises ValueError for another warm-up.
    """
    if warmup not in ("none", "inverse"):
        raise ValueError(f"EMA warm-up '{warmup}' is not one of none, inverse")
    return lambda n: min(decay, (1 + n) / (10 + n)) if warmup == "inverse" else decay


class EMA:
    """w_ema <- d w_ema + (1 - d) w after every step, over the weights that are trained.

    Weights sharded as DTensors (FSDP 2) are averaged shard by shard; `state_dict` holds whole tensors all the same.
    device "": where the weights are.
    """

    def __init__(self, model: nn.Module, decay: Decay, device: str = ""):
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {k: _copied(v, device) for k, v in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model` by one step; raises KeyError where its weights' names changed."""
        self.updates += 1
        pairs = [(_local(self.weights[name]), _local(value)) for name, value in _trained(model)]
        averages = [average for average, _ in pairs]
        values = [value.to(average.device, torch.float32, non_blocking=True) for average, value in pairs]
        torch._foreach_lerp_(averages, values, 1 - self.decay(self.updates))

    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into `model`."""
        with torch.no_grad():
            for name, value in _trained(model):
                _local(value).copy_(_local(self.weights[name]))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """`model` with the averages inside the block, and its own weights again after it."""
        kept = {name: _copied(value, "cpu", value.dtype) for name, value in _trained(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _trained(model):
                    _local(value).copy_(_local(kept[name]))

    def state_dict(self) -> dict[str, Any]:
        """`weights`: whole float32 tensors by name; `updates`. With sharded weights every process must call it."""
        gathered = {k: whole(v).cpu() if isinstance(v, DTensor) else v for k, v in self.weights.items()}
        return {"weights": gathered, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError where the names, ValueError where the shapes are another model's."""
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


def whole(value: Tensor) -> Tensor:
    """A weight that may be sharded as one tensor; sharded ones are gathered, so every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _copied(value: Tensor, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    copy = value.detach().to(dtype).clone()
    return copy.to(device) if device else copy


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.data) for name, parameter in model.named_parameters() if parameter.requires_grad]
