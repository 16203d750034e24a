"""The portable backend of the hash grid: plain torch on any device, differentiated by autograd. The reference."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nova3d.fusion.encoding import GridLayout

_PRIME_Y, _PRIME_Z = 2654435761, 805459861


class Kernel:
    """Reads tables of one layout."""

    def __init__(self, layout: "GridLayout") -> None:
        self.layout = layout

    def query(self, x: Tensor, table: Tensor, levels: int) -> "Query":
        scales = x.new_tensor(self.layout.scales[:levels])
        scaled = x.T[:, None] * scales[:, None] + 0.5  # 3 L n
        cell = scaled.detach().floor()
        index = self._index(cell.long(), levels)
        values = table.view(-1, self.layout.features)[index.flatten()]
        return Query(values.T.reshape(self.layout.features, 2, 2, 2, levels, -1), scaled - cell, scales)

    def _index(self, cell: Tensor, levels: int) -> Tensor:
        """Table entries [2,2,2,L,n] (z, y, x) of the corners of cells [3,L,n]."""
        layout = self.layout
        x, y, z = torch.stack([cell, cell + 1], dim=1)  # each 2 L n
        x, y, z = x[None, None], y[None, :, None], z[:, None, None]
        parts = []
        for level in range(levels):
            r, size = layout.resolutions[level], layout.sizes[level]
            at = ..., slice(level, level + 1), slice(None)
            if layout.dense[level]:
                index = (x[at] + y[at] * r + z[at] * r * r) % size
            else:
                index = (x[at] ^ (y[at] * _PRIME_Y) ^ (z[at] * _PRIME_Z)) & (size - 1)
            parts.append(index + layout.offsets[level])
        return torch.cat(parts, dim=3)


class Query:
    """values [F,2,2,2,L,n] of the corners (axes z, y, x of the cell), position [3,L,n] in the cell, scales [L]."""

    def __init__(self, values: Tensor, position: Tensor, scales: Tensor) -> None:
        self.values, self.position, self.scales = values, position, scales
        tx, ty, tz = position
        v = torch.lerp(values[:, :, :, 0], values[:, :, :, 1], tx)
        v = torch.lerp(v[:, :, 0], v[:, :, 1], ty)
        v = torch.lerp(v[:, 0], v[:, 1], tz)  # F L n
        self.features = v.permute(2, 1, 0).flatten(1)

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `nova3d.fusion.encoding.GridQuery`."""
        values = self.values if rows is None else self.values[..., rows]
        tx, ty, tz = self.position if rows is None else self.position[..., rows]
        features, levels = len(values), tx.shape[0]
        c = cotangent.view(-1, levels, features).permute(2, 1, 0)[:, None, None, None]
        s = (values * c).sum(dim=0)  # 2 2 2 L n: the features contracted with the cotangent
        along_x = s[:, :, 1] - s[:, :, 0]
        along_x = torch.lerp(along_x[:, 0], along_x[:, 1], ty)
        s = torch.lerp(s[:, :, 0], s[:, :, 1], tx)
        along_y = s[:, 1] - s[:, 0]
        s = torch.lerp(s[:, 0], s[:, 1], ty)
        per_level = torch.stack(
            [torch.lerp(along_x[0], along_x[1], tz), torch.lerp(along_y[0], along_y[1], tz), s[1] - s[0]]
        )  # 3 L n
        return torch.einsum("aln,l->na", per_level, self.scales)
