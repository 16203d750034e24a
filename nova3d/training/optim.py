"""Optimizers: parameter groups, AdamW, its 8-bit form, and Muon for matrices and kernels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.training.config import OPTIMIZERS, OptimConfig
from nova3d.training.precision import cpu_bf16_is_fast
from nova3d.utils.compat import has

# Coefficients of the quintic Newton-Schulz iteration x -> a x + b (x x^T) x + c (x x^T)^2 x of Jordan et al. 2024. They
# bring singular values in (0, 1] to about [0.7, 1.2] in five steps; exact orthogonality is not needed.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@dataclass
class ParameterGroup:
    """Parameters that share an update rule.

    Attributes:
        name: for messages and logs.
        learning_rate: at its peak; the schedule scales it at every step. A checkpoint does not change it, so a resumed
            run follows its config.
        weight_decay: decoupled.
        muon: whether Muon's rule updates them, where the optimizer is Muon.
        parameters: of the group.
    """

    name: str
    learning_rate: float
    weight_decay: float
    muon: bool = False
    parameters: list[nn.Parameter] = field(default_factory=list)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """The parameter groups of a UNet's run, in the order of their first parameters.

    Muon takes the matrices and kernels that suit it, at its own rate. The view embedding has its multiplier. Norms,
    biases and SVD's mix factors are not decayed.

    Args:
        model: with its trained parameters.
        config: rates and weight decay.

    Returns:
        The groups that have parameters, named like "matrices", "weights", "view_embedding/weights", "vectors".
    """
    groups: dict[tuple[float, float, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            muon = config.name == "muon" and is_matrix(name, parameter)
            label = "matrices" if muon else "weights" if parameter.dim() > 1 else "vectors"
            factor = 1.0
            if "view_embedding." in name and config.view_embedding_multiplier != 1:
                factor, label = config.view_embedding_multiplier, f"view_embedding/{label}"
            rate = factor * (config.muon_learning_rate if muon else config.learning_rate)
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            group = groups.setdefault((rate, decay, muon), ParameterGroup(label, rate, decay, muon))
            group.parameters.append(parameter)
    return list(groups.values())


def orthogonalised(matrices: Tensor, iterations: int = _ITERATIONS) -> Tensor:
    """Replace the singular values of matrices by values near 1: u s v^T becomes about u v^T.

    The Newton-Schulz iteration of Muon (Jordan et al. 2024). It runs in bfloat16 where that is fast (CUDA, some
    CPUs), else in float32.

    Args:
        matrices: [n,r,c], float.
        iterations: Newton-Schulz steps.

    Returns:
        [n,r,c] in the dtype of `matrices`. Zero matrices stay zero.
    """
    a, b, c = _NEWTON_SCHULZ
    fast = matrices.is_cuda or (matrices.device.type == "cpu" and cpu_bf16_is_fast())
    x = matrices.to(torch.bfloat16 if fast else torch.float32)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT  # the smaller side first: its square is the cheaper product
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)  # the spectral norm is at most the Frobenius norm
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and kernels, AdamW for all other parameters, in one optimizer.

    A kernel of three or more dimensions [o,i,...] is a matrix [o,i*...]. Its update is the orthogonalised Nesterov
    momentum times sqrt(max(1, rows / columns)). Matrices of one shape are orthogonalised together. Weight decay is
    decoupled for both kinds.

    Args:
        groups: parameter groups. The key `muon` of a group selects its rule; both need `lr` and
            `weight_decay`.
        momentum: of Muon's rule.
        betas: AdamW's, for the groups that follow its rule.
        eps: AdamW's.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ):
        defaults = {"lr": 0.0, "weight_decay": 0.0, "muon": False, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["muon"] and any(p.dim() < 2 for p in group["params"]):
                raise ValueError("Muon's rule is for parameters of two or more dimensions")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns what `closure` returns, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            buffer = state["momentum_buffer"]
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)  # Nesterov's look ahead
            shapes.setdefault((update.shape[0], update.shape[1]), []).append((parameter, update))
        for (rows, columns), entries in shapes.items():
            directions = orthogonalised(torch.stack([update for _, update in entries]))
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for (parameter, _), direction in zip(entries, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.view_as(parameter), alpha=-rate)

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        first, second = group["betas"]
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] += 1
            count = int(state["step"])
            state["exp_avg"].lerp_(parameter.grad, 1 - first)
            state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            scale = (state["exp_avg_sq"] / (1 - second**count)).sqrt_().add_(group["eps"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - first**count))


def make_optimizer(
    name: str, groups: Sequence[ParameterGroup], betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer `name` over parameter groups, at a learning rate of 0 until the schedule sets it.

    Args:
        name: one of OPTIMIZERS.
        groups: in the order of the optimizer's.
        betas: AdamW's.
        device: of the parameters.

    Returns:
        The optimizer. AdamW is fused on a CUDA device.

    Raises:
        InputError: for another name, and for "adamw8bit" without bitsandbytes.
    """
    options = [{"params": group.parameters, "lr": 0.0, "weight_decay": group.weight_decay} for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(options, betas=betas, fused=device.type == "cuda")
    if name == "muon":
        rules = [option | {"muon": group.muon} for option, group in zip(options, groups, strict=True)]
        return Muon(rules, betas=betas)
    if name != "adamw8bit":
        raise InputError(f"optim.name '{name}' is not one of {', '.join(OPTIMIZERS)}")
    if not has("bitsandbytes"):
        raise InputError("optim.name 'adamw8bit' needs bitsandbytes: `pip install 'nova3d[adam8bit]'`")
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(options, betas=betas)


def moment_bytes(name: str) -> int:
    """Bytes of optimizer state per trained parameter, of the optimizer `name` for large tensors."""
    return {"adamw": 8, "adamw8bit": 2, "muon": 4}[name]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon's rule suits a parameter: a matrix or kernel between hidden layers.

    The first and the last layer (`conv_in`, `conv_out`) and one-row or one-column matrices follow AdamW's rule.
    """
    if parameter.dim() < 2 or min(parameter.shape[0], parameter[0].numel()) < 2:
        return False
    return not any(part in ("conv_in", "conv_out") for part in name.split("."))
