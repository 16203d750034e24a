"""The multi-resolution hash grid (Instant-NGP, arXiv 2201.05989, section 3): layout, torch reference, backends.

Layout, hashing and interpolation are those of tiny-cuda-nn's HashGrid, so a table moves between backends unchanged:
level l has scale s_l = base * growth^l - 1 and resolution ceil(s_l) + 1; a point lies at x * s_l + 0.5; a level whose
resolution^3 fits the table is stored densely with x fastest, any other is hashed by xor of the coordinates times
(1, 2654435761, 805459861). The table is one flat vector: level after level, entry after entry, features fastest.

`HashGrid` here is the portable reference. `encoding_numba` and `encoding_tcnn` each derive a faster one from it.
Shapes: n points, L levels, F features per level.
"""

import importlib
import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nova3d.errors import InputError, first_line

log = logging.getLogger(__name__)

BACKENDS = ("torch", "numba", "tcnn")
PRIME_Y, PRIME_Z = 2654435761, 805459861  # of the spatial hash; x has 1


@dataclass(frozen=True)
class GridLayout:
    """Where the entries are, with one number per level.

    scales: cells along an axis. resolutions: nodes along an axis. sizes, offsets: in entries of the table.
    """

    features: int
    log2_table: int
    base: int
    growth: float
    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Number of levels L."""
        return len(self.scales)

    @property
    def entries(self) -> int:
        """Entries of all levels together."""
        return sum(self.sizes)

    @property
    def dense(self) -> tuple[bool, ...]:
        """Whether each level is stored densely; dense levels come first."""
        return tuple(r**3 <= size for r, size in zip(self.resolutions, self.sizes, strict=True))

    @staticmethod
    def plan(levels: int, features: int, log2_table: int, base: int, finest: int) -> "GridLayout":
        """Lay out levels from `base` to `finest` cells, growing geometrically.

        The growth stays slightly below the exact one. The finest scale is then not a whole number, and float32
        rounding cannot raise its resolution by one in one backend and not in another.

        Args:
            levels: number of levels L.
            features: features per level F.
            log2_table: log2 of the most entries a level may have.
            base: resolution of the coarsest level.
            finest: resolution of the finest level.

        Returns:
            The layout.
        """
        growth = ((finest - 0.01) / base) ** (1 / max(1, levels - 1))
        log2_growth = np.float32(math.log2(growth))
        scales = [float(np.exp2(np.float32(level) * log2_growth) * np.float32(base) - 1) for level in range(levels)]
        resolutions = [math.ceil(scale) + 1 for scale in scales]
        sizes = [min(-(-(r**3) // 8) * 8, 1 << log2_table) for r in resolutions]
        offsets = [sum(sizes[:level]) for level in range(levels)]
        return GridLayout(
            features, log2_table, base, growth, tuple(scales), tuple(resolutions), tuple(sizes), tuple(offsets)
        )


class GridQuery(Protocol):
    """The features of n points, and their derivative.

    features: [n,L*F] float32, trilinear, level-major.
    """

    features: Tensor

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """The vector-Jacobian product J^T c, where J is the Jacobian of `features` in the points.

        Exact inside a cell. It is differentiable once more in the table, the cotangent and the points.

        Args:
            cotangent: [m,L*F] float32.
            rows: [m] int64 numbers of points; None for all n points.

        Returns:
            [m,3] float32.
        """
        ...


class HashGrid(nn.Module):
    """Features of points in the unit cube: plain torch on any device, differentiated by autograd.

    Args:
        layout: where the entries are.
        init: the table starts uniform in +-init.
        generator: of the table's start.

    Attributes:
        table: [entries*F] float32, the trained parameter.
    """

    def __init__(self, layout: GridLayout, init: float = 1e-4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.layout = layout
        self.table = nn.Parameter((torch.rand(layout.entries * layout.features, generator=generator) * 2 - 1) * init)

    def forward(self, x: Tensor, levels: int) -> GridQuery:
        """Look points up.

        Args:
            x: [n,3] in [0,1], float32 or float64 as the table.
            levels: how many levels L to read, from the coarsest on.

        Returns:
            Their features with the derivative.
        """
        scales = x.new_tensor(self.layout.scales[:levels])
        scaled = x.T[:, None] * scales[:, None] + 0.5  # 3 L n
        cell = scaled.detach().floor()
        index = self._entries(cell.long(), levels)
        values = self.table.view(-1, self.layout.features)[index.flatten()]
        return TorchQuery(values.T.reshape(self.layout.features, 2, 2, 2, levels, -1), scaled - cell, scales)

    def _entries(self, cell: Tensor, levels: int) -> Tensor:
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
                index = (x[at] ^ (y[at] * PRIME_Y) ^ (z[at] * PRIME_Z)) & (size - 1)
            parts.append(index + layout.offsets[level])
        return torch.cat(parts, dim=3)


class TorchQuery:
    """See `GridQuery`. values: [F,2,2,2,L,n] of the corners (z, y, x). position: [3,L,n] in the cell. scales: [L]."""

    def __init__(self, values: Tensor, position: Tensor, scales: Tensor) -> None:
        self.values, self.position, self.scales = values, position, scales
        tx, ty, tz = position
        v = torch.lerp(values[:, :, :, 0], values[:, :, :, 1], tx)
        v = torch.lerp(v[:, :, 0], v[:, :, 1], ty)
        v = torch.lerp(v[:, 0], v[:, 1], tz)  # F L n
        self.features = v.permute(2, 1, 0).flatten(1)

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `GridQuery`."""
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


def make_grid(
    layout: GridLayout, init: float = 1e-4, backend: str = "torch", generator: torch.Generator | None = None
) -> HashGrid:
    """Make a grid of one backend.

    Args:
        layout: where the entries are.
        init: the table starts uniform in +-init.
        backend: torch, numba or tcnn, as `pick_backend` returns it.
        generator: of the table's start.

    Returns:
        A `HashGrid` or the backend's subclass of it.
    """
    if backend == "torch":
        return HashGrid(layout, init, generator)
    # Imported here, because neither numba nor tinycudann has to be installed for the reference.
    module = importlib.import_module(f"nova3d.fusion.encoding_{backend}")
    grid: HashGrid = getattr(module, f"{backend.capitalize()}HashGrid")(layout, init, generator)
    return grid


def pick_backend(name: str, device: torch.device | str) -> str:
    """Choose the backend.

    Args:
        name: auto, torch, numba or tcnn. auto takes tinycudann on CUDA, numba on a CPU, and torch where these are
            missing; the choice is logged.
        device: where the grid will be.

    Returns:
        torch, numba or tcnn.

    Raises:
        InputError: where the name is unknown or that backend cannot work on the device.
    """
    on_cuda = torch.device(device).type == "cuda"
    if name == "auto":
        fast = "tcnn" if on_cuda else "numba" if torch.device(device).type == "cpu" else "torch"
        reason = _fault(fast)
        log.info("grid backend: %s%s", "torch" if reason else fast, f" ({reason})" if reason else "")
        return "torch" if reason else fast
    if name not in BACKENDS:
        raise InputError(f"encoding.backend '{name}' is none of auto, {', '.join(BACKENDS)}")
    if (name == "tcnn" and not on_cuda) or (name == "numba" and on_cuda):
        raise InputError(f"encoding.backend '{name}' does not run on {device}: use auto or torch")
    if reason := _fault(name):
        raise InputError(f"encoding.backend '{name}': {reason}; use auto or torch")
    return name


def _fault(backend: str) -> str:
    """Why a backend cannot be used, or "". Its module is imported, and with it the library that it needs."""
    if backend == "torch":
        return ""
    try:
        importlib.import_module(f"nova3d.fusion.encoding_{backend}")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    # tinycudann raises EnvironmentError where it sees no GPU, numba RuntimeError where it has no folder for its cache.
    except (ImportError, OSError, RuntimeError) as error:
        return first_line(error)
    return ""
