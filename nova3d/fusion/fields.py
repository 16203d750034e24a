"""The networks of a fit: SDF with features, view-independent colour, conflict field f_psi, sharpness of NeuS.

Shapes: n points, g geometry features (the SDF included), c colour features, v views. Points are in the
world frame. Tensors are float32 unless said otherwise.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.fusion.config import ConflictConfig, EncodingConfig, FieldConfig
from nova3d.fusion.encoding import GridLayout, GridQuery, make_grid

NORMALS = ("analytic", "tetrahedral")


class FieldSample(NamedTuple):
    """sdf: [n] world units, negative inside. gradient: [n,3] of it. features: [n,g] for colour and conflict."""

    sdf: Tensor
    gradient: Tensor
    features: Tensor


class SDFField(nn.Module):
    """A signed distance field over [-radius, radius]^3: hash grid and position through one softplus layer.

    The gradient is analytic: the network's Jacobian row, pulled back through the grid's trilinear weights. It uses the
    same table look-up as the value, so training it needs no second-order differentiation of the look-up.

    Args:
        encoding: settings of the hash grid.
        config: settings of the network.
        finest: resolution of the finest grid level.
        generator: of the start values.
        backend: of the hash grid: torch, numba or tcnn.

    Attributes:
        open_levels: how many grid levels are open, from the coarsest on; a fraction weighs the last one.

    Raises:
        InputError: where `config.normals` is unknown.
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
        self.grid = make_grid(layout, encoding.init, backend, generator)
        self.levels, self.features_per_level = encoding.levels, encoding.features
        self.open_levels = float(encoding.levels)
        hidden, width = config.hidden, encoding.levels * encoding.features + 3
        # Geometric initialisation (SAL, IDR, NeuS): the SDF of a sphere. Grid columns may start anywhere while the
        # tables are nearly zero; NeuS zeroes them.
        self.weight_in = nn.Parameter(torch.randn(hidden, width, generator=generator) * math.sqrt(2 / hidden))
        self.bias_in = nn.Parameter(torch.zeros(hidden))
        out = torch.randn(1 + config.geometry_features, hidden, generator=generator) * 1e-4
        self.weight_out = nn.Parameter(out + math.sqrt(math.pi / hidden))
        self.bias_out = nn.Parameter(torch.full((1 + config.geometry_features,), -0.5))

    def query(self, x: Tensor) -> "FieldQuery":
        """Evaluate points x [n,3] float32; those outside the box get the values of its nearest border point."""
        return FieldQuery(self, x)

    def forward(self, x: Tensor) -> FieldSample:
        """Value, gradient and features at points x [n,3] float32."""
        query = self.query(x)
        return FieldSample(query.sdf, query.gradient(), query.features)

    def sdf(self, x: Tensor) -> Tensor:
        """The signed distance [n] alone, at points x [n,3] float32."""
        _, inputs, _ = self._encode(x)
        pre = F.linear(inputs, self.weight_in[:, : inputs.shape[1]], self.bias_in)
        return F.linear(F.softplus(pre, self.beta), self.weight_out[:1], self.bias_out[:1])[:, 0] * self.radius

    def _encode(self, x: Tensor) -> tuple[GridQuery, Tensor, Tensor]:
        """The grid's query, the network's inputs [n,3+w] (position in [-1,1], weighted features), the weights [w]."""
        levels = min(self.levels, math.ceil(self.open_levels))
        weights = level_weights(levels, self.open_levels, x.device).repeat_interleave(self.features_per_level)
        scaled = (x / self.radius).clamp(-1, 1)
        query: GridQuery = self.grid(scaled * 0.5 + 0.5, levels)
        return query, torch.cat([scaled, query.features * weights], dim=-1), weights


class FieldQuery:
    """The field at points x [n,3]: sdf [n] and features [n,g] at once, the gradient where it is asked for."""

    def __init__(self, field: SDFField, x: Tensor) -> None:
        self.field, self.x = field, x
        self.grid, inputs, self.weights = field._encode(x)
        self.weight_in = field.weight_in[:, : inputs.shape[1]]
        self.pre = F.linear(inputs, self.weight_in, field.bias_in)
        self.features = F.linear(F.softplus(self.pre, field.beta), field.weight_out, field.bias_out)
        self.sdf = self.features[:, 0] * field.radius

    def gradient(self, rows: Tensor | None = None) -> Tensor:
        """d sdf / d x, exact or by finite differences (`field.normals`).

        Args:
            rows: [m] int64 numbers of points; None for all n points.

        Returns:
            [m,3] float32.
        """
        if self.field.normals == "tetrahedral":
            return self._tetrahedral(self.x if rows is None else self.x.index_select(0, rows))
        pre = self.pre if rows is None else self.pre.index_select(0, rows)
        row = torch.sigmoid(self.field.beta * pre) * self.field.weight_out[0]  # d sdf / d pre
        cotangent = row @ self.weight_in
        # The grid lives in [0,1], half the scale of the network's position input in [-1,1].
        return cotangent[:, :3] + 0.5 * self.grid.pull_back(cotangent[:, 3:] * self.weights, rows)

    def _tetrahedral(self, x: Tensor) -> Tensor:
        """sum_k k f(x + h k) / (4 h) over the four corners k of a tetrahedron; h: a cell of the finest open level."""
        level = min(self.field.levels, math.ceil(self.field.open_levels)) - 1
        h = 2 * self.field.radius / self.field.grid.layout.scales[level] / math.sqrt(3)
        corners = x.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
        values = self.field.sdf((x[:, None] + h * corners).reshape(-1, 3)).view(-1, 4)
        return values @ corners / (4 * h)


def level_weights(levels: int, open_levels: float, device: torch.device | str = "cpu") -> Tensor:
    """Weights [levels] float32 in [0,1]: 1 for open levels, a fraction for the one that is opening, 0 above."""
    return (open_levels - torch.arange(levels, device=device)).clamp(0, 1)


class ColourField(nn.Module):
    """Colour from geometry features, normal and position; the same from every direction.

    A view-dependent colour would explain a conflict between views away as reflection.

    Args:
        features: geometry features g.
        hidden: width c of the two hidden layers.
        generator: of the start values.
    """

    def __init__(self, features: int, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_linear(features + 6, hidden, generator), _linear(hidden, hidden, generator)])
        self.head = _linear(hidden, 3, generator)

    def forward(self, x: Tensor, normal: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Colour points.

        Args:
            x: [n,3] float32.
            normal: [n,3] float32 unit vectors, world frame.
            features: [n,g] float32.

        Returns:
            rgb: [n,3] float32 sRGB in [0,1].
            f_c: [n,c] float32, the last hidden layer.
        """
        hidden = torch.cat([x, normal, features], dim=-1)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(self.head(hidden)), hidden


class ConflictField(nn.Module):
    """The conflict field h = f_psi(f_c, f_g, d(v), l, x) of paper III: how far a view contradicts the others.

    h starts near sigmoid(bias). Beside x itself f_psi gets a positional encoding of x whose longest wave is as wide as
    the box, because a fault is a small patch of one view.

    Args:
        colour_features: width c of f_c.
        geometry_features: width g of f_g.
        views: number of views, each with a learned embedding l.
        config: settings of the network.
        generator: of the start values.
        radius: half the side of the box.
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
        """Evaluate f_psi. With `detach` only f_psi learns from h; else geometry could thin out where h is small.

        Args:
            f_c: [n,c] float32 colour features.
            f_g: [n,g] float32 geometry features.
            directions: [n,3] float32 unit vectors of the rays.
            view: [n] int64 numbers of the views.
            x: [n,3] float32 points.

        Returns:
            h: [n] float32 in [0,1].
        """
        inputs = [f_c, f_g, directions, x]
        if self.detach:
            inputs = [tensor.detach() for tensor in inputs]
        waves = (inputs[3][..., None] * self.bands).flatten(1)
        hidden = torch.cat([*inputs, waves.sin(), waves.cos(), self.embedding.index_select(0, view)], dim=-1)
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(self.head(hidden)[:, 0])


class Sharpness(nn.Module):
    """The inverse standard deviation s of the NeuS paper, `inv_s` in its released code: exp(10 v), v learned."""

    def __init__(self, inv_s: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(math.log(inv_s) / 10))

    def forward(self) -> Tensor:
        """The inverse standard deviation as a scalar tensor, float32 in [1, 1e4], per world unit."""
        return torch.exp(self.value * 10).clamp(1.0, 1e4)

    def item(self) -> float:
        """The inverse standard deviation as a number."""
        return float(self.forward().detach())


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    bound = math.sqrt(6 / inputs)  # He's uniform, for ReLU
    with torch.no_grad():
        layer.weight.copy_((torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound)
        layer.bias.zero_()
    return layer
