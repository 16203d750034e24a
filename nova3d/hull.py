"""The visual hull: the largest body whose silhouettes are the masks (Laurentini 1994), sampled at points.

All points are in world coordinates. Work is done one view and one piece of points at a time, so that memory grows
neither with the number of views nor with the resolution of a grid.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from nova3d.cameras import Cameras

MASK_LEVEL = 0.5  # coverage from which a pixel is object
_FROM_ABOVE_DEG = 5.0  # least elevation of a camera that looks from above: it does not see the underside
_UNCOVERED = 0.002  # share of a silhouette that the closed hull may leave uncovered: masks disagree by pixels
_POINTS_AT_ONCE = 1 << 17


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


def carve(
    points: Tensor,
    masks: Tensor,
    cameras: Cameras,
    tolerance: float = 0.0,
    *,
    outside: bool | Tensor = True,
    behind: Literal["background", "unknown", "visible"] = "background",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Space carving: the points that (nearly) no view sees background at.

    Args:
        points: [n,3] float32, world frame.
        masks: [v,h,w] float32 coverage in [0,1]; below MASK_LEVEL is background.
        cameras: v cameras of h x w pixels.
        tolerance: share of the views, in [0,1], that may see background at a point which is kept.
        outside: whether a point that projects outside a picture counts as background there, for all views or for each
            (bool [v]). Otherwise such a view says nothing about the point.
        behind: what a point at or behind the camera's plane counts as in that view. With "visible" the plane is
            ignored, as the position of an orthographic camera along its axis may be.
        padding: what the masks are beyond their border, within the half pixel where that matters.

    Returns:
        bool [n]: whether the point is kept.
    """
    allowed = tolerance * len(cameras)
    is_outside_background = torch.as_tensor(outside).expand(len(cameras)).tolist()
    misses = torch.zeros(len(points), device=points.device)
    # Views far apart first: the others need not be asked about points that are gone already.
    for view in sorted(range(len(cameras)), key=lambda v: v % 4):
        for kept in torch.nonzero(misses <= allowed)[:, 0].split(_POINTS_AT_ONCE):
            if len(kept) == 0:
                break
            coverage, inside, depth = sample_mask(points[kept], masks[view], cameras[view], padding)
            unseen = torch.full_like(inside, is_outside_background[view])
            if behind != "visible":
                before = depth > 0
                inside = inside & before
                unseen = torch.where(before, unseen, behind == "background")
            misses[kept] += torch.where(inside, coverage < MASK_LEVEL, unseen)
    return misses <= allowed


def unsupported(points: Tensor, masks: Tensor, cameras: Cameras, spacing: float) -> Tensor:
    """The part of a visual hull that no silhouette supports, where all cameras look from above, or all from below.

    The hull of such views has a cone on the hidden side. Seen from above, each silhouette needs the hull down to some
    height, so that its pixels are covered. Nodes below the lowest of these heights are unsupported, and the solid is
    closed there. Seen from below, it is the other way up.

    Args:
        points: [n,3] float32 nodes of the hull, world frame.
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.
        spacing: between nodes, in world units.

    Returns:
        bool [n]; all False where cameras look from both sides, or from the object's height.
    """
    elevation = torch.rad2deg(cameras.azimuth_elevation()[:, 1])
    if (
        len(points) == 0
        or not bool((elevation.abs() > _FROM_ABOVE_DEG).all())
        or bool((elevation.sign() != elevation[0].sign()).any())
    ):
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    height = points[:, 1] * elevation[0].sign()
    least_heights = []
    for view in range(len(cameras)):
        pixels, depth = cameras[view].project(points)
        focal = float(cameras.intrinsics[view, 0])
        per_unit = focal / float(depth.median()) if cameras.model == "perspective" else focal
        block = max(1, round(spacing * per_unit))  # smaller blocks would fall between nodes
        silhouette = F.avg_pool2d(masks[view, None], block, ceil_mode=True)[0] > MASK_LEVEL
        rows, columns = silhouette.shape
        x, y = (pixels[0] / block).floor().long().unbind(-1)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (depth[0] > 0)
        highest = torch.full((rows * columns,), -torch.inf, device=points.device)
        highest.scatter_reduce_(0, (y * columns + x)[inside], height[inside], "amax")
        covering = highest[silhouette.flatten() & torch.isfinite(highest)].sort().values
        if len(covering):  # the object may end anywhere in its block
            least_heights.append(float(covering[int(_UNCOVERED * len(covering))]) - 0.5 * block / per_unit)
    return height < min(least_heights, default=-math.inf)


def least_coverage(points: Tensor, masks: Tensor, cameras: Cameras) -> Tensor:
    """The least of all views' coverage at each point: the hull as a field, whose surface is the level MASK_LEVEL.

    Args:
        points: [n,3] float32, world frame.
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.

    Returns:
        [n] float32 in [0,1]; 0 for points behind a camera or outside a picture.
    """
    pieces = []
    for piece in points.split(_POINTS_AT_ONCE):
        least = piece.new_full((len(piece),), torch.inf)
        for view in range(len(cameras)):
            coverage, _, depth = sample_mask(piece, masks[view], cameras[view])
            least = torch.minimum(least, torch.where(depth > 0, coverage, 0.0))
        pieces.append(least)
    return torch.cat(pieces)


def visual_hull_mesh(masks: Tensor, cameras: Cameras, cells: int) -> trimesh.Trimesh | None:
    """The visual hull in the unit cube around the origin as a mesh, by marching cubes of `least_coverage`.

    Args:
        masks: [v,h,w] float32 coverage in [0,1], on the CPU.
        cameras: v cameras of h x w pixels.
        cells: grid cells along each side of the cube.

    Returns:
        A closed mesh in the world frame; None where no grid node is inside the hull.
    """
    from skimage.measure import marching_cubes

    axis = torch.linspace(-0.5, 0.5, cells + 1)
    field = least_coverage(torch.cartesian_prod(axis, axis, axis), masks, cameras)
    volume = np.pad(field.reshape(cells + 1, cells + 1, cells + 1).numpy(), 1)  # closed where the cube cuts it
    if not volume.max() > MASK_LEVEL:
        return None
    vertices, faces = marching_cubes(volume, MASK_LEVEL)[:2]
    return trimesh.Trimesh((vertices - 1) / cells - 0.5, faces[:, ::-1], process=False)


def picture_counts(points: Tensor, masks: Tensor, cameras: Cameras) -> Tensor:
    """How many pictures hold each point.

    Args:
        points: [n,3] float32, world frame.
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.

    Returns:
        int64 [n], the views before which the point lies, inside their picture.
    """
    counts = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for view, mask in enumerate(masks):
        for piece, count in zip(points.split(_POINTS_AT_ONCE), counts.split(_POINTS_AT_ONCE), strict=True):
            _, inside, depth = sample_mask(piece, mask, cameras[view])
            count += inside & ((depth > 0) | (cameras.model == "orthographic"))
    return counts


def sample_mask(
    points: Tensor, mask: Tensor, camera: Cameras, padding: Literal["zeros", "border"] = "zeros"
) -> tuple[Tensor, Tensor, Tensor]:
    """What one view shows at world points.

    Args:
        points: [n,3] float32.
        mask: [h,w] float32 coverage in [0,1].
        camera: one camera of h x w pixels.
        padding: what the mask is beyond its border.

    Returns:
        coverage: [n] float32, the mask's bilinear value at the point's pixel.
        inside: bool [n], whether that pixel is in the picture, whatever the depth.
        depth: [n] float32 along the viewing axis, positive before the camera.
    """
    pixels, depth = camera.project(points)
    size = pixels.new_tensor([camera.width, camera.height])
    grid = (pixels / size * 2 - 1)[:, None]
    coverage = F.grid_sample(mask[None, None], grid, padding_mode=padding, align_corners=False)[0, 0, 0]
    return coverage, ((pixels[0] >= 0) & (pixels[0] < size)).all(dim=-1), depth[0]


def dilate(masks: Tensor, pixels: int) -> Tensor:
    """Masks [...,h,w] float32 grown by `pixels` on all sides (greatest value in a square window), same shape."""
    for axis in (-1, -2):
        rows = masks.movedim(axis, -1)
        grown = F.max_pool1d(rows.reshape(-1, 1, rows.shape[-1]), 2 * pixels + 1, 1, pixels)
        masks = grown.reshape(rows.shape).movedim(-1, axis)
    return masks
