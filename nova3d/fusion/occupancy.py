"""Where a surface may be: the signed distance to the visual hull of the masks, on the nodes of a grid."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.fusion.config import HullConfig
from nova3d.fusion.rays import trilinear
from nova3d.hull import MASK_LEVEL, carve, dilate, unexplaining
from nova3d.views import ViewSet

log = logging.getLogger(__name__)


def grid_points(resolution: int, radius: float, device: torch.device | str = "cpu") -> Tensor:
    """Nodes of a grid over [-radius, radius]^3.

    Args:
        resolution: nodes along each axis.
        radius: half the side of the box.
        device: where to make them.

    Returns:
        [resolution^3,3] float32 (x, y, z) in the world frame; z varies slowest, x fastest.
    """
    axis = torch.linspace(-radius, radius, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


@dataclass
class Hull:
    """The signed distance to the visual hull.

    distance: [z,y,x] float32 node values over [-radius, radius]^3, in world units, negative inside. radius: half the
    side of the box.
    """

    distance: Tensor
    radius: float

    def signed_distance(self, x: Tensor) -> Tensor:
        """The distance [n] at points x [n,3] float32, interpolated."""
        return trilinear(self.distance, x, self.radius)

    def occupancy(self, margin: float) -> Tensor:
        """Cells [z,y,x] bool, one fewer than nodes along each axis: whether a corner lies within `margin`."""
        near = (self.distance < margin).float()[None, None]
        return F.max_pool3d(near, 2, 1)[0, 0] > 0

    def bounds(self, margin: float) -> Tensor:
        """The box [2,3] float32 around everything within `margin` of the hull.

        Raises:
            InputError: where nothing is.
        """
        inside = torch.nonzero(self.distance < margin)
        if len(inside) == 0:
            raise InputError("the views' masks have no common object: check the cameras and the masks")
        step = 2 * self.radius / (self.distance.shape[0] - 1)
        low, high = inside.min(dim=0).values.flip(0), inside.max(dim=0).values.flip(0)
        return torch.stack([(low - 1) * step - self.radius, (high + 1) * step - self.radius]).clamp(
            -self.radius, self.radius
        )


def visual_hull(views: ViewSet, config: HullConfig, radius: float, slack: float = 0.0) -> Hull:
    """Carve the box by the masks and measure the distance to what is left.

    A node is outside where more than `tolerance` of the views see background. A view says nothing about nodes outside
    its picture, and a view with an empty mask is left out. Where all views are from above, the hull is closed below.

    Args:
        views: any number of views.
        config: resolution and tolerance.
        radius: half the side of the box around the origin.
        slack: world units by which the masks are dilated where otherwise nothing is left, which happens to a thin
            object seen by cameras that are not right yet.

    Returns:
        The hull on the views' device.

    Raises:
        InputError: where no view has foreground, or nothing is left.
    """
    mask = views.mask
    seen = (mask > MASK_LEVEL).flatten(1).any(dim=1)
    if not bool(seen.any()):
        raise InputError("the views show no object: every mask is empty; check alpha of rgb/*.png and normal/*.png")
    if not bool(seen.all()):
        log.warning("views %s have an empty mask and are not used", torch.nonzero(~seen)[:, 0].tolist())
    n, used = config.resolution, torch.nonzero(seen)[:, 0].tolist()
    points = grid_points(n, radius, mask.device)
    kept = carve(
        points, mask[used], views.cameras[used], config.tolerance, outside=False, behind="unknown", padding="border"
    )
    kept[kept.clone()] = ~unexplaining(points[kept], mask[used], views.cameras[used], 2 * radius / (n - 1))
    solid = kept.reshape(n, n, n).cpu().numpy()
    # The border is air, or the object would have no surface there.
    for axis in range(3):
        np.moveaxis(solid, axis, 0)[[0, -1]] = False
    if not solid.any() and slack > 0:
        log.warning("the masks have no common object with these cameras: carved with masks dilated by %g", slack)
        pixels = max(1, round(slack / pixel_size(views.cameras)))
        return visual_hull(replace(views, mask=dilate(mask, pixels)), config, radius)
    if not solid.any():
        raise InputError(
            "the views' masks have no common object: cameras and masks disagree, or the object is outside the box "
            f"of half side {radius} (field.radius)"
        )
    return Hull(signed_distance(solid, radius).to(mask.device), radius)


def signed_distance(solid: np.ndarray, radius: float) -> Tensor:
    """The signed distance to a solid of nodes.

    Args:
        solid: [z,y,x] bool over [-radius, radius]^3.
        radius: half the side of the box.

    Returns:
        [z,y,x] float32, world units, negative inside.
    """
    step = 2 * radius / (len(solid) - 1)
    distance = ndimage.distance_transform_edt(~solid) - ndimage.distance_transform_edt(solid)
    # The transform counts from node to node, but the surface lies half a cell before that.
    distance = (distance - 0.5 * np.sign(distance)) * step
    return torch.from_numpy(distance.astype(np.float32))


def pixel_size(cameras: Cameras) -> float:
    """World units that the coarsest camera's pixel spans at the origin, where the object is."""
    pixel = 1 / cameras.intrinsics[:, 0]
    if cameras.model == "perspective":
        pixel = pixel * cameras.c2w[:, :3, 3].norm(dim=-1)
    return float(pixel.max())
