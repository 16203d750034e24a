"""Pose refinement: one learned rigid motion M_v per view, applied to its rays about the object's centre (paper III)."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nova3d.cameras import Cameras
from nova3d.fusion.config import PoseConfig


def rotation_matrix(omega: Tensor) -> Tensor:
    """Rodrigues' formula: axis-angle vectors [...,3] to [...,3,3], smooth through zero."""
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

    Both origin and direction turn: an orthographic ray is its origin. View 0 stays where it is, which fixes the
    frame; `project` removes what the views cannot tell (motion along an orthographic ray, and the object sliding
    along view 0's axis while all other views follow).

    One view can hardly turn the surface that fifteen others agree on, so what those share of their errors would stay.
    The pictures' normals tell it, as they are in view 0's frame: `square` measures by which rotation the surface as a
    whole stands off, and the fit goes on in a frame turned by it (`frame`, world to fit), in which view 0 and the
    target normals are turned instead of the surface. `anchored` and `to_world` lead back.
    """

    back: Tensor
    mean: Tensor
    frame: Tensor
    evidence: Tensor

    def __init__(self, cameras: Cameras, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        self.orthographic = cameras.model == "orthographic"
        self.omega = nn.Parameter(torch.zeros(len(cameras), 3))
        self.tau = nn.Parameter(torch.zeros(len(cameras), 3))
        self.register_buffer("back", cameras.c2w[:, :3, 2].clone(), persistent=False)
        self.register_buffer("mean", torch.zeros(2, len(cameras), 3))
        self.register_buffer("frame", torch.eye(3))
        self.register_buffer("evidence", torch.zeros(3, 3))

    def rotations(self) -> Tensor:
        """[v,3,3] world to fit: view 0's is the frame itself, the others' are their own."""
        return torch.cat([self.frame[None], rotation_matrix(self.omega[1:])])

    def forward(self, origins: Tensor, directions: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Rays [r,3] of views [r], moved into the fit's frame."""
        rotation = self.rotations()[view]
        moved = torch.einsum("rij,rj->ri", rotation, origins) + self.tau[view]
        return moved, torch.einsum("rij,rj->ri", rotation, directions)

    def turn(self, normals: Tensor, view: Tensor) -> Tensor:
        """Target normals [r,3] of views [r] in the fit's frame: all in view 0's, or (normals_follow) turning with
        their views."""
        if self.config.normals_follow:
            return torch.einsum("rij,rj->ri", self.rotations()[view], normals)
        return normals @ self.frame.mT

    @torch.no_grad()
    def observe(self, rendered: Tensor, target: Tensor, used: Tensor) -> None:
        """Keep, as a running mean, how rendered normals [r,3] stand to the target ones [r,3], both in the fit's frame.

        used: bool [r]. Pairs further apart than `frame_within_deg` show something else than a rotation.
        """
        rendered, target = _unit(rendered), _unit(target)
        near = (rendered * target).sum(dim=-1) > math.cos(math.radians(self.config.frame_within_deg))
        pairs = torch.einsum("ri,rj->ij", target[near & used], rendered[near & used]) / used.sum().clamp_min(1)
        self.evidence.lerp_(pairs, 1 - self.config.average)

    @torch.no_grad()
    def square(self) -> None:
        """Turn the frame so that the target normals stand as the surface's do (Kabsch 1976).

        Nothing is done where the normals follow their views, where fewer than half of the pairs agree, or for a
        rotation below `square_least_deg`, which right poses show too.
        """
        # The trace of the best rotation times the evidence is the mean cosine, counting pairs left out as 0.
        u, s, vt = torch.linalg.svd(self.evidence.double())
        sign = torch.linalg.det(u @ vt).sign()
        if self.config.normals_follow or float(s[0] + s[1] + sign * s[2]) < 0.5:
            return
        flip = torch.diag(torch.stack([sign.abs(), sign.abs(), sign]))
        to_target = u @ flip @ vt  # rendered to target
        self.evidence.zero_()
        if float(_degrees(to_target)) >= self.config.square_least_deg:
            self.frame.copy_((to_target.mT @ self.frame.double()).to(self.frame))

    def prior(self) -> Tensor:
        """Pull towards the queried poses, a scalar: the sum of the motions' lengths.

        A length pulls alike however far a view has moved, so what little a batch's noise or a surface not yet found
        asks for stays undone, and what all pixels ask for is done in full.
        """
        c = self.config
        return c.prior_rotation * _length(self.omega).sum() + c.prior_translation * _length(self.tau).sum()

    @torch.no_grad()
    def project(self) -> None:
        """After a step: view 0 back to identity, unobservable motion out, and the caps kept."""
        omega, tau = self.omega.data, self.tau.data
        front = (self.back[:1] @ self.frame.mT).expand_as(tau)
        slide = front
        if self.orthographic:
            axis = torch.einsum("vij,vj->vi", self.rotations(), self.back)
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
    def settle(self) -> None:
        """Take the running mean of the last steps, in which the noise of single batches has cancelled."""
        self.omega.copy_(self.mean[0])
        self.tau.copy_(self.mean[1])

    @torch.no_grad()
    def motions(self) -> Tensor:
        """[v,4,4] world to fit: M_v, and the frame's rotation for view 0."""
        motion = torch.eye(4, device=self.tau.device).repeat(len(self.tau), 1, 1)
        motion[:, :3, :3] = self.rotations()
        motion[:, :3, 3] = self.tau
        return motion

    @torch.no_grad()
    def cameras(self, queried: Cameras) -> Cameras:
        """The refined cameras in the fit's frame: c2w' = M_v c2w."""
        return replace(queried, c2w=self.motions().to(queried.c2w) @ queried.c2w)

    @torch.no_grad()
    def to_world(self) -> Tensor:
        """[4,4] from the fit's frame to the world."""
        motion = torch.eye(4, device=self.frame.device)
        motion[:3, :3] = self.frame.mT
        return motion

    @torch.no_grad()
    def anchored(self, queried: Cameras) -> Cameras:
        """The refined cameras in the world, view 0 exactly as queried."""
        c2w = self.to_world().to(queried.c2w) @ self.cameras(queried).c2w
        c2w[0] = queried.c2w[0]
        return replace(queried, c2w=c2w)

    @torch.no_grad()
    def deltas(self) -> dict[str, float]:
        """How far the views moved: mean and largest rotation in degrees, largest translation in world units."""
        degrees = _degrees((self.frame.mT @ self.rotations()).double())
        return {
            "rotation_deg_mean": float(degrees.mean()),
            "rotation_deg_max": float(degrees.max()),
            "translation_max": float(self.tau.norm(dim=-1).max()),
        }


def _degrees(rotation: Tensor) -> Tensor:
    """[...] angles of rotations [...,3,3]: |R - 1| = 2 sqrt(2) sin(angle / 2), exact for small ones too."""
    sine = (rotation - torch.eye(3).to(rotation)).flatten(-2).norm(dim=-1) / 8**0.5
    return 2 * torch.asin(sine.clamp(max=1)) * 180 / math.pi


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-6)


def _cap(vectors: Tensor, largest: float) -> Tensor:
    return (largest / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=-1) + 1e-12).sqrt()
