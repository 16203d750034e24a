"""The conflict field h = f_psi(f_c, f_g, d(v), l, x) (paper III) and the schedule of its penalty."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.fusion.config import ConflictConfig


class ConflictField(nn.Module):
    """How far one view may contradict the others at a point: h in [0,1], starting near sigmoid(bias)."""

    def __init__(
        self,
        colour_features: int,
        geometry_features: int,
        views: int,
        config: ConflictConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.detach = config.detach
        embedding = torch.randn(views, config.view_embedding, generator=generator) * 0.1
        self.embedding = nn.Parameter(embedding)
        width = colour_features + geometry_features + 3 + config.view_embedding + 3
        self.hidden = nn.Linear(width, config.hidden)
        self.head = nn.Linear(config.hidden, 1)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.randn(config.hidden, width, generator=generator) * (2 / width) ** 0.5)
            self.hidden.bias.zero_()
            self.head.weight.copy_(torch.randn(1, config.hidden, generator=generator) * 0.05)
            self.head.bias.fill_(config.bias)

    def forward(self, f_c: Tensor, f_g: Tensor, directions: Tensor, view: Tensor, x: Tensor) -> Tensor:
        """h [n] at points x [n,3] seen along directions [n,3] by views [n], features f_c [n,c] and f_g [n,g].

        With `detach` nothing but f_psi itself learns from h: otherwise geometry could thin out where h is small.
        """
        inputs = [f_c, f_g, directions, x]
        if self.detach:
            inputs = [tensor.detach() for tensor in inputs]
        hidden = F.relu(self.hidden(torch.cat([*inputs, self.embedding[view]], dim=-1)))
        return torch.sigmoid(self.head(hidden)[:, 0])


def penalty(progress: float, config: ConflictConfig) -> float:
    """lambda_0 at `progress` in [0,1] of the run: geometric from lambda_start (at `start`) to lambda_end (at 1)."""
    share = min(1.0, max(0.0, (progress - config.start) / max(1e-9, 1 - config.start)))
    return float(config.lambda_start * (config.lambda_end / config.lambda_start) ** share)
