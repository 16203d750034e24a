"""The multi-resolution hash grid (Instant-NGP, arXiv 2201.05989, section 3) behind one seam of backends.

Layout, hashing and interpolation are those of tiny-cuda-nn's HashGrid, so a table moves between backends unchanged:
level l has scale s_l = base * growth^l - 1 and resolution ceil(s_l) + 1; a point sits at x * s_l + 0.5; a level whose
resolution^3 fits the table is stored densely with x fastest, any other is hashed by xor of the coordinates times
(1, 2654435761, 805459861). The table is one flat vector: level after level, entry after entry, features fastest.
"""

import importlib
import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nova3d.errors import InputError

log = logging.getLogger(__name__)

BACKENDS = ("torch", "numba", "tcnn")


@dataclass(frozen=True)
class GridLayout:
    """Where the entries are: one number per level. scales: cells along x. sizes, offsets: in entries of the table."""

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
        return len(self.scales)

    @property
    def entries(self) -> int:
        return sum(self.sizes)

    @property
    def dense(self) -> tuple[bool, ...]:
        """Whether a level is stored densely; dense levels come first."""
        return tuple(r**3 <= size for r, size in zip(self.resolutions, self.sizes, strict=True))

    @staticmethod
    def plan(levels: int, features: int, log2_table: int, base: int, finest: int) -> "GridLayout":
        """Levels from `base` to `finest` cells, growing geometrically.

        The growth stays a hair below the exact one: the finest scale is then no whole number, and float32's rounding
        cannot push its resolution up by one in one backend and not in another.
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
    """Points x [n,3] in [0,1] asked of the first L levels of a grid.

    features: [n, L*F] trilinear features, level-major.
    """

    features: Tensor

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """J^T c [m,3] for the Jacobian J of `features` in x and cotangents c [m, L*F], at the points `rows` [m].

        Without `rows` at all n points. Exact inside a cell; differentiable once more in the table, the cotangent and x.
        """
        ...


class HashGrid(nn.Module):
    """Features of points in the unit cube; `table` [entries * F] float32 starts uniform in +-init."""

    def __init__(
        self, layout: GridLayout, init: float = 1e-4, backend: str = "torch", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        table = (torch.rand(layout.entries * layout.features, generator=generator) * 2 - 1) * init
        self.table = nn.Parameter(table)
        self.backend = backend
        # Imported where chosen: neither numba nor tinycudann must be there for the portable one.
        module = importlib.import_module(f"nova3d.fusion.encoding_{backend}")
        self.kernel = module.Kernel(layout)

    @property
    def width(self) -> int:
        """Features of all levels together."""
        return self.layout.levels * self.layout.features

    def query(self, x: Tensor, levels: int | None = None) -> GridQuery:
        """Ask for points x [n,3] in [0,1] on the first `levels` levels (default all)."""
        query: GridQuery = self.kernel.query(x, self.table, self.layout.levels if levels is None else levels)
        return query


def pick_backend(name: str, device: torch.device | str) -> str:
    """The backend that "auto" means on `device`: tinycudann on CUDA, numba on a CPU, torch where they are missing.

    A name other than "auto" is returned as it is. Raises InputError where that one cannot work here.
    """
    on_cuda = torch.device(device).type == "cuda"
    if name == "auto":
        fast = "tcnn" if on_cuda else "numba" if torch.device(device).type == "cpu" else "torch"
        reason = _missing(fast)
        log.info("grid backend: %s%s", "torch" if reason else fast, f" ({reason})" if reason else "")
        return "torch" if reason else fast
    if name not in BACKENDS:
        raise InputError(f"encoding.backend '{name}' is none of auto, {', '.join(BACKENDS)}")
    if (name == "tcnn" and not on_cuda) or (name == "numba" and on_cuda):
        raise InputError(f"encoding.backend '{name}' does not run on {device}: use auto or torch")
    if reason := _missing(name):
        raise InputError(f"encoding.backend '{name}': {reason}; use auto or torch")
    return name


def _missing(backend: str) -> str:
    """Why a backend cannot be used, or nothing: its module is imported, and with it the library it stands for."""
    try:
        importlib.import_module(f"nova3d.fusion.encoding_{backend}")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    # tinycudann raises EnvironmentError where it sees no GPU, numba RuntimeError where it has no folder for its cache.
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return ""


def level_weights(levels: int, open_levels: float, device: torch.device | str = "cpu") -> Tensor:
    """[levels] weights in [0,1]: 1 for open levels, a fraction for the one that is opening, 0 above."""
    return (open_levels - torch.arange(levels, device=device)).clamp(0, 1)
