"""Exponential moving average of weights, keyed by name, in float32."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """w_ema <- d w_ema + (1 - d) w after every step.

    warmup "none": d = decay always. "inverse": d = min(decay, (1 + n) / (10 + n)) at the n-th update, which lets a
    short run forget its start.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: str = "none"):
        if warmup not in ("none", "inverse"):
            raise ValueError(f"EMA warm-up '{warmup}' is not one of none, inverse")
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.weights: dict[str, Tensor] = {k: v.detach().float().clone() for k, v in _floats(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model` by one step; raises KeyError where its weights' names changed."""
        self.updates += 1
        ramp = (1 + self.updates) / (10 + self.updates)
        decay = min(self.decay, ramp) if self.warmup == "inverse" else self.decay
        names, values = zip(*_floats(model), strict=True)
        torch._foreach_lerp_([self.weights[name] for name in names], [v.float() for v in values], 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into `model`."""
        with torch.no_grad():
            for name, value in _floats(model):
                value.copy_(self.weights[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """`model` with the averages inside the block, and its own weights again after it."""
        kept = {name: value.detach().clone() for name, value in _floats(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _floats(model):
                    value.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["weights"].keys() != self.weights.keys():
            raise KeyError("EMA weights have other names than the model's")
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.updates = int(state["updates"])


def _floats(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return [(name, parameter.data) for name, parameter in model.named_parameters() if parameter.is_floating_point()]
