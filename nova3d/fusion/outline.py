"""The outline view: the mesh gets the outline of the one trusted view among generated ones.

There is an outline view where exactly one view is trusted among others, its camera looks along the world's z axis, and
the views carry their model's calibration. A column of points along z is then a ray of that view. A ray inside the
outline that does not meet the solid deep enough is called a missing ray here.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.fusion.occupancy import Hull, level_set_distance
from nova3d.fusion.rays import trilinear
from nova3d.hull import MASK_LEVEL
from nova3d.views import ViewSet
from nova3d.volume import columns_are_rays, sample_columns

log = logging.getLogger(__name__)

SignedDistance = Callable[[Tensor], Tensor]
"""World points [n,3] float32 to distances [n] float32, negative inside."""

_CELLS_ACROSS = 1 << 20  # more than a picture has cells
_DEPTH_SLOPE = 0.7  # least depth below the surface over the distance to the outline, so that edges are round
_MAX_LEAST_DEPTH = 1.5  # steps of marching cubes: from here on the least depth is constant
_LONE = 2.0  # nodes from the nearest ray that is met, from which the first solid is put back for a missing ray
_PATCH = 3.0  # nodes around such a ray within which it is put back
_SMOOTH = 0.25  # steps of marching cubes, standard deviation by which the mask is smoothed
_MIN_HALF_WIDTH = 0.75  # steps of marching cubes, to which thinner parts of the outline are widened


def front_view(views: ViewSet) -> int | None:
    """The one view that is trusted among others, where it is level, orthographic and looks along the world's z axis.

    Args:
        views: any views.

    Returns:
        Its index; None where there is no such view.
    """
    trusted = torch.nonzero(views.trusted_among_others)[:, 0].tolist()
    return int(trusted[0]) if len(trusted) == 1 and columns_are_rays(views.cameras, trusted[0]) else None


def find_outline_view(views: ViewSet) -> int | None:
    """Choose the view whose outline the mesh gets, and log the choice.

    Args:
        views: any views.

    Returns:
        Its index; None where there is no such view.
    """
    if not views.trusted_among_others.any():
        return None
    front = front_view(views)
    if views.calibration is None:
        log.info("the views carry no calibration of their model (nova3d calibrate): their visual hull is used")
    elif front is None:
        log.info("the trusted views are not one level orthographic view from the front: the visual hull is used")
    else:
        log.info("the outline of view %d is trusted; the other views count as the calibration says", front)
        return front
    return None


@dataclass(frozen=True)
class Outline:
    """The outline of the outline view, as a signed distance map over its picture.

    Attributes:
        distance: [h,w] float32, world units to the outline, negative inside.
        camera: the outline view's camera, of h x w pixels.
        parts: number of connected parts of the outline.
    """

    distance: Tensor
    camera: Cameras
    parts: int = 1

    @staticmethod
    def of(mask: Tensor, camera: Cameras, step: float) -> "Outline":
        """Measure an outline.

        Args:
            mask: [h,w] float32 coverage in [0,1].
            camera: one camera of h x w pixels, for which `columns_are_rays` holds.
            step: side of the cells of marching cubes, world units. Parts of the outline that are too thin for the
                cells are widened. Parts with less area than a cell are dropped.

        Returns:
            The outline. Its map is as fine as the mask, or finer where a pixel is larger than half a step.
        """
        pixel = 1 / float(camera.intrinsics[0, 0])
        factor = int(np.ceil(2 * pixel / step))
        if factor > 1:
            h, w = (factor * side for side in mask.shape)
            mask = F.interpolate(mask[None, None], (h, w), mode="bilinear", align_corners=False)[0, 0]
            camera, pixel = camera.resized(w, h), pixel / factor
        coverage = mask.cpu().numpy()
        parts, _ = ndimage.label(coverage > MASK_LEVEL, np.ones((3, 3)))
        kept = (parts > 0) & (np.bincount(parts.ravel())[parts] * pixel**2 >= step**2)  # no cell resolves the others
        kept = _widen_thin_parts(kept, _MIN_HALF_WIDTH * step / pixel)
        coverage = np.where(kept == (coverage > MASK_LEVEL), coverage, kept)
        coverage = ndimage.gaussian_filter(coverage, _SMOOTH * step / pixel)
        distance = level_set_distance(coverage) * pixel
        count = int(ndimage.label(distance < 0, np.ones((3, 3)))[1])
        return Outline(torch.from_numpy(distance), camera, count)

    def bound(self, sdf: SignedDistance, cached: Tensor, hull: Hull, step: float) -> SignedDistance:
        """Bound a signed distance field so that its solid has this outline.

        Outside the outline the field is positive. Around missing rays that are far from any other, the first solid is
        put back, whose parts are connected. The other missing rays lie at the rim or on lines thinner than the first
        solid's grid. There the field is lowered, so that the surface appears where the field was least.

        Args:
            sdf: the field.
            cached: [z,y,x] float32, its values on the hull's nodes.
            hull: the first solid, made by `consistent_hull`.
            step: side of the cells of marching cubes, world units.

        Returns:
            The bounded field.
        """
        radius = hull.radius
        first = hull.distance.cpu() + self._distance_to_lone_rays(cached.cpu(), radius, step)
        nearest = torch.minimum(cached.cpu(), first).amin(dim=0)  # [y,x] least value of each column
        camera = self.camera.to("cpu")
        focal, middle = camera.intrinsics[0, :2], camera.intrinsics[0, 2:]
        flip = torch.tensor([1.0, -1.0])  # rows grow downwards, node indices with y
        nodes = (camera.pixel_centres() - middle) / focal * flip / radius
        least = F.grid_sample(nearest[None, None], nodes[None], padding_mode="border", align_corners=True)[0, 0]
        lowered = (least + self._least_depth(self.distance, step)).clamp_min(0).numpy()
        # Outside, use the amount of the nearest ray inside: a jump at the outline would shift the surface.
        outside = self.distance.numpy() >= 0
        _, (row, column) = ndimage.distance_transform_edt(outside, return_indices=True)
        maps = torch.stack([self.distance, torch.from_numpy(lowered[row, column])])
        first = first.to(cached.device)

        def bounded(x: Tensor) -> Tensor:
            distance, lower = self._read(maps, x).to(x.device)
            field = torch.minimum(sdf(x), trilinear(first, x, radius)) - lower
            return torch.maximum(field, distance)

        return bounded

    def _least_depth(self, distance: Tensor, step: float) -> Tensor:
        """Least depth below the surface that a ray must reach, by the ray's distance to the outline."""
        return torch.minimum(-_DEPTH_SLOPE * distance, torch.tensor(_MAX_LEAST_DEPTH * step))

    def _distance_to_lone_rays(self, cached: Tensor, radius: float, step: float) -> Tensor:
        """Twice the distance of the nodes' columns [y,x] to the patches around lone rays; zero inside a patch."""
        n = cached.shape[1]
        distance = sample_columns(self.distance[None], self.camera.to("cpu"), n, radius, "border")[0]
        met = (distance < 0) & (cached.amin(dim=0) + self._least_depth(distance, step) <= 0)
        lone = (distance < 0).numpy()
        if met.any():  # the transform has no distance to nothing
            lone &= ndimage.distance_transform_edt(~met.numpy()) > _LONE
        if not lone.any():
            return torch.full((n, n), 2 * radius)
        away = ndimage.distance_transform_edt(~lone) - _PATCH
        return torch.from_numpy(away.astype(np.float32)).clamp_min(0) * (4 * radius / (n - 1))

    def _read(self, maps: Tensor, points: Tensor) -> Tensor:
        """Sample maps [c,h,w] at world points [n,3]; returns [c,n] on the CPU."""
        pixels, _ = self.camera.to("cpu").project(points.cpu())
        grid = pixels / torch.tensor([self.camera.width, self.camera.height]) * 2 - 1
        return F.grid_sample(maps[None], grid[:, None], padding_mode="border", align_corners=False)[0, :, 0]

    def cells_at(self, step: float) -> Callable[[np.ndarray], np.ndarray]:
        """Divide the picture into cells.

        Args:
            step: side of the cells, world units.

        Returns:
            A function from world points [n,3] to the numbers [n] of the cells that they project into.
        """

        def cells(points: np.ndarray) -> np.ndarray:
            pixels, _ = self.camera.to("cpu").project(torch.from_numpy(points).float())
            column, row = (pixels[0] / (step * float(self.camera.intrinsics[0, 0]))).floor().long().unbind(-1)
            return (row * _CELLS_ACROSS + column).numpy()

        return cells


def _widen_thin_parts(inside: np.ndarray, reach: float) -> np.ndarray:
    """Widen parts of a mask [h,w] that are narrower than 2 `reach` pixels to that width, about their skeletons."""
    if reach < 1:
        return inside
    wide = ndimage.distance_transform_edt(~(ndimage.distance_transform_edt(inside) > reach)) <= reach
    lines = skeletonize(inside & ~wide)
    if not lines.any():
        return inside
    return inside | (ndimage.distance_transform_edt(~lines) <= reach)
