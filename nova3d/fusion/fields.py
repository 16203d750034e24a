"""The three networks on the grid: SDF with features, view-independent colour, and the sharpness of NeuS."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.fusion.config import EncodingConfig, FieldConfig
from nova3d.fusion.encoding import Corners, HashGrid, level_weights


class FieldSample(NamedTuple):
    """sdf [n] world units, negative inside; gradient [n,3] of it; features [n,g] for the colour and conflict MLPs."""

    sdf: Tensor
    gradient: Tensor
    features: Tensor


class SDFField(nn.Module):
    """A signed distance field over the box [-radius, radius]^3: hash grid and position through one softplus layer.

    The gradient is analytic: the MLP's own Jacobian row pulled back through the grid's trilinear weights, from the
    same gather as the value (so training it needs no second-order differentiation).
    """

    def __init__(
        self, encoding: EncodingConfig, config: FieldConfig, finest: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.radius, self.beta = config.radius, config.beta
        self.grid = HashGrid(
            encoding.levels,
            encoding.features,
            encoding.log2_table,
            encoding.base,
            finest,
            encoding.init,
            generator,
        )
        self.open_levels = float(encoding.levels)
        hidden, width = config.hidden, self.grid.width + 3
        # Geometric initialisation (SAL, IDR, NeuS): the SDF of a sphere. Grid columns may be anything while the
        # tables are nearly zero; NeuS zeroes them.
        self.weight_in = nn.Parameter(torch.randn(hidden, width, generator=generator) * math.sqrt(2 / hidden))
        self.bias_in = nn.Parameter(torch.zeros(hidden))
        out = torch.randn(1 + config.geometry_features, hidden, generator=generator) * 1e-4
        self.weight_out = nn.Parameter(out + math.sqrt(math.pi / hidden))
        self.bias_out = nn.Parameter(torch.full((1 + config.geometry_features,), -0.5))

    def forward(self, x: Tensor) -> FieldSample:
        """Points x [n,3] in world units; outside the box the border's cells are extended by clamping."""
        corners, scaled, active, weights = self._encode(x)
        pre = F.linear(self._concat(corners, scaled, weights), self.weight_in[:, :active], self.bias_in)
        out = F.linear(F.softplus(pre, self.beta), self.weight_out, self.bias_out)
        row = torch.sigmoid(self.beta * pre) * self.weight_out[0]  # d sdf / d pre
        cotangent = row @ self.weight_in[:, :active]
        # The grid lives in [0,1], half the scale of the MLP's position input in [-1,1].
        gradient = cotangent[:, :3] + 0.5 * self.grid.pull_back(corners, cotangent[:, 3:] * weights)
        return FieldSample(out[:, 0] * self.radius, gradient, out)

    def sdf(self, x: Tensor) -> Tensor:
        """The value alone, [n]."""
        corners, scaled, active, weights = self._encode(x)
        pre = F.linear(self._concat(corners, scaled, weights), self.weight_in[:, :active], self.bias_in)
        return F.linear(F.softplus(pre, self.beta), self.weight_out[:1], self.bias_out[:1])[:, 0] * self.radius

    def _encode(self, x: Tensor) -> tuple[Corners, Tensor, int, Tensor]:
        """The gathered corners, the position in [-1,1], the count of active inputs and the weight of each feature."""
        levels = min(self.grid.levels, math.ceil(self.open_levels))
        weights = level_weights(levels, self.open_levels, x.device).repeat_interleave(self.grid.features)
        scaled = (x / self.radius).clamp(-1, 1)
        return self.grid.gather(scaled * 0.5 + 0.5, levels), scaled, 3 + len(weights), weights

    def _concat(self, corners: Corners, scaled: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([scaled, self.grid.interpolate(corners) * weights], dim=-1)


class ColourField(nn.Module):
    """Colour from geometry features, normal and position; the same from every direction.

    A view-dependent colour would explain a conflict between views away as reflection.
    """

    def __init__(self, features: int, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList([_linear(features + 6, hidden, generator), _linear(hidden, hidden, generator)])
        self.head = _linear(hidden, 3, generator)

    def forward(self, x: Tensor, normal: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """sRGB [n,3] in [0,1] and the last hidden layer f_c [n,hidden]; x [n,3], normal [n,3], features [n,g]."""
        hidden = torch.cat([x, normal, features], dim=-1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(self.head(hidden)), hidden


class Sharpness(nn.Module):
    """NeuS's inverse standard deviation 1/s as exp(10 v), v learned."""

    def __init__(self, inv_s: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(math.log(inv_s) / 10))

    def forward(self) -> Tensor:
        return torch.exp(self.value * 10).clamp(1.0, 1e4)

    def number(self) -> float:
        """The value outside the graph."""
        return float(self.forward().detach())


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    bound = math.sqrt(6 / inputs)  # He's uniform, for ReLU
    with torch.no_grad():
        layer.weight.copy_((torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound)
        layer.bias.zero_()
    return layer
