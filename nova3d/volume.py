"""The consistent volume: a solid with the trusted view's outline, by calibrated votes of the other views.

Views that a model made contradict each other, so their visual hull is too small. Here every view votes at every node of
a grid, weighted by a calibration (`nova3d.calibration`), and so does the inflated outline of the trusted view. The sum
is the log-odds of the node being object (independent evidence adds up in log-odds). It is smoothed, and then corrected
where the trusted outline demands it: a ray inside that outline meets the solid, and a ray outside meets none.

The grid is aligned with the trusted camera, so that a column of nodes is a ray of it. That holds for a level
orthographic camera on the world's z axis, which `columns_are_rays` tests. Shapes: n nodes along each axis, v views,
h w pixels, m points.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nova3d.calibration import Calibration
from nova3d.cameras import Cameras
from nova3d.hull import MASK_LEVEL, dilate, sample_mask

_SCALE = 0.1  # world units, of distances in the prior's features
_EDGE = 0.02  # world units, over which the prior's surface is uncertain at least
_PART_EDGE = 0.05  # world units, over which the end of a part is uncertain that is as deep as it is wide
_SMOOTH = 0.0125  # world units, standard deviation of the smoothing of the log-odds
_CERTAIN = 4.0  # log-odds that no evidence exceeds where it is smoothed
_LEAST_SHARE = 0.3  # of the prior's thickness that a ray inside the outline meets at least
_CORE_SHARE = 0.25  # of the prior's thickness: the sheet that joins parts which the outline joins
_TOLERANCE = 0.01  # world units by which a silhouette may differ from a mask that does not contradict it
_ALIGNED = 1e-3  # of a pose's entries


def columns_are_rays(cameras: Cameras, trusted: int) -> bool:
    """Whether the trusted camera is orthographic with square pixels, and looks upright along the world's z axis.

    Args:
        cameras: v cameras.
        trusted: index of the trusted view.

    Returns:
        Whether columns of a grid along z are rays of that camera.
    """
    camera = cameras[trusted].to("cpu")
    centre = (camera.intrinsics[0, 2:] - torch.tensor([camera.width, camera.height]) / 2).abs().max()
    turned = (camera.c2w[0, :3, :3] - torch.eye(3)).abs().max()
    moved = camera.c2w[0, :2, 3].abs().max()
    focal_x, focal_y = camera.intrinsics[0, :2].tolist()
    aligned = float(max(turned, moved)) < _ALIGNED and float(centre) < 0.5 and abs(focal_x / focal_y - 1) < _ALIGNED
    return camera.model == "orthographic" and aligned


def prior_features(shape: Tensor, depth: Tensor) -> Tensor:
    """Features of the inflated outline at points, which `Calibration.prior` weights.

    The last two separate thin parts from wide ones near their rim: a leg is as deep as it is wide, and so is a box.

    Args:
        shape: [2,m] float32, half the thickness of the inflated outline on the point's ray, and half the width of the
            part that the ray meets, world units (`nova3d.inflate.Inflated.prior`).
        depth: [m] float32, the point's z, world units.

    Returns:
        [m,7] float32: one, depth below the inflated surface (far and near), half thickness, distance from the middle,
        depth below the surface of a part that is as deep as it is wide, half width.
    """
    height, width = shape
    below = height - depth.abs()
    return torch.stack(
        [
            torch.ones_like(height),
            (below / _SCALE).clamp(-1.5, 1.5),
            torch.tanh(below / _EDGE),
            (height / _SCALE).clamp(0, 2),
            (depth.abs() / (2 * _SCALE)).clamp(0, 2),
            torch.tanh((width - depth.abs()) / _PART_EDGE),
            (width / _SCALE).clamp(0, 2.5),
        ],
        dim=-1,
    )


def view_coverage(points: Tensor, masks: Tensor, cameras: Cameras) -> Tensor:
    """Coverage [v,m] in [0,1] that each view shows at points [m,3]; the border's value outside the picture."""
    return torch.stack([sample_mask(points, masks[v], cameras[v], "border")[0] for v in range(len(cameras))])


def column_points(columns: Tensor, radius: float) -> Tensor:
    """The nodes of some columns.

    Args:
        columns: bool [n,n] (y, x).
        radius: half the side of the grid's box.

    Returns:
        [n * m,3] float32 world points of m columns, z varying slowest.
    """
    n = len(columns)
    axis = torch.linspace(-radius, radius, n, device=columns.device)
    y, x = torch.nonzero(columns, as_tuple=True)
    points = torch.stack([axis[x].expand(n, -1), axis[y].expand(n, -1), axis[:, None].expand(-1, len(x))], dim=-1)
    return points.reshape(-1, 3)


def outline_columns(outline: Tensor, camera: Cameras, n: int, radius: float) -> Tensor:
    """Which columns of the grid belong to the trusted outline.

    Args:
        outline: [h,w] float32 coverage in [0,1], of any resolution.
        camera: the trusted camera, of h x w pixels.
        n: nodes along each axis.
        radius: half the side of the grid's box.

    Returns:
        bool [n,n] (y, x). A thin part of a fine outline counts where it lies within half a step of the column.
    """
    step = 2 * radius / (n - 1)
    reach = math.floor(step / 2 * float(camera.intrinsics[0, 0]))
    grown = dilate(outline[None], reach)[0] if reach else outline
    return (sample_mask(_plane(n, radius, outline.device), grown, camera)[0] > MASK_LEVEL).reshape(n, n)


def sample_columns(
    maps: Tensor, camera: Cameras, n: int, radius: float, padding: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """Maps over the trusted picture, read at the grid's columns.

    Args:
        maps: [c,h,w] float32.
        camera: the trusted camera, of h x w pixels.
        n: nodes along each axis.
        radius: half the side of the grid's box.
        padding: what the maps are beyond their border.

    Returns:
        [c,n,n] float32 (y, x).
    """
    plane = _plane(n, radius, maps.device)
    return torch.stack([sample_mask(plane, layer, camera, padding)[0] for layer in maps]).reshape(-1, n, n)


def log_odds(
    masks: Tensor,
    cameras: Cameras,
    trusted: int,
    shape: Tensor,
    calibration: Calibration,
    columns: Tensor,
    radius: float,
) -> Tensor:
    """The sum of all votes: log-odds of each node being object.

    Args:
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.
        trusted: index of the trusted view, whose mask does not vote.
        shape: [2,n,n] float32 (y, x), see `prior_features`.
        calibration: weights of the votes.
        columns: bool [n,n] (y, x), where to sum.
        radius: half the side of the grid's box.

    Returns:
        [n,n,n] float32 (z, y, x); zero outside the columns.
    """
    n = len(columns)
    points = column_points(columns, radius)
    others = [v for v in range(len(cameras)) if v != trusted]
    azimuth = cameras.azimuth_elevation()[:, 0]
    for_object, for_background = calibration.votes(azimuth[others] - azimuth[trusted])
    features = prior_features(shape[:, columns].repeat(1, n), points[:, 2])
    weights = torch.tensor(calibration.prior, device=masks.device)
    total = features[:, : len(weights)] @ weights
    for view, solid, empty in zip(others, for_object.tolist(), for_background.tolist(), strict=True):
        coverage = view_coverage(points, masks[[view]], cameras[[view]])[0]
        total = total + empty + (solid - empty) * coverage
    field = masks.new_zeros(n, n, n)
    field[:, columns] = total.reshape(n, -1)
    return field


def consistent_volume(
    masks: Tensor,
    cameras: Cameras,
    trusted: int,
    prior: Tensor,
    calibration: Calibration,
    n: int = 96,
    radius: float = 0.6,
    outline: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the most likely solid by the trusted outline, the calibrated votes and smoothness.

    Args:
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels; `columns_are_rays` holds for the trusted one.
        trusted: index of the trusted view.
        prior: [2,h,w] float32 of the trusted view's inflated outline (`nova3d.inflate.Inflated.prior`).
        calibration: weights of the votes.
        n: nodes along each axis.
        radius: half the side of the box around the origin.
        outline: [H,W] float32, the trusted mask at another resolution, which decides where rays meet the solid. None:
            the one among `masks`.

    Returns:
        solid: bool [n,n,n] (z, y, x) over [-radius, radius]^3, with the trusted outline's columns and number of parts.
        level: [n,n,n] float32, see `solid_of`.
        consistent: [v,h,w] float32, 0 where a view contradicts the solid and 1 elsewhere. 1 in the trusted view.

    Raises:
        ValueError: where the trusted camera does not look along the z axis.
    """
    if not columns_are_rays(cameras, trusted):
        raise ValueError("the trusted camera does not look along the world's z axis")
    outline = masks[trusted] if outline is None else outline
    camera = cameras[trusted].resized(outline.shape[1], outline.shape[0])
    columns = outline_columns(outline, camera, n, radius)
    columns[[0, -1]], columns[:, [0, -1]] = False, False  # the border is air
    shape = sample_columns(prior, cameras[trusted], n, radius)
    evidence = log_odds(masks, cameras, trusted, shape, calibration, columns, radius)
    solid, level = solid_of(evidence.cpu().numpy(), shape[0].cpu().numpy(), columns.cpu().numpy(), radius)
    found = torch.from_numpy(solid).to(masks.device)
    consistent = (~contradictions(found, masks, cameras, radius)).float()
    consistent[trusted] = 1
    return found, torch.from_numpy(level).to(masks.device), consistent


def solid_of(
    evidence: NDArray[np.float32], height: NDArray[np.float32], columns: NDArray[np.bool_], radius: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Smooth the log-odds, and give every column of the outline a part of the solid.

    A column whose log-odds are too low is raised as a whole, so its likeliest nodes become solid. Where the solid has
    more parts than the outline, the middle sheet of the inflated outline joins them, and what it does not reach goes.

    Args:
        evidence: [n,n,n] (z, y, x) log-odds.
        height: [n,n] (y, x) half the thickness of the inflated outline, world units.
        columns: [n,n] (y, x) the columns of the outline.
        radius: half the side of the box.

    Returns:
        solid: [n,n,n] (z, y, x).
        level: [n,n,n] the smoothed log-odds, less the column's threshold. It is positive in the solid, except where the
            middle sheet joins parts, and its zero level says where between two nodes the surface lies.
    """
    n = len(columns)
    step = 2 * radius / (n - 1)
    weight = ndimage.gaussian_filter(columns.astype(np.float32), _SMOOTH / step)
    sigma = _SMOOTH / step
    # Bounded, so that a node which all views deny does not count for more than a few nodes that they grant.
    bounded = evidence / (1 + np.abs(evidence) / _CERTAIN)
    smooth = ndimage.gaussian_filter(bounded * columns, sigma) / np.maximum(weight, 1e-3)
    smooth[[0, -1]] = -2 * _CERTAIN
    least = np.maximum(np.ceil(_LEAST_SHARE * 2 * height / step), 1).astype(int)  # nodes per column
    ranked = np.sort(smooth, axis=0)[::-1]
    wanted = np.take_along_axis(ranked, np.minimum(least, n - 2)[None] - 1, axis=0)[0]
    level = smooth - np.minimum(wanted, 0)
    solid = (level >= 0) & columns
    depth = np.abs(np.linspace(-radius, radius, n))
    core = (depth[:, None, None] <= np.maximum(_CORE_SHARE * height, 0.75 * step)) & columns
    if _parts(solid)[1] > _parts(columns)[1]:
        solid |= core
    labels, count = _parts(solid)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        regions, number = _parts(columns)
        kept = [_largest(labels[:, regions == part], sizes) for part in range(1, number + 1)]
        solid &= np.isin(labels, kept)
    return solid, level.astype(np.float32)


def contradictions(solid: Tensor, masks: Tensor, cameras: Cameras, radius: float) -> Tensor:
    """Where masks and a solid's silhouettes differ by more than a tolerance.

    Args:
        solid: bool [n,n,n] (z, y, x) over [-radius, radius]^3.
        masks: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.
        radius: half the side of the box.

    Returns:
        bool [v,h,w].
    """
    pixels = max(1, round(_TOLERANCE * float(cameras.intrinsics[0, 0])))
    silhouettes = silhouettes_of(solid, cameras, radius).float()
    object_ = (masks > MASK_LEVEL).float()
    beyond = (object_ > 0) & (dilate(silhouettes, pixels) == 0)
    missing = (silhouettes > 0) & (dilate(object_, pixels) == 0)
    return beyond | missing


def silhouettes_of(solid: Tensor, cameras: Cameras, radius: float) -> Tensor:
    """Silhouettes of a solid's nodes, each as large as the grid's step.

    Args:
        solid: bool [n,n,n] (z, y, x) over [-radius, radius]^3.
        cameras: v cameras of h x w pixels.
        radius: half the side of the box.

    Returns:
        bool [v,h,w].
    """
    n, (h, w) = len(solid), (cameras.height, cameras.width)
    axis = torch.linspace(-radius, radius, n, device=solid.device)
    z, y, x = torch.nonzero(solid, as_tuple=True)
    pixels, _ = cameras.project(torch.stack([axis[x], axis[y], axis[z]], dim=-1))
    hit = torch.zeros(len(cameras), h * w, device=solid.device)
    column, row = pixels.floor().long().unbind(-1)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    hit.scatter_reduce_(1, torch.where(inside, row * w + column, 0), inside.float(), "amax")
    # Neighbouring nodes may lie more than a pixel apart: close the gaps.
    reach = math.ceil(radius / (n - 1) * float(cameras.intrinsics[0, 0]))
    grown = dilate(hit.reshape(-1, h, w), reach)
    return dilate(1 - grown, reach) == 0


def _plane(n: int, radius: float, device: torch.device | str) -> Tensor:
    """[n * n,3] points (x, y, 0), y varying slowest."""
    axis = torch.linspace(-radius, radius, n, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)


def _parts(solid: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Labels of the parts, 1 and up, and their number; nodes that share a corner belong together."""
    labels, count = ndimage.label(solid, np.ones((3,) * solid.ndim, dtype=int))
    return labels, count


def _largest(labels: NDArray[np.int32], sizes: Sequence[int] | NDArray[np.int64]) -> int:
    present = np.unique(labels)
    present = present[present > 0]
    return int(present[np.argmax(np.asarray(sizes)[present])])
