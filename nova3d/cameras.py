"""Cameras on an orbit: poses, rays, projection.

World: right-handed, +Y up, +Z to the front (glTF). Camera: OpenGL axes, +X right, +Y up, looking along -Z.
Azimuth a, elevation e and radius r put the camera at r (cos e sin a, sin e, cos e cos a). View 0 of an orbit is on +Z
with the identity rotation, and azimuth grows counter-clockwise seen from +Y. Pixel (column i, row j) has its centre at
(i + 0.5, j + 0.5). Angles are radians unless the name says `_deg`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nova3d.errors import InputError

CameraModel = Literal["orthographic", "perspective"]

ORTHO_SPAN = 1.5  # world units across the image; a unit cube turned 45 degrees needs 1.414


@dataclass(frozen=True)
class Cameras:
    """v cameras of one image size and one projection model.

    Attributes:
        c2w: [v,4,4] float32, camera to world, rigid.
        intrinsics: [v,4] float32 (fl_x, fl_y, cx, cy) in pixels. fl_x and fl_y are focal lengths (perspective) or
            pixels per world unit (orthographic). The principal point is measured from the upper left corner.
        width: of the images, in pixels.
        height: of the images, in pixels.
        model: "orthographic" or "perspective".
    """

    c2w: Tensor
    intrinsics: Tensor
    width: int
    height: int
    model: CameraModel = "orthographic"

    def __post_init__(self) -> None:
        v = self.c2w.shape[0]
        if self.c2w.shape != (v, 4, 4) or self.intrinsics.shape != (v, 4):
            raise ValueError(f"c2w must be [v,4,4] and intrinsics [v,4], got {self.c2w.shape}, {self.intrinsics.shape}")
        if self.model not in ("orthographic", "perspective"):
            raise ValueError(f"model must be 'orthographic' or 'perspective', got '{self.model}'")

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> "Cameras":
        """The cameras at `index`, always with a view axis."""
        rows = [index] if isinstance(index, int) else index
        return replace(self, c2w=self.c2w[rows], intrinsics=self.intrinsics[rows])

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on a device.

        Args:
            device: where all tensors go.

        Returns:
            New cameras; tensors that are there already are shared.
        """
        return replace(self, c2w=self.c2w.to(device), intrinsics=self.intrinsics.to(device))

    def resized(self, width: int, height: int) -> "Cameras":
        """The same cameras, with the same field of view, for images of another size.

        Args:
            width: of the images, pixels.
            height: of the images, pixels.

        Returns:
            The cameras with scaled intrinsics.
        """
        scale = torch.tensor([width / self.width, height / self.height] * 2).to(self.intrinsics)
        return replace(self, intrinsics=self.intrinsics * scale, width=width, height=height)

    def pixel_centres(self) -> Tensor:
        """The (x, y) of every pixel centre, in pixels: [h,w,2] float32."""
        device = self.c2w.device
        y, x = torch.meshgrid(
            torch.arange(self.height, device=device) + 0.5, torch.arange(self.width, device=device) + 0.5, indexing="ij"
        )
        return torch.stack([x, y], dim=-1)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Rays through the pixel centres, in the world frame.

        Returns:
            origins: [v,h,w,3] float32, on the camera's plane (orthographic) or at its centre (perspective).
            directions: [v,h,w,3] float32, unit.
        """
        pixels = self.pixel_centres()[None]  # 1 h w 2
        focal, centre = self.intrinsics[:, None, None, :2], self.intrinsics[:, None, None, 2:]
        plane = (pixels - centre) / focal * pixels.new_tensor([1.0, -1.0])  # image y is down, camera y is up
        rotation, position = self.c2w[:, :3, :3], self.c2w[:, None, None, :3, 3]
        if self.model == "orthographic":
            offset = torch.cat([plane, torch.zeros_like(plane[..., :1])], dim=-1)
            origins = position + torch.einsum("vij,vhwj->vhwi", rotation, offset)
            directions = (-rotation[:, :, 2])[:, None, None].expand_as(origins)
        else:
            local = torch.cat([plane, -torch.ones_like(plane[..., :1])], dim=-1)
            directions = torch.nn.functional.normalize(torch.einsum("vij,vhwj->vhwi", rotation, local), dim=-1)
            origins = position.expand_as(directions)
        return origins.contiguous(), directions.contiguous()

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points into all views.

        Args:
            points: [n,3] float32, world frame.

        Returns:
            Pixels and depth. Pixels [v,n,2] float32: x to the right and y down; those of a perspective point at or
            behind the camera are meaningless, so test its depth. Depth [v,n] float32: world units along the viewing
            axis, positive before the camera.
        """
        with torch.autocast(self.c2w.device.type, enabled=False):  # poses lose pixels in half precision
            local = torch.einsum("vji,vnj->vni", self.c2w[:, :3, :3], points[None] - self.c2w[:, None, :3, 3])
        depth = -local[..., 2]
        plane = local[..., :2] * local.new_tensor([1.0, -1.0])
        if self.model == "perspective":
            plane = plane / depth.clamp_min(1e-8)[..., None]
        return plane * self.intrinsics[:, None, :2] + self.intrinsics[:, None, 2:], depth

    def azimuth_elevation(self) -> Tensor:
        """Where the cameras stand, seen from the world's origin.

        Taken from the direction a camera looks from (its +Z axis), since the distance of an orthographic camera is
        arbitrary.

        Returns:
            [v,2] float32: azimuth in [0, 2 pi) and elevation in [-pi/2, pi/2], radians.
        """
        back = self.c2w[:, :3, 2]
        azimuth = torch.atan2(back[:, 0], back[:, 2]) % (2 * math.pi)
        # The front camera of a turned rig is at -1e-8, not 0: it must not come out as a full turn.
        azimuth = torch.where(azimuth > 2 * math.pi - 1e-5, torch.zeros_like(azimuth), azimuth)
        elevation = torch.asin(back[:, 1].clamp(-1, 1))
        return torch.stack([azimuth, elevation], dim=-1)


def pose_fault(c2w: Tensor) -> str:
    """Why a matrix is not a rigid pose.

    Args:
        c2w: [4,4] float.

    Returns:
        The end of a sentence for a message; empty where the matrix is rigid (to 1e-2).
    """
    rotation = c2w[:3, :3]
    gram = rotation @ rotation.mT
    scale = float(gram.diagonal().mean().sqrt())
    if (gram - scale**2 * torch.eye(3).to(gram)).abs().max() > 1e-2 * max(scale**2, 1e-12):
        return "is not rigid: its axes are sheared or scaled unevenly"
    if abs(scale - 1) > 5e-3:
        return f"is not rigid: it is scaled by {scale:.4g}; divide its first three columns by that"
    if torch.linalg.det(rotation) < 0:
        return "is not rigid: it is mirrored (determinant -1)"
    if (c2w[3] - c2w.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().max() > 1e-4:
        return "does not end in the row 0 0 0 1: is it transposed?"
    return ""


def look_from(azimuth: Tensor, elevation: Tensor, radius: float) -> Tensor:
    """Poses of upright cameras that face the origin.

    Args:
        azimuth: [v] float, radians.
        elevation: [v] float, radians.
        radius: distance from the origin, in world units.

    Returns:
        c2w [v,4,4] of the angles' dtype.
    """
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(sin_a)
    back = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], dim=-1)
    right = torch.stack([cos_a, zero, -sin_a], dim=-1)
    up = torch.linalg.cross(back, right)
    c2w = torch.eye(4).repeat(len(azimuth), 1, 1)
    c2w[:, :3] = torch.stack([right, up, back, back * radius], dim=-1)
    return c2w


def orbit(
    num_views: int = 16,
    elevation_deg: float = 0.0,
    size: int = 256,
    model: CameraModel = "orthographic",
    *,
    radius: float = 1.5,
    span: float = ORTHO_SPAN,
    fov_deg: float = 33.8,
    start_azimuth_deg: float = 0.0,
) -> Cameras:
    """Cameras evenly spaced in azimuth over the full circle.

    Args:
        num_views: the number of cameras.
        elevation_deg: of all cameras, in degrees.
        size: side of the square images, in pixels.
        model: "orthographic" or "perspective".
        radius: distance from the origin, in world units.
        span: world units across an orthographic image.
        fov_deg: full field of view of a perspective image, in degrees.
        start_azimuth_deg: azimuth of view 0, in degrees.

    Returns:
        The cameras, in order of growing azimuth.
    """
    azimuth = 2 * math.pi * torch.arange(num_views, dtype=torch.float64) / num_views + math.radians(start_azimuth_deg)
    elevation = torch.full_like(azimuth, math.radians(elevation_deg))
    c2w = look_from(azimuth, elevation, radius).float()
    focal = size / span if model == "orthographic" else size / (2 * math.tan(math.radians(fov_deg) / 2))
    intrinsics = torch.tensor([focal, focal, size / 2, size / 2]).repeat(num_views, 1)
    return Cameras(c2w, intrinsics, size, size, model)


PRESETS = ("ortho16", "persp16", "syncdreamer16", "envision32")


def preset(name: str, size: int = 256) -> Cameras:
    """A camera rig by its name.

    Args:
        name: one of PRESETS. `ortho16` and `persp16` are families: `ortho8` has 8 views, and so on.
        size: side of the square images, in pixels.

    Returns:
        The cameras.

    Raises:
        InputError: for another name.
    """
    if family := re.fullmatch(r"(ortho|persp)([1-9]\d*)", name):
        views = int(family[2])
        if family[1] == "ortho":
            return orbit(views, size=size)
        return orbit(views, size=size, model="perspective", fov_deg=33.8, radius=2.45)
    match name:
        case "syncdreamer16":  # focal 280 px at 256: the published GSO-30 renders
            fov = math.degrees(2 * math.atan(128 / 280))
            return orbit(16, 30.0, size, "perspective", fov_deg=fov, radius=1.5)
        case "envision32":  # focal 1422.4 px at 1024
            fov = math.degrees(2 * math.atan(512 / 1422.4))
            return orbit(32, 0.0, size, "perspective", fov_deg=fov, radius=1.5)
    raise InputError(f"camera preset '{name}' is not one of {', '.join(PRESETS)}")
