"""What the one true picture among generated ones says about the shape: a first solid, and the outline of the mesh.

It applies where exactly one view is trusted among others that are not, its camera looks along the world's z axis, and
the views carry their model's calibration. A column of points along z is then a ray of the trusted view.
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
from nova3d.fusion.occupancy import Hull, signed_distance
from nova3d.fusion.rays import trilinear
from nova3d.hull import MASK_LEVEL
from nova3d.inflate import inflate
from nova3d.views import ViewSet
from nova3d.volume import columns_are_rays, consistent_volume

log = logging.getLogger(__name__)

SignedDistance = Callable[[Tensor], Tensor]
"""World points [n,3] float32 to distances [n] float32, negative inside."""

_CELLS_ACROSS = 1 << 20  # more than a picture has cells
_ROUNDING = 0.7  # of the distance to the outline: how deep the surface lies at least below it, so that edges are round
_THICK = 1.5  # steps of marching cubes: the least half thickness of what the outline covers
_PATCH = 3.0  # nodes around a lost ray within which the first solid is put back
_THIN = 0.75  # steps of marching cubes: half the width to which thinner parts of the outline are widened


def trusted_view(views: ViewSet) -> int | None:
    """The view whose outline the mesh must have, or None where there is no such view; what was chosen is logged."""
    favoured = torch.nonzero(views.favoured)[:, 0].tolist()
    if not favoured:
        return None
    if views.calibration is None:
        log.info("the views carry no calibration of their model (nova3d calibrate): their visual hull is used")
    elif len(favoured) > 1 or not columns_are_rays(views.cameras, favoured[0]):
        log.info("the trusted views are not one level orthographic view from the front: the visual hull is used")
    else:
        log.info("the outline of view %d is trusted; the other views count as the calibration says", favoured[0])
        return int(favoured[0])
    return None


def consistent_hull(views: ViewSet, trusted: int, detail: ViewSet | None, n: int, radius: float) -> tuple[Hull, Tensor]:
    """The solid that the trusted outline and the calibrated votes of the other views agree on.

    Args:
        views: their calibration is set.
        trusted: index of the trusted view.
        detail: that view at a resolution of its own; None where there is none.
        n: grid nodes along each side of the box.
        radius: half the side of the box.

    Returns:
        The signed distance to the solid, and known [v,h,w] float32: 0 where a view contradicts the solid, otherwise 1.
    """
    assert views.calibration is not None
    prior = inflate(views.mask[trusted].cpu(), 1 / float(views.cameras.intrinsics[trusted, 0])).prior
    solid, known = consistent_volume(
        views.mask,
        views.cameras,
        trusted,
        prior.to(views.mask),
        views.calibration,
        n,
        radius,
        detail.mask[0].to(views.mask) if detail is not None else None,
    )
    return Hull(signed_distance(solid.cpu().numpy(), radius).to(views.mask), radius), known


@dataclass(frozen=True)
class Outline:
    """The trusted outline as a map over the picture.

    Attributes:
        distance: [h,w] float32, world units to the outline, negative inside.
        camera: the trusted camera, of h x w pixels.
        parts: connected parts that the outline has.
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
            step: side of the cells of marching cubes, world units. Parts of the outline that are too thin for them are
                widened, so that they are not lost.

        Returns:
            The outline; its maps are as fine as the mask, or finer where a pixel is larger than half a step.
        """
        pixel = 1 / float(camera.intrinsics[0, 0])
        factor = int(np.ceil(2 * pixel / step))
        if factor > 1:
            h, w = (factor * side for side in mask.shape)
            mask = F.interpolate(mask[None, None], (h, w), mode="bilinear", align_corners=False)[0, 0]
            camera, pixel = camera.resized(w, h), pixel / factor
        inside = mask.cpu().numpy() > MASK_LEVEL
        parts, _ = ndimage.label(inside, np.ones((3, 3)))
        inside &= np.bincount(parts.ravel())[parts] * pixel**2 >= step**2  # specks that no cell resolves
        inside = _widen_thin_parts(inside, _THIN * step / pixel)
        distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
        distance = (distance - 0.5 * np.sign(distance)) * pixel  # it counts from centre to centre of pixels
        count = int(ndimage.label(inside, np.ones((3, 3)))[1])
        return Outline(torch.from_numpy(distance.astype(np.float32)), camera, count)

    def bound(self, sdf: SignedDistance, cached: Tensor, hull: Hull, step: float) -> SignedDistance:
        """A signed distance field whose solid has this outline.

        Outside the outline there is no solid. Where rays inside the outline do not meet the solid deep enough, the
        first solid is put back, whose parts hang together. Rays that still miss it, such as those of lines thinner
        than its grid, get the field lowered, so that the surface appears where it was nearest.

        Args:
            sdf: the field.
            cached: [z,y,x] float32, its values on the hull's nodes.
            hull: the first solid, which `consistent_hull` made.
            step: side of the cells of marching cubes, world units.

        Returns:
            The field with the outline.
        """
        radius = hull.radius
        first = hull.distance.cpu() + self._reach_of_the_lost(cached.cpu(), radius, step)
        nearest = torch.minimum(cached.cpu(), first).amin(dim=0)  # y x, of every column
        camera = self.camera.to("cpu")
        focal, middle = camera.intrinsics[0, :2], camera.intrinsics[0, 2:]
        nodes = (camera.pixel_centres() - middle) / focal * torch.tensor([1.0, -1.0]) / radius  # nodes count y upward
        least = F.grid_sample(nearest[None, None], nodes[None], padding_mode="border", align_corners=True)[0, 0]
        lowered = (least + self._wanted(self.distance, step)).clamp_min(0).numpy()
        # Outside, the amount of the nearest ray inside: a jump at the outline would move the surface between nodes.
        outside = self.distance.numpy() >= 0
        _, (row, column) = ndimage.distance_transform_edt(outside, return_indices=True)
        maps = torch.stack([self.distance, torch.from_numpy(lowered[row, column])])
        first = first.to(cached.device)

        def bounded(x: Tensor) -> Tensor:
            distance, lower = self._read(maps, x).to(x.device)
            return torch.maximum(torch.minimum(sdf(x), trilinear(first, x, radius)) - lower, distance)

        return bounded

    def _wanted(self, distance: Tensor, step: float) -> Tensor:
        """How deep below the surface the deepest point of a ray is at least, by its distance to the outline."""
        return torch.minimum(-_ROUNDING * distance, torch.tensor(_THICK * step))

    def _reach_of_the_lost(self, cached: Tensor, radius: float, step: float) -> Tensor:
        """[y,x] float32 of the nodes' columns: zero around those that do not meet the field's solid, growing away."""
        n = cached.shape[1]
        axis = torch.linspace(-radius, radius, n)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        plane = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)
        distance = self._read(self.distance[None], plane)[0].reshape(n, n)
        lost = (distance < 0) & (cached.amin(dim=0) + self._wanted(distance, step) > 0)
        if not bool(lost.any()):
            return torch.full((n, n), 2 * radius)
        away = ndimage.distance_transform_edt(~lost.numpy()) - _PATCH
        return torch.from_numpy(away.astype(np.float32)).clamp_min(0) * 2 * (axis[1] - axis[0])

    def _read(self, maps: Tensor, points: Tensor) -> Tensor:
        """Maps [c,h,w] at world points [n,3]: [c,n], on the CPU."""
        pixels, _ = self.camera.to("cpu").project(points.cpu())
        grid = pixels / torch.tensor([self.camera.width, self.camera.height]) * 2 - 1
        return F.grid_sample(maps[None], grid[:, None], padding_mode="border", align_corners=False)[0, :, 0]

    def cells_at(self, step: float) -> Callable[[np.ndarray], np.ndarray]:
        """The picture in cells of side `step` world units: from points [n,3] to the numbers [n] of their cells."""

        def cells(points: np.ndarray) -> np.ndarray:
            pixels, _ = self.camera.to("cpu").project(torch.from_numpy(points).float())
            column, row = (pixels[0] / (step * float(self.camera.intrinsics[0, 0]))).floor().long().unbind(-1)
            return (row * _CELLS_ACROSS + column).numpy()

        return cells


def _widen_thin_parts(inside: np.ndarray, reach: float) -> np.ndarray:
    """Parts of a mask [h,w] narrower than 2 `reach` pixels are widened to that, about their middle lines."""
    if reach < 1:
        return inside
    wide = ndimage.distance_transform_edt(~(ndimage.distance_transform_edt(inside) > reach)) <= reach
    lines = skeletonize(inside & ~wide)
    if not lines.any():
        return inside
    return inside | (ndimage.distance_transform_edt(~lines) <= reach)
