"""The backend of the hash grid on CUDA through tiny-cuda-nn's own kernels (optional; requirements-cuda.txt)."""

from typing import TYPE_CHECKING

import tinycudann
import torch
from torch import Tensor

from nova3d.errors import InputError

if TYPE_CHECKING:
    from nova3d.fusion.encoding import GridLayout


class Kernel:
    """Reads tables of one layout: the module is tiny-cuda-nn's, the parameters are the caller's."""

    def __init__(self, layout: "GridLayout") -> None:
        self.layout = layout
        settings = {
            "otype": "HashGrid",
            "n_levels": layout.levels,
            "n_features_per_level": layout.features,
            "log2_hashmap_size": layout.log2_table,
            "base_resolution": layout.base,
            "per_level_scale": layout.growth,
            "interpolation": "Linear",
        }
        self.module = tinycudann.Encoding(3, settings, dtype=torch.float32)
        expected = layout.entries * layout.features
        if self.module.params.numel() != expected:
            raise InputError(
                f"tinycudann lays this grid out with {self.module.params.numel()} numbers, nova3d with {expected}: "
                "use encoding.backend=torch"
            )

    def query(self, x: Tensor, table: Tensor, levels: int) -> "Query":
        return Query(self.module, x, table, levels * self.layout.features)


class Query:
    """See `nova3d.fusion.encoding.GridQuery`; the Jacobian is autograd's, through tiny-cuda-nn's double backward."""

    def __init__(self, module: torch.nn.Module, x: Tensor, table: Tensor, width: int) -> None:
        self.x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():  # the Jacobian is wanted of values nobody trains, too
            self.all = torch.func.functional_call(module, {"params": table}, (self.x,))
        self.width = width
        self.features = self.all[:, :width]

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `nova3d.fusion.encoding.GridQuery`."""
        if rows is not None:
            cotangent = torch.zeros_like(self.features).index_copy(0, rows, cotangent)
        (gradient,) = torch.autograd.grad(self.features, self.x, cotangent, create_graph=torch.is_grad_enabled())
        return gradient if rows is None else gradient[rows]
