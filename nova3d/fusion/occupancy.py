"""The first solid of a fit as signed distances on a grid: the visual hull of the masks, or the consistent volume."""

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
from nova3d.hull import MASK_LEVEL, carve, dilate, picture_counts, unsupported
from nova3d.inflate import inflate
from nova3d.views import ViewSet
from nova3d.volume import consistent_volume

log = logging.getLogger(__name__)

_LEAST_SEEN = 0.25  # of the pictures that hold the best seen node: a node that fewer hold is not object


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
    """The signed distance to a first solid.

    Attributes:
        distance: [z,y,x] float32 node values over [-radius, radius]^3, in world units, negative inside.
        radius: half the side of the box.
    """

    distance: Tensor
    radius: float

    def signed_distance(self, x: Tensor) -> Tensor:
        """The distance [n] at points x [n,3] float32, interpolated."""
        return trilinear(self.distance, x, self.radius)

    def occupancy(self, margin: float) -> Tensor:
        """Cells [z,y,x] bool, one fewer than nodes along each axis: whether a corner is less than `margin` outside."""
        near = (self.distance < margin).float()[None, None]
        return F.max_pool3d(near, 2, 1)[0, 0] > 0

    def bounds(self, margin: float) -> Tensor:
        """The box around all nodes less than `margin` outside the solid.

        Args:
            margin: world units.

        Returns:
            [2,3] float32, its lower and its upper corner.

        Raises:
            InputError: where there is no such node.
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
    """Carve the visual hull out of the box, and measure the distance to it.

    A node is outside where more than `tolerance` of the views see background. Views do not count for nodes outside
    their picture, and a node that few pictures hold, compared with the others, is outside. Views with an empty mask
    are left out. Where all views are from above, the hull is closed below.

    Args:
        views: any number of views.
        config: resolution and tolerance.
        radius: half the side of the box around the origin.
        slack: world units by which the masks are dilated where otherwise nothing is left. That happens to thin objects
            while the cameras are not refined yet.

    Returns:
        The hull on the views' device.

    Raises:
        InputError: where no view has foreground, or the hull is empty.
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
    counts = picture_counts(points[kept], mask[used], views.cameras[used])
    if len(counts):
        kept[kept.clone()] = counts >= _LEAST_SEEN * counts.max()
    kept[kept.clone()] = ~unsupported(points[kept], mask[used], views.cameras[used], 2 * radius / (n - 1))
    solid = kept.reshape(n, n, n).cpu().numpy()
    # The border is air; otherwise the object would have no surface there.
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


def consistent_hull(
    views: ViewSet, outline_view: int, detail: ViewSet | None, n: int, radius: float
) -> tuple[Hull, Tensor]:
    """The consistent volume: the solid by the outline view and the calibrated votes of the other views.

    Args:
        views: views with a calibration.
        outline_view: index of the view whose outline the solid has.
        detail: that view at a resolution of its own; None where there is none.
        n: grid nodes along each side of the box.
        radius: half the side of the box.

    Returns:
        hull: the signed distance to the solid.
        consistent: [v,h,w] float32, 0 where a view contradicts the solid, otherwise 1.
    """
    assert views.calibration is not None
    prior = inflate(views.mask[outline_view].cpu(), 1 / float(views.cameras.intrinsics[outline_view, 0])).prior
    solid, consistent = consistent_volume(
        views.mask,
        views.cameras,
        outline_view,
        prior.to(views.mask),
        views.calibration,
        n,
        radius,
        detail.mask[0].to(views.mask) if detail is not None else None,
    )
    return Hull(signed_distance(solid.cpu().numpy(), radius).to(views.mask), radius), consistent


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
    # The transform measures from node to node; the surface lies half a cell nearer.
    distance = (distance - 0.5 * np.sign(distance)) * step
    return torch.from_numpy(distance.astype(np.float32))


def pixel_size(cameras: Cameras) -> float:
    """Size in world units of the coarsest camera's pixel at the origin, where the object is."""
    pixel = 1 / cameras.intrinsics[:, 0]
    if cameras.model == "perspective":
        pixel = pixel * cameras.c2w[:, :3, 3].norm(dim=-1)
    return float(pixel.max())
