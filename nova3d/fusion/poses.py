"""Pose refinement: a learned rigid motion M_v per view, applied to its rays about the object's centre (paper III).

Shapes: v views, r rays. Rotations are axis-angle vectors in radians, translations are in world units.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from nova3d.cameras import Cameras
from nova3d.fusion.config import PoseConfig


def rotation_matrix(omega: Tensor) -> Tensor:
    """Rodrigues' formula, smooth through zero.

    Args:
        omega: [...,3] axis-angle vectors in radians.

    Returns:
        [...,3,3] rotation matrices of the same dtype.
    """
    angle2 = (omega * omega).sum(dim=-1)[..., None, None]
    small = angle2 < 1e-6
    angle = torch.where(small, torch.ones_like(angle2), angle2).sqrt()
    a = torch.where(small, 1 - angle2 / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - angle2 / 24, (1 - angle.cos()) / angle**2)
    zero = torch.zeros_like(omega[..., 0])
    x, y, z = omega.unbind(dim=-1)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*omega.shape, 3)
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + a * k + b * (k @ k)


class PoseRefiner(nn.Module):
    """M_v = (omega_v, tau_v): o' = R o + t, d' = R d, about the world's origin, where the object is.

    Both origin and direction rotate, because the origin tells orthographic rays apart. View 0 is fixed, which fixes
    the frame. `project` removes what the views cannot determine: motion along an orthographic ray, and the object
    sliding along view 0's axis while all other views follow.

    Args:
        cameras: v cameras as given.
        config: rates, priors and limits.

    Attributes:
        omega, tau: [v,3] float32, the trained rotations and translations.
        mean: [2,v,3] float32, the running mean of both.
    """

    back: Tensor
    mean: Tensor

    def __init__(self, cameras: Cameras, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        self.orthographic = cameras.model == "orthographic"
        self.omega = nn.Parameter(torch.zeros(len(cameras), 3))
        self.tau = nn.Parameter(torch.zeros(len(cameras), 3))
        self.register_buffer("back", cameras.c2w[:, :3, 2].clone(), persistent=False)
        self.register_buffer("mean", torch.zeros(2, len(cameras), 3))

    def forward(self, origins: Tensor, directions: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Move rays.

        Args:
            origins: [r,3] float32.
            directions: [r,3] float32 unit vectors.
            view: [r] int64, each ray's view.

        Returns:
            The moved origins and directions, both [r,3] float32.
        """
        rotation = rotation_matrix(self.omega)[view]
        moved = torch.einsum("rij,rj->ri", rotation, origins) + self.tau[view]
        return moved, torch.einsum("rij,rj->ri", rotation, directions)

    def rotate(self, vectors: Tensor, view: Tensor) -> Tensor:
        """Vectors [r,3] float32 of views [r] int64, rotated by each view's rotation."""
        return torch.einsum("rij,rj->ri", rotation_matrix(self.omega)[view], vectors)

    def prior(self) -> Tensor:
        """The sum of the motions' lengths, a scalar that pulls towards the poses as given.

        The pull of a length does not depend on how far a view has moved. It suppresses the small motions that a
        batch's noise asks for, and hardly shortens those that all pixels ask for.
        """
        c = self.config
        return c.prior_rotation * _length(self.omega).sum() + c.prior_translation * _length(self.tau).sum()

    @torch.no_grad()
    def project(self) -> None:
        """After a step, reset view 0, remove unobservable motion, apply the limits, and update the running mean."""
        omega, tau = self.omega.data, self.tau.data
        front = self.back[:1].expand_as(tau)
        slide = front
        if self.orthographic:
            axis = torch.einsum("vij,vj->vi", rotation_matrix(omega), self.back)
            tau.sub_((tau * axis).sum(dim=-1, keepdim=True) * axis)
            slide = front - (front * axis).sum(dim=-1, keepdim=True) * axis
        amount = (tau[1:] * slide[1:]).sum() / slide[1:].square().sum().clamp_min(1e-12)
        tau.sub_(amount * slide)
        omega[0] = 0
        tau[0] = 0
        omega.mul_(_cap(omega, math.radians(self.config.max_rotation_deg)))
        tau.mul_(_cap(tau, self.config.max_translation))
        self.mean.lerp_(torch.stack([omega, tau]), 1 - self.config.average)

    @torch.no_grad()
    def freeze(self) -> None:
        """Replace the poses by the running mean of the last steps, which averages out the noise of single batches."""
        self.omega.copy_(self.mean[0])
        self.tau.copy_(self.mean[1])

    @torch.no_grad()
    def cameras(self, given: Cameras) -> Cameras:
        """The refined cameras, c2w' = M_v c2w, of the v cameras as given."""
        motion = torch.eye(4, device=self.tau.device).repeat(len(self.tau), 1, 1)
        motion[:, :3, :3] = rotation_matrix(self.omega)
        motion[:, :3, 3] = self.tau
        return replace(given, c2w=motion.to(given.c2w) @ given.c2w)

    @torch.no_grad()
    def deltas(self) -> dict[str, float]:
        """How far the views moved: mean and largest rotation in degrees, largest translation in world units."""
        degrees = self.omega.norm(dim=-1) * 180 / math.pi
        return {
            "rotation_deg_mean": float(degrees.mean()),
            "rotation_deg_max": float(degrees.max()),
            "translation_max": float(self.tau.norm(dim=-1).max()),
        }


def _cap(vectors: Tensor, largest: float) -> Tensor:
    return (largest / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=-1) + 1e-12).sqrt()
