"""Placement: the similarity transform between a source's world frame and ours, and the search for the object."""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.hull import MASK_LEVEL, carve, dilate
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

BOX = 0.6  # half side of the box around the origin that the fusion fills (`field.radius`)
ORTHO_CLEARANCE = BOX * 3**0.5  # rays of an orthographic camera nearer than this start inside that box
_SMALLEST = 0.5  # longest side below which an object is enlarged: it would fill few of the fusion's cells
_GRID = 64  # nodes along each side of the box in which a hull is carved
_TOLERANCE = 0.1  # share of the views that may see background where the object is; as in the fusion's hull
_EXPLAINED = 0.95  # share of the masks' pixels that the hull in the box must cover for the object to fit in it


@dataclass(frozen=True)
class Placement:
    """A similarity transform from a source's world frame to ours.

    Attributes:
        matrix: [4,4] float64: rotation times scale, and a translation.
    """

    matrix: Tensor

    @staticmethod
    def identity() -> "Placement":
        """The placement of a source whose frame is ours."""
        return Placement(torch.eye(4, dtype=torch.float64))

    def __matmul__(self, first: "Placement") -> "Placement":
        """The placement that applies `first`, then this one."""
        return Placement(self.matrix @ first.matrix)

    @property
    def scale(self) -> float:
        """Our units per unit of the source."""
        return float(torch.linalg.det(self.matrix[:3, :3]) ** (1 / 3))

    @property
    def is_identity(self) -> bool:
        """Whether the source's frame is ours, exactly."""
        return bool(torch.equal(self.matrix, torch.eye(4, dtype=torch.float64)))

    def apply(self, points: Tensor) -> Tensor:
        """Points in our frame.

        Args:
            points: [...,3] float in the source's frame.

        Returns:
            [...,3] of the same shape and dtype.
        """
        return (points.double() @ self.matrix[:3, :3].mT + self.matrix[:3, 3]).to(points)

    def mesh_to_source(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        """A mesh in the source's frame.

        Args:
            mesh: in our frame; it stays as it is.

        Returns:
            A moved copy.
        """
        moved = mesh.copy()
        moved.apply_transform(torch.linalg.inv(self.matrix).numpy())
        return moved


def normalise(views: ViewSet) -> tuple[ViewSet, Placement]:
    """Move and scale the cameras so that the object is centred and its longest side is 1.

    The object is found from the masks. The rays through their centres nearly meet in it. Of the visual hull around that
    point, it is the part in the smallest cube that still covers the masks. (Not the whole hull: seen from one height,
    an object has carved cones above or below that no view shows.) Nothing is rotated.

    Args:
        views: at least two of which show the object.

    Returns:
        The views and their placement. The views have the same pictures and normals and moved cameras; they are `views`
        itself where an object in the fusion's box explains the masks already. The placement leads from the frame of
        the given views to that of the returned ones.

    Raises:
        InputError: where fewer than two views show an object, or masks and cameras disagree.
    """
    with torch.no_grad():
        seen = torch.nonzero((views.mask > MASK_LEVEL).flatten(1).any(dim=1))[:, 0].tolist()
        if len(seen) < 2:
            raise InputError(f"{len(seen)} of {len(views)} views show an object: at least two are needed to place it")
        mask, cameras = views.mask[seen].cpu(), views.cameras[seen].to("cpu")
        if cut := [view for view, yes in zip(seen, _reaches_border(mask), strict=True) if yes]:
            log.warning("the object reaches the border of views %s: it may be cut off there", _listed(cut))
        fits = _fits_box(mask, cameras)
        if fits and _clear_of_box(views.cameras):
            return views, Placement.identity()
        centre, side = (torch.zeros(3), 1.0) if fits else _find_object(mask, cameras, seen)
    if fits:
        log.info("orthographic cameras moved back along their axes, out of the object's box")
    else:
        log.info(
            "the object is about %.3g wide around (%.3g, %.3g, %.3g): cameras moved so that it is 1 wide around the "
            "origin",
            side,
            *centre.tolist(),
        )
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] /= side
    matrix[:3, 3] = -centre.double() / side
    return replace(views, cameras=_similar_cameras(views.cameras, 1 / side, centre)), Placement(matrix)


def _similar_cameras(cameras: Cameras, scale: float, shift: Tensor) -> Cameras:
    """The cameras of the same pictures after every world point x has become scale * (x - shift)."""
    c2w, intrinsics = cameras.c2w.clone(), cameras.intrinsics.clone()
    c2w[:, :3, 3] = scale * (c2w[:, :3, 3] - shift.to(c2w))
    if cameras.model == "orthographic":
        intrinsics[:, :2] /= scale
        # Moving along its axis changes no orthographic picture, but rays start at the camera: put it before the box.
        back = c2w[:, :3, 2]
        along = (c2w[:, :3, 3] * back).sum(dim=-1, keepdim=True)
        c2w[:, :3, 3] += (along.clamp_min(1.5 * ORTHO_CLEARANCE) - along) * back
    return replace(cameras, c2w=c2w, intrinsics=intrinsics)


def _clear_of_box(cameras: Cameras) -> bool:
    """Whether all orthographic cameras stand before the object's box; true of perspective cameras, which stay."""
    along = (cameras.c2w[:, :3, 3] * cameras.c2w[:, :3, 2]).sum(dim=-1)
    return cameras.model == "perspective" or bool((along > ORTHO_CLEARANCE).all())


def _fits_box(mask: Tensor, cameras: Cameras) -> bool:
    """Whether the hull in the fusion's box explains the masks and is not too small for the box."""
    points, cell = _hull_nodes(mask, cameras, torch.full((3,), -BOX), torch.full((3,), BOX))
    if len(points) == 0:
        return False
    half, explained = _smallest_cube(points, cell, mask, cameras, torch.zeros(3))
    return explained > _EXPLAINED and half > _SMALLEST / 2


def _find_object(mask: Tensor, cameras: Cameras, names: list[int]) -> tuple[Tensor, float]:
    """The object's centre [3] and its longest side, in world units; `names` are the views' numbers for messages."""
    origins, directions, spread = _rays_through_centres(mask, cameras)
    centre = _nearest_point(origins, directions)
    depth = ((centre - origins) * directions).sum(dim=-1)
    if cameras.model == "perspective" and bool((depth <= 0).any()):
        behind = [names[i] for i in torch.nonzero(depth <= 0)[:, 0].tolist()]
        raise InputError(
            f"the cameras of views {_listed(behind)} look away from the object that the masks show: check the poses' "
            "axes (OpenGL: +X right, +Y up, looking along -Z; OpenCV's have Y and Z the other way round)"
        )
    reach = spread * (depth if cameras.model == "perspective" else 1)
    # No view shows more of the object than this. The room is for the masks' centres, which are not the object's.
    half = 1.5 * float(reach.max())
    for _ in range(3):  # each time in a smaller box, whose cells are finer
        points, cell = _hull_nodes(mask, cameras, centre - half, centre + half)
        if len(points) == 0:
            raise InputError(
                "the views' masks have no common object: the cameras do not belong to these pictures (order, axes, up "
                "axis, elevation), or the masks are wrong"
            )
        half, _ = _smallest_cube(points, cell, mask, cameras, centre)
        part = points[(points - centre).abs().amax(dim=-1) <= half]
        low, high = part.min(dim=0).values, part.max(dim=0).values
        centre, side = (low + high) / 2, float((high - low).max()) + cell  # a point stands for the cell around it
        half = 0.6 * side  # a tenth of room on either side
    return centre, side


def _smallest_cube(points: Tensor, cell: float, mask: Tensor, cameras: Cameras, centre: Tensor) -> tuple[float, float]:
    """The smallest cube around `centre` whose hull nodes still cover what all of them cover of the masks.

    Args:
        points: [n,3] float32 hull nodes, world frame.
        cell: their spacing, in world units.
        mask: [v,h,w] float32 coverage in [0,1].
        cameras: v cameras of h x w pixels.
        centre: [3] float32, world frame.

    Returns:
        half: half the cube's side, in world units.
        explained: the share of the masks' pixels that all nodes cover, in [0,1].
    """
    distance = (points - centre).abs().amax(dim=-1)
    needed = []
    for view in range(len(cameras)):
        pixels, before, per_unit = _project(cameras[view], points)
        # Blocks of pixels no finer than the points, or some would miss every point.
        block = max(1, round(2 * cell * per_unit))
        shown = F.avg_pool2d(mask[view, None], block, ceil_mode=True)[0] > MASK_LEVEL
        rows, columns = shown.shape
        x, y = (pixels / block).floor().long().unbind(-1)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & before
        nearest = torch.full((rows * columns,), torch.inf)
        nearest.scatter_reduce_(0, (y * columns + x)[inside], distance[inside], "amin")
        # The points nearest to the centre are at a block's inner edge, the object may end at its outer one.
        needed.append(nearest[shown.flatten()] + block / per_unit)
    every = torch.cat(needed)
    if len(every) == 0:  # an object of few pixels that fills no block
        return float(distance.max()), 1.0
    covered = every[torch.isfinite(every)]
    if len(covered) == 0:
        return float(distance.max()), 0.0
    return float(covered.max()), len(covered) / len(every)


def _rays_through_centres(mask: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Rays through the middle of each mask's bounding box.

    Returns:
        origins: [v,3] float32, world frame.
        directions: [v,3] float32, unit.
        spread: [v] float32, the distance of the farthest mask pixel from there, in world units (orthographic) or per
            unit of depth (perspective).
    """
    origins, directions, spread = [], [], []
    for view in range(len(cameras)):  # one at a time: the rays of many large photographs do not fit in memory
        rows, columns = torch.nonzero(mask[view] > MASK_LEVEL, as_tuple=True)
        row, column = int((rows.min() + rows.max()) / 2), int((columns.min() + columns.max()) / 2)
        rays_from, rays_to = cameras[view].rays()
        origins.append(rays_from[0, row, column].clone())
        directions.append(rays_to[0, row, column].clone())
        offset = torch.stack([columns - column, rows - row], dim=-1).abs() + 1
        spread.append((offset / cameras.intrinsics[view, :2]).norm(dim=-1).max())
    return torch.stack(origins), torch.stack(directions), torch.stack(spread)


def _nearest_point(origins: Tensor, directions: Tensor) -> Tensor:
    """The point [3] with the least sum of squared distances to lines, given as origins and directions [v,3]."""
    across = torch.eye(3, dtype=torch.float64) - torch.einsum("vi,vj->vij", directions.double(), directions.double())
    normal = across.sum(dim=0)
    if float(torch.linalg.eigvalsh(normal)[0]) < 1e-4 * len(origins):
        raise InputError("all views look along one line: the object's place cannot be found; give views from its sides")
    return torch.linalg.solve(normal, torch.einsum("vij,vj->i", across, origins.double())).float()


def _hull_nodes(mask: Tensor, cameras: Cameras, low: Tensor, high: Tensor) -> tuple[Tensor, float]:
    """The nodes [n,3] of a grid from `low` to `high` that are in the visual hull, and their spacing."""
    axes = [torch.linspace(float(a), float(b), _GRID) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes)
    cell = float((high - low).max()) / (_GRID - 1)
    grown = []
    for view in range(len(cameras)):
        _, _, per_unit = _project(cameras[view], points)
        # Masks are grown by half a cell, or a thin part between two nodes would be lost.
        grown.append(dilate(mask[view], min(round(0.5 * cell * per_unit), max(mask.shape[1:]))))
    # An object that reaches the picture's border may go on beyond it; another one may not.
    outside = ~torch.tensor(_reaches_border(mask))
    behind: Literal["visible", "background"] = "visible" if cameras.model == "orthographic" else "background"
    kept = carve(points, torch.stack(grown), cameras, _TOLERANCE, outside=outside, behind=behind)
    return points[kept], cell


def _project(camera: Cameras, points: Tensor) -> tuple[Tensor, Tensor, float]:
    """Project points [n,3] into one view.

    Returns:
        pixels: [n,2] float32.
        before: bool [n], whether the point is before the camera; true for orthographic cameras, whose position along
            their axis is arbitrary.
        per_unit: pixels per world unit at the points' median depth.
    """
    pixels, depth = camera.project(points)
    scale = float(camera.intrinsics[0, 0])
    if camera.model == "orthographic":
        return pixels[0], torch.ones(len(points), dtype=torch.bool), scale
    return pixels[0], depth[0] > 0, scale / max(float(depth[0].median()), 1e-6)


def _reaches_border(mask: Tensor) -> list[bool]:
    """For each mask [v,h,w] whether its object reaches the picture's border."""
    inner = mask.clone()
    inner[:, 1:-1, 1:-1] = 0
    return (inner > MASK_LEVEL).flatten(1).any(dim=1).tolist()


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
