"""What a fit holds: the fields, the poses and the hull, with the questions the later stages ask of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.cameras import Cameras
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.conflict import ConflictField
from nova3d.fusion.fields import ColourField, SDFField, Sharpness
from nova3d.fusion.poses import PoseRefiner
from nova3d.fusion.occupancy import Hull, grid_points

_OUTSIDE = 0.1  # cached SDF where the hull forbids a surface
_CHUNK = 1 << 16


@dataclass
class Fit:
    """What the fit leaves behind; step: the number of steps done, lambda_0: eq. 5's at the end,
    margin: how far outside the hull the surface may lie."""

    config: FusionConfig
    sdf: SDFField
    colour: ColourField
    conflict: ConflictField
    sharpness: Sharpness
    poses: PoseRefiner
    hull: Hull
    queried: Cameras
    step: int = 0
    lambda_0: float = 1.0
    margin: float = 0.0

    def modules(self) -> dict[str, nn.Module]:
        """All that is trained, by name."""
        return {
            "sdf": self.sdf,
            "colour": self.colour,
            "conflict": self.conflict,
            "sharpness": self.sharpness,
            "poses": self.poses,
        }

    @property
    def cameras(self) -> Cameras:
        return self.poses.cameras(self.queried)

    @torch.no_grad()
    def bounded_sdf(self, x: Tensor) -> Tensor:
        """[n] the SDF, kept positive where the surface may not be (beyond the hull's margin)."""
        return torch.maximum(self.sdf.sdf(x), self.hull.signed(x) - self.margin)

    @torch.no_grad()
    def colours(self, x: Tensor) -> Tensor:
        """[n,3] colour of the field at points x [n,3]."""
        parts = []
        for part in x.split(_CHUNK):
            sample = self.sdf(part)
            parts.append(self.colour(part, unit(sample.gradient), sample.features)[0])
        return torch.cat(parts) if parts else x.new_zeros(0, 3)

    @torch.no_grad()
    def conflict_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_c [n,c] and f_g [n,g] of surface points x [n,3]: what f_psi is told of the surface there."""
        f_c, f_g = [], []
        for part in x.split(_CHUNK):
            sample = self.sdf(part)
            f_c.append(self.colour(part, unit(sample.gradient), sample.features)[1])
            f_g.append(sample.features)
        return torch.cat(f_c), torch.cat(f_g)

    @torch.no_grad()
    def conflicts(self, f_c: Tensor, f_g: Tensor, directions: Tensor, view: Tensor, x: Tensor) -> Tensor:
        """[n] h = f_psi at surface points x [n,3], with their `conflict_inputs`, seen along `directions` [n,3] by views
        [n]."""
        parts = zip(*(tensor.split(_CHUNK) for tensor in (f_c, f_g, directions, view, x)), strict=True)
        return torch.cat([self.conflict(*part) for part in parts])

    @torch.no_grad()
    def read_cache(self) -> Tensor:
        """The SDF on the hull's nodes [z,y,x], evaluated only where a surface may be."""
        distance = self.hull.distance
        cache = distance.flatten().clamp_min(_OUTSIDE)
        allowed = torch.nonzero(distance.flatten() < self.margin)[:, 0]
        points = grid_points(distance.shape[0], self.hull.radius, cache.device)[allowed]
        cache[allowed] = torch.cat([self.sdf.sdf(part) for part in points.split(_CHUNK)])
        return cache.reshape(distance.shape)


def unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-6)
