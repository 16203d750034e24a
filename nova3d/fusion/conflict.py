"""The conflict field h = f_psi(f_c, f_g, d(v), l, x) (paper III) and the schedule of its penalty."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.fusion.config import CONFLICT_MODES, ConflictConfig

MLP, CLOSED_FORM, TRIMMED, NONE = CONFLICT_MODES


class ConflictField(nn.Module):
    """How far one view may contradict the others at a point: h in [0,1], starting near sigmoid(bias).

    Beside x itself it is given waves of x, the longest as wide as the box: a fault is a small patch of one view.
    """

    bands: Tensor

    def __init__(
        self,
        colour_features: int,
        geometry_features: int,
        views: int,
        config: ConflictConfig,
        generator: torch.Generator | None = None,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        self.detach = config.detach
        self.embedding = nn.Parameter(torch.randn(views, config.view_embedding, generator=generator) * 0.1)
        bands = 2.0 ** torch.arange(config.bands) * math.pi / radius
        self.register_buffer("bands", bands, persistent=False)
        width = colour_features + geometry_features + 3 + config.view_embedding + 3 + 6 * config.bands
        sizes = [width, *[config.hidden] * config.layers]
        layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Linear(config.hidden, 1)
        with torch.no_grad():
            for layer in layers:
                shape = layer.weight.shape
                layer.weight.copy_(torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5)
                layer.bias.zero_()
            self.head.weight.copy_(torch.randn(1, config.hidden, generator=generator) * 0.05)
            self.head.bias.fill_(config.bias)

    def forward(self, f_c: Tensor, f_g: Tensor, directions: Tensor, view: Tensor, x: Tensor) -> Tensor:
        """h [n] at points x [n,3] seen along directions [n,3] by views [n], features f_c [n,c] and f_g [n,g].

        With `detach` nothing but f_psi itself learns from h: otherwise geometry could thin out where h is small.
        """
        inputs = [f_c, f_g, directions, x]
        if self.detach:
            inputs = [tensor.detach() for tensor in inputs]
        waves = (inputs[3][..., None] * self.bands).flatten(1)
        hidden = torch.cat([*inputs, waves.sin(), waves.cos(), self.embedding.index_select(0, view)], dim=-1)
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(self.head(hidden)[:, 0])


def penalty(progress: float, config: ConflictConfig) -> float:
    """lambda_0 at `progress` in [0,1] of the run: geometric from lambda_start (at `start`) to lambda_end (at 1)."""
    share = min(1.0, max(0.0, (progress - config.start) / max(1e-9, 1 - config.start)))
    return float(config.lambda_start * (config.lambda_end / config.lambda_start) ** share)


def closed_form(residual: Tensor, lambda_0: float) -> Tensor:
    """H* = min(1, r / (2 lambda_0)): what eq. 5 asks of H where nothing ties pixels together.

    With it the colour term is r - r^2 / (4 lambda_0) below r = 2 lambda_0 and lambda_0 beyond (Black and Rangarajan
    1996, line processes), up to the gradient of H*, which is zero at the optimum.
    """
    return (residual / (2 * lambda_0)).clamp(0, 1)
