"""The march through empty space, behind one seam: which parts of a ray lie where a surface may be.

Every marcher cuts rays into steps of one length from where they enter the box, and marks the steps whose middle falls
into an occupied cell. Which library walks the grid does not matter to what follows.
"""

import importlib
import logging
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nova3d.errors import InputError

log = logging.getLogger(__name__)

BACKENDS = ("torch", "nerfacc")


class March(NamedTuple):
    """edges [r,p+1] distances along r rays; occupied bool [r,p] whether a surface may be between two of them."""

    edges: Tensor
    occupied: Tensor


class Marcher(Protocol):
    """Marches through an occupancy grid over [-radius, radius]^3."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> March:
        """Rays [r,3] through the bool cells [z,y,x] of the box [2,3], `steps` steps across its diagonal."""
        ...


class TorchMarcher:
    """The portable reference: every step of every ray is looked up."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> March:
        """See `Marcher`."""
        near, far = box_interval(origins, directions, box)
        edges, middles = _steps(near, box, steps)
        x = origins[:, None] + middles[..., None] * directions[:, None]
        n = torch.tensor(occupancy.shape, device=x.device).flip(0)
        cell = ((x / radius + 1) * 0.5 * n).long().clamp_min(0).minimum(n - 1)
        occupied = occupancy[cell[..., 2], cell[..., 1], cell[..., 0]] & (middles < far[:, None])
        return March(edges, occupied)


class NerfaccMarcher:
    """CUDA: nerfacc's traversal; its packed intervals are put back into the steps they are."""

    def march(
        self, origins: Tensor, directions: Tensor, occupancy: Tensor, radius: float, box: Tensor, steps: int
    ) -> March:
        """See `Marcher`."""
        nerfacc = importlib.import_module("nerfacc")
        near, far = box_interval(origins, directions, box)
        edges, _ = _steps(near, box, steps)
        size = float((box[1] - box[0]).norm()) / steps
        aabb = torch.tensor([-radius] * 3 + [radius] * 3, device=origins.device)
        intervals, samples, _ = nerfacc.traverse_grids(
            origins.contiguous(),
            directions.contiguous(),
            occupancy.permute(2, 1, 0)[None].contiguous(),  # nerfacc's cells are [level, x, y, z]
            aabb[None],
            near_planes=near.contiguous(),
            far_planes=far.contiguous(),
            step_size=size,
            cone_angle=0.0,
        )
        middles = (intervals.vals[intervals.is_left] + intervals.vals[intervals.is_right]) / 2
        ray = samples.ray_indices
        index = ((middles - near[ray]) / size).long().clamp(0, steps - 1)
        occupied = torch.zeros(len(origins), steps, dtype=torch.bool, device=origins.device)
        occupied[ray, index] = True
        return March(edges, occupied)


def pick_marcher(name: str, device: torch.device | str) -> Marcher:
    """The marcher that `name` ("auto", "torch", "nerfacc") means on `device`; logs what "auto" chose.

    Raises InputError where that one cannot work here.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"sampling.backend '{name}' is none of auto, {', '.join(BACKENDS)}")
    on_cuda = torch.device(device).type == "cuda"
    reason = "it needs CUDA" if not on_cuda else _nerfacc_fault()
    if name == "nerfacc" and reason:
        raise InputError(f"sampling.backend 'nerfacc' does not work here ({reason}): use auto or torch")
    if name == "torch" or reason:
        if name == "auto" and on_cuda:
            log.info("march: torch (nerfacc: %s)", reason)
        return TorchMarcher()
    log.info("march: nerfacc")
    return NerfaccMarcher()


def box_interval(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit [r] of rays [r,3] through the axis-aligned box [2,3]; exit = entry where they miss."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    ends = (box[:, None] - origins) * inverse
    near = ends.amin(dim=0).amax(dim=-1).clamp_min(0)
    far = ends.amax(dim=0).amin(dim=-1)
    return near, torch.maximum(far, near)


def _steps(near: Tensor, box: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Edges [r,p+1] and middles [r,p] of equal steps from the entry on; p of them span the box's diagonal."""
    size = (box[1] - box[0]).norm() / steps
    edges = near[:, None] + size * torch.arange(steps + 1, device=near.device)
    return edges, edges[:, :-1] + size / 2


def _nerfacc_fault() -> str:
    """Why nerfacc cannot be used, or nothing. Its CUDA code is built on first use, which may fail."""
    try:
        backend = importlib.import_module("nerfacc.cuda._backend")
    except (ImportError, OSError) as error:
        return str(error)
    return "" if backend._C is not None else "its CUDA code could not be built"
