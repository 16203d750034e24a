"""The three networks on the grid: SDF with features, view-independent colour, and the sharpness of NeuS."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.fusion.config import EncodingConfig, FieldConfig
from nova3d.fusion.encoding import GridLayout, GridQuery, HashGrid, level_weights

NORMALS = ("analytic", "tetrahedral")


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
        self,
        encoding: EncodingConfig,
        config: FieldConfig,
        finest: int,
        generator: torch.Generator | None = None,
        backend: str = "torch",
    ) -> None:
        super().__init__()
        if config.normals not in NORMALS:
            raise InputError(f"field.normals '{config.normals}' is none of {', '.join(NORMALS)}")
        self.radius, self.beta, self.normals = config.radius, config.beta, config.normals
        layout = GridLayout.plan(encoding.levels, encoding.features, encoding.log2_table, encoding.base, finest)
        self.grid = HashGrid(layout, encoding.init, backend, generator)
        self.open_levels = float(encoding.levels)
        hidden, width = config.hidden, self.grid.width + 3
        # Geometric initialisation (SAL, IDR, NeuS): the SDF of a sphere. Grid columns may be anything while the
        # tables are nearly zero; NeuS zeroes them.
        self.weight_in = nn.Parameter(torch.randn(hidden, width, generator=generator) * math.sqrt(2 / hidden))
        self.bias_in = nn.Parameter(torch.zeros(hidden))
        out = torch.randn(1 + config.geometry_features, hidden, generator=generator) * 1e-4
        self.weight_out = nn.Parameter(out + math.sqrt(math.pi / hidden))
        self.bias_out = nn.Parameter(torch.full((1 + config.geometry_features,), -0.5))

    def query(self, x: Tensor) -> "FieldQuery":
        """Ask for points x [n,3] in world units; outside the box the border's cells are extended by clamping."""
        return FieldQuery(self, x)

    def forward(self, x: Tensor) -> FieldSample:
        """Value, gradient and features at points x [n,3]."""
        query = self.query(x)
        return FieldSample(query.sdf, query.gradient(), query.features)

    def sdf(self, x: Tensor) -> Tensor:
        """The value alone, [n]."""
        _, inputs, _ = self._encode(x)
        pre = F.linear(inputs, self.weight_in[:, : inputs.shape[1]], self.bias_in)
        return F.linear(F.softplus(pre, self.beta), self.weight_out[:1], self.bias_out[:1])[:, 0] * self.radius

    def _encode(self, x: Tensor) -> tuple[GridQuery, Tensor, Tensor]:
        """The grid's answer, the MLP's inputs [n,3+w] (position in [-1,1], weighted features) and the weights [w]."""
        levels = min(self.grid.layout.levels, math.ceil(self.open_levels))
        weights = level_weights(levels, self.open_levels, x.device).repeat_interleave(self.grid.layout.features)
        scaled = (x / self.radius).clamp(-1, 1)
        query = self.grid.query(scaled * 0.5 + 0.5, levels)
        return query, torch.cat([scaled, query.features * weights], dim=-1), weights


class FieldQuery:
    """The field at points x [n,3]: `sdf` [n] and `features` [n,g] at once, the gradient where it is asked for."""

    def __init__(self, field: SDFField, x: Tensor) -> None:
        self.field, self.x = field, x
        self.grid, inputs, self.weights = field._encode(x)
        self.weight_in = field.weight_in[:, : inputs.shape[1]]
        self.pre = F.linear(inputs, self.weight_in, field.bias_in)
        self.features = F.linear(F.softplus(self.pre, field.beta), field.weight_out, field.bias_out)
        self.sdf = self.features[:, 0] * field.radius

    def gradient(self, rows: Tensor | None = None) -> Tensor:
        """d sdf / d x [m,3] at the points `rows` [m] (default all): exact, or by differences (`field.normals`)."""
        if self.field.normals == "tetrahedral":
            return self._tetrahedral(self.x if rows is None else self.x.index_select(0, rows))
        pre = self.pre if rows is None else self.pre.index_select(0, rows)
        row = torch.sigmoid(self.field.beta * pre) * self.field.weight_out[0]  # d sdf / d pre
        cotangent = row @ self.weight_in
        # The grid lives in [0,1], half the scale of the MLP's position input in [-1,1].
        return cotangent[:, :3] + 0.5 * self.grid.pull_back(cotangent[:, 3:] * self.weights, rows)

    def _tetrahedral(self, x: Tensor) -> Tensor:
        """sum_k k f(x + h k) / (4 h) over the four corners k of a tetrahedron; h: a cell of the finest open level."""
        level = min(self.field.grid.layout.levels, math.ceil(self.field.open_levels)) - 1
        h = 2 * self.field.radius / self.field.grid.layout.scales[level] / math.sqrt(3)
        corners = x.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
        values = self.field.sdf((x[:, None] + h * corners).reshape(-1, 3)).view(-1, 4)
        return values @ corners / (4 * h)


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
