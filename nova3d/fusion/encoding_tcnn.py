"""The hash grid on CUDA by tiny-cuda-nn's own kernels (optional; requirements-cuda.txt)."""

import tinycudann
import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.encoding import GridLayout, HashGrid


class TcnnHashGrid(HashGrid):
    """The hash grid with tiny-cuda-nn's module and our table as its parameters."""

    def __init__(self, layout: GridLayout, init: float = 1e-4, generator: torch.Generator | None = None) -> None:
        super().__init__(layout, init, generator)
        settings = {
            "otype": "HashGrid",
            "n_levels": layout.levels,
            "n_features_per_level": layout.features,
            "log2_hashmap_size": layout.log2_table,
            "base_resolution": layout.base,
            "per_level_scale": layout.growth,
            "interpolation": "Linear",
        }
        # In a tuple, so that its own parameters are not part of this module's.
        self.encoding = (tinycudann.Encoding(3, settings, dtype=torch.float32),)
        expected, found = layout.entries * layout.features, self.encoding[0].params.numel()
        if found != expected:
            raise InputError(
                f"tinycudann lays this grid out with {found} numbers, nova3d with {expected}: "
                "use encoding.backend=torch"
            )

    def forward(self, x: Tensor, levels: int) -> "TcnnQuery":
        """See `nova3d.fusion.encoding.HashGrid`."""
        return TcnnQuery(self.encoding[0], x, self.table, levels * self.layout.features)


class TcnnQuery:
    """See `nova3d.fusion.encoding.GridQuery`; the Jacobian is autograd's, by tiny-cuda-nn's double backward."""

    def __init__(self, module: torch.nn.Module, x: Tensor, table: Tensor, width: int) -> None:
        self.x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():  # the Jacobian is also wanted for values that are not trained
            self.all = torch.func.functional_call(module, {"params": table}, (self.x,))
        self.width = width
        self.features = self.all[:, :width]

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `nova3d.fusion.encoding.GridQuery`."""
        if rows is not None:
            cotangent = torch.zeros_like(self.features).index_copy(0, rows, cotangent)
        (gradient,) = torch.autograd.grad(self.features, self.x, cotangent, create_graph=torch.is_grad_enabled())
        return gradient if rows is None else gradient[rows]
