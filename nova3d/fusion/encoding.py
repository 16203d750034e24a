"""A multi-resolution hash grid in plain torch, with its exact gradient in x from the same gather.

Layout, hashing and interpolation are those of tiny-cuda-nn's HashGrid (arXiv 2201.05989, section 3), so a table
moves between the two: level l has scale s_l = base * growth^l - 1 and resolution ceil(s_l) + 1, a point sits at
x * s_l + 0.5, a level whose resolution^3 fits the table is stored densely with x fastest, any other is hashed by
xor of the coordinates times (1, 2654435761, 805459861).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_PRIME_Y, _PRIME_Z = 2654435761, 805459861


@dataclass(frozen=True)
class Corners:
    """What one gather brings: values [F,2,2,2,L,n] (axes z, y, x of the cell) and positions in the cell [3,L,n]."""

    values: Tensor
    position: Tensor


class HashGrid(nn.Module):
    """Features of points in the unit cube. The table is [F, sum of level sizes] float32, levels one after another."""

    scales: Tensor
    offsets: Tensor
    strides: Tensor
    sizes: Tensor

    def __init__(
        self,
        levels: int,
        features: int,
        log2_table: int,
        base: int,
        finest: int,
        init: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.features = levels, features
        growth = (finest / base) ** (1 / max(1, levels - 1))
        scales = [base * growth**level - 1 for level in range(levels)]
        resolutions = [math.ceil(scale) + 1 for scale in scales]
        sizes = [min(-(-(r**3) // 8) * 8, 1 << log2_table) for r in resolutions]
        self.dense_levels = sum(r**3 <= 1 << log2_table for r in resolutions)
        self.resolutions = resolutions
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        offsets = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        self.register_buffer("offsets", offsets[:, None], persistent=False)
        self.register_buffer("sizes", torch.tensor(sizes)[:, None], persistent=False)
        strides = torch.tensor([[1, r, r * r] for r in resolutions]).T[:, :, None]
        self.register_buffer("strides", strides.contiguous(), persistent=False)
        table = torch.rand(features, sum(sizes), generator=generator) * 2 - 1
        self.table = nn.Parameter(table * init)

    @property
    def width(self) -> int:
        """Features of all levels together."""
        return self.levels * self.features

    def gather(self, x: Tensor, levels: int | None = None) -> Corners:
        """The corner values around points x [n,3] in [0,1] on the first `levels` levels (default all)."""
        count = self.levels if levels is None else levels
        scaled = x.T[:, None] * self.scales[:count, None] + 0.5  # 3 L n
        cell = scaled.detach().floor()
        index = self._index(cell.long(), count)
        values = self.table.index_select(1, index.flatten())
        return Corners(values.view(self.features, 2, 2, 2, count, -1), scaled - cell)

    def interpolate(self, corners: Corners) -> Tensor:
        """Trilinear features [n, L*F], level-major, L the gathered levels."""
        tx, ty, tz = corners.position
        v = corners.values
        v = torch.lerp(v[:, :, :, 0], v[:, :, :, 1], tx)
        v = torch.lerp(v[:, :, 0], v[:, :, 1], ty)
        v = torch.lerp(v[:, 0], v[:, 1], tz)  # F L n
        return v.permute(2, 1, 0).reshape(v.shape[2], -1)

    def pull_back(self, corners: Corners, cotangent: Tensor) -> Tensor:
        """J^T c [n,3] for the Jacobian J of `interpolate` in x and cotangents c [n, L*F].

        Exact inside a cell; differentiable once more in the table, the cotangent and x.
        """
        tx, ty, tz = corners.position
        levels = tx.shape[0]
        c = cotangent.view(-1, levels, self.features).permute(2, 1, 0)[:, None, None, None]
        s = (corners.values * c).sum(dim=0)  # 2 2 2 L n: the features contracted with the cotangent
        along_x = s[:, :, 1] - s[:, :, 0]
        along_x = torch.lerp(along_x[:, 0], along_x[:, 1], ty)
        s = torch.lerp(s[:, :, 0], s[:, :, 1], tx)
        along_y = s[:, 1] - s[:, 0]
        s = torch.lerp(s[:, 0], s[:, 1], ty)
        per_level = torch.stack(
            [torch.lerp(along_x[0], along_x[1], tz), torch.lerp(along_y[0], along_y[1], tz), s[1] - s[0]]
        )  # 3 L n
        return torch.einsum("aln,l->na", per_level, self.scales[:levels])

    def _index(self, cell: Tensor, count: int) -> Tensor:
        """Table columns [2,2,2,L,n] (z, y, x) of the corners of cells [3,L,n]."""
        d = min(self.dense_levels, count)
        dense = self._corner_sums(cell[:, :d] * self.strides[:, :d], self.strides[:, :d])
        dense = dense % self.sizes[:d]
        if d == count:
            return dense + self.offsets[:d]
        primes = cell.new_tensor([1, _PRIME_Y, _PRIME_Z])[:, None, None]
        low = cell[:, d:] * primes
        x, y, z = torch.stack([low, low + primes], dim=1)  # each 2 L n
        hashed = (x[None, None] ^ y[None, :, None] ^ z[:, None, None]) & (self.sizes[d] - 1)
        return torch.cat([dense, hashed], dim=3) + self.offsets[:count]

    @staticmethod
    def _corner_sums(low: Tensor, stride: Tensor) -> Tensor:
        x, y, z = torch.stack([low, low + stride], dim=1)  # each 2 L n
        return x[None, None] + y[None, :, None] + z[:, None, None]


def level_weights(levels: int, open_levels: float, device: torch.device | str = "cpu") -> Tensor:
    """[levels] weights in [0,1]: 1 for open levels, a fraction for the one that is opening, 0 above."""
    return (open_levels - torch.arange(levels, device=device)).clamp(0, 1)
