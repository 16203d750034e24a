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
from nova3d.hull import MASK_LEVEL, carve, dilate, grid_points, picture_counts, unsupported
from nova3d.inflate import inflate
from nova3d.views import ViewSet
from nova3d.volume import consistent_volume, sample_columns

log = logging.getLogger(__name__)

_BETWEEN = 0.4  # steps by which a surface may lie from the middle of two nodes, so that no node changes sides
_LEAST_SEEN = 0.25  # of the pictures that hold the best seen node: a node that fewer hold is not object


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
    picture = views[[outline_view]] if detail is None else detail
    outline, camera = picture.mask[0].to(views.mask), picture.cameras.to(views.mask.device)
    solid, level, consistent = consistent_volume(
        views.mask, views.cameras, outline_view, prior.to(views.mask), views.calibration, n, radius, outline
    )
    pixels = 2 * radius / (n - 1) * float(camera.intrinsics[0, 0])  # along a step of the grid
    soft = torch.from_numpy(ndimage.gaussian_filter(outline.cpu().numpy(), pixels / 2))
    coverage = sample_columns(soft[None], camera.to("cpu"), n, radius)[0]
    distance = distance_between_nodes(solid.cpu().numpy(), level.cpu().numpy(), coverage.numpy(), radius)
    return Hull(distance.to(views.mask), radius), consistent


def distance_between_nodes(solid: np.ndarray, level: np.ndarray, coverage: np.ndarray, radius: float) -> Tensor:
    """The signed distance to a consistent volume, whose surface lies between nodes where its level set does.

    The distance to the nodes alone has stairs, which a surface that may not leave it would show.

    Args:
        solid: [z,y,x] bool over [-radius, radius]^3, whose columns along z are rays of the trusted view.
        level: [z,y,x] float32, see `nova3d.volume.solid_of`.
        coverage: [y,x] float32 in [0,1], the trusted mask at the columns, blurred by about half a step.
        radius: half the side of the box.

    Returns:
        [z,y,x] float32, world units, negative inside.
    """
    step = 2 * radius / (len(solid) - 1)
    columns = np.asarray(solid.any(axis=0))
    # Front and back, as if the rays around the outline had the depths of the nearest one inside.
    _, (row, column) = ndimage.distance_transform_edt(~columns, return_indices=True)
    level = level[:, row, column]
    steepness = np.sqrt(sum(np.square(part) for part in np.gradient(level, step)))
    depth = -level / np.maximum(steepness, 1e-6)  # to first order, near the level set
    outline = level_set_distance(coverage) * step
    bounded = []
    for distance, nodes in ((depth, solid[:, row, column]), (outline, columns)):
        between = signed_distance(nodes, radius).numpy()
        bounded.append(np.clip(distance, between - _BETWEEN * step, between + _BETWEEN * step))
    return torch.from_numpy(np.maximum(*bounded).astype(np.float32))


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


def level_set_distance(coverage: np.ndarray) -> np.ndarray:
    """The signed distance to an outline, which passes between the pixels of a mask.

    The distance transform alone measures from pixel to pixel, so a slanted outline has stairs. Here each pixel beside
    the outline is moved onto it along the gradient, and distances are to the moved points (Gustavson and Strand 2011).

    Args:
        coverage: [h,w] float32 in [0,1]; the outline is where it passes MASK_LEVEL.

    Returns:
        [h,w] float32, pixels, negative inside.
    """
    inside = coverage > MASK_LEVEL
    if inside.all() or not inside.any():
        return np.where(inside, -1, 1) * np.float32(sum(coverage.shape))
    beside = ndimage.minimum_filter(inside, 3) != ndimage.maximum_filter(inside, 3)
    pixels = np.argwhere(beside)
    gradient = np.stack(np.gradient(coverage), axis=-1)[beside]
    normal = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
    # Along the steepest axis the outline is where the coverage, linear between two pixels, passes the level.
    axis, each = np.abs(normal).argmax(axis=1), np.arange(len(pixels))
    along = normal[each, axis] * np.where(inside[beside], -1, 1)
    neighbours = pixels.copy()
    neighbours[each, axis] += np.sign(along).astype(int)
    neighbours = neighbours.clip(0, np.array(coverage.shape) - 1)
    here, there = coverage[beside], coverage[tuple(neighbours.T)]
    across = (here > MASK_LEVEL) != (there > MASK_LEVEL)
    share = (MASK_LEVEL - here) / np.where(across, there - here, np.inf)
    onto = np.zeros((2, *coverage.shape))
    onto[:, beside] = (normal * (share * np.sign(along) * normal[each, axis])[:, None]).T
    beside[beside] = across if across.any() else True  # another pixel is nearer to the outline than the others
    nearest = tuple(ndimage.distance_transform_edt(~beside, return_distances=False, return_indices=True))
    away = np.indices(coverage.shape) - nearest - onto[:, *nearest]
    return (np.where(inside, -1, 1) * np.sqrt((away**2).sum(axis=0))).astype(np.float32)


def pixel_size(cameras: Cameras) -> float:
    """Size in world units of the coarsest camera's pixel at the origin, where the object is."""
    pixel = 1 / cameras.intrinsics[:, 0]
    if cameras.model == "perspective":
        pixel = pixel * cameras.c2w[:, :3, 3].norm(dim=-1)
    return float(pixel.max())
