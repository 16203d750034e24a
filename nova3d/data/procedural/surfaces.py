"""Surfaces of procedural objects: of revolution, rounded boxes, tubes and soft unions of primitives, as arrays.

World axes: +Y up, +Z to the front. The front of every surface has u = 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from skimage.measure import marching_cubes

Floats = NDArray[np.float64]
Shape = Literal["ellipsoid", "box", "cylinder", "torus"]

SHAPES: tuple[Shape, ...] = get_args(Shape)

# Cells of the texture atlas of a box, as (column, row from the top) of a 3 by 2 grid.
BOX_CELLS = {"front": (0, 0), "back": (1, 0), "left": (2, 0), "right": (0, 1), "top": (1, 1), "bottom": (2, 1)}
_ARC_POINTS = 5  # points of a rounded corner
_TINY = 1e-9


@dataclass(frozen=True)
class Surface:
    """A triangle mesh with smooth normals, and texture coordinates or colours.

    Attributes:
        vertices: [n,3] float64.
        normals: [n,3] float64, unit, outward.
        faces: [f,3] int64, counter-clockwise as seen from outside.
        uv: [n,2] float64, origin at the texture's lower left.
        colours: [n,3] float64 in [0,1], sRGB; None where a texture gives the colours.
    """

    vertices: Floats
    normals: Floats
    faces: NDArray[np.int64]
    uv: Floats
    colours: Floats | None = None

    def moved(self, shift: ArrayLike = (0, 0, 0), scale: ArrayLike = 1.0, turn: Floats | None = None) -> "Surface":
        """Return the surface scaled along the axes (positive factors), then rotated by `turn` [3,3], then shifted."""
        factors = np.broadcast_to(np.asarray(scale, np.float64), 3)
        rotation = np.eye(3) if turn is None else turn
        vertices = (self.vertices * factors) @ rotation.T + np.asarray(shift, np.float64)
        return replace(self, vertices=vertices, normals=_unit(self.normals / factors) @ rotation.T)


def rotation(axis: Literal["x", "y", "z"], angle: float) -> Floats:
    """Return the matrix [3,3] of a rotation by `angle` (radians) about an axis."""
    c, s = np.cos(angle), np.sin(angle)
    rows = {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]]}
    return np.array(rows.get(axis, [[c, -s, 0], [s, c, 0], [0, 0, 1]]))


def grid_surface(points: Floats, normals: Floats, uv: Floats) -> Surface:
    """Make a surface of a grid of points.

    Args:
        points: [h,w,3].
        normals: [h,w,3], unit, outward.
        uv: [h,w,2].

    Returns:
        The surface, whose faces are wound as the normals say.
    """
    h, w = points.shape[:2]
    index = np.arange(h * w).reshape(h, w)
    a, b, c, d = (part.reshape(-1) for part in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    flat, flat_normals = points.reshape(-1, 3), normals.reshape(-1, 3)
    corners = flat[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    faces = _wound_outward(flat, faces[area > 1e-12], flat_normals)  # at a pole, a cell has one triangle
    return Surface(flat, flat_normals, faces, uv.reshape(-1, 2))


def fillet(corners: ArrayLike, radius: float) -> tuple[Floats, Floats]:
    """Round the corners of a polyline by circular arcs.

    Args:
        corners: [k,2] points; the ends stay.
        radius: of the arcs. An arc takes at most 0.45 of either neighbouring edge.

    Returns:
        The points [n,2], and the arc length [k] at which each corner lies, both from 0 to the total length of 1.
    """
    given = np.asarray(corners, np.float64)
    points, nearest = [given[0]], [0]
    for before, corner, after in zip(given[:-2], given[1:-1], given[2:], strict=True):
        back, forth = before - corner, after - corner
        lengths = np.linalg.norm(back), np.linalg.norm(forth)
        back, forth = back / max(lengths[0], _TINY), forth / max(lengths[1], _TINY)
        half = np.arccos(np.clip(back @ forth, -1, 1)) / 2
        cut = min(radius / max(np.tan(half), 1e-3), 0.45 * min(lengths))
        start, end = corner + back * cut, corner + forth * cut
        # A quadratic curve with the edges as its tangents is close to the arc for corners of up to a right angle.
        t = np.linspace(0, 1, _ARC_POINTS)[:, None]
        nearest.append(len(points) + _ARC_POINTS // 2)
        points.extend((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    nearest.append(len(points))
    curve = np.array([*points, given[-1]])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    return curve, length[nearest] / length[-1]


def revolve(
    curve: Floats, columns: int = 48, section: float = 2.0, depth: float = 1.0, flutes: int = 0, flute: float = 0.0
) -> Surface:
    """Turn a profile about the y axis.

    Args:
        curve: [n,2] radius and height, from the lower pole along the outside to the upper pole, or back along the
            inside.
        columns: around the axis.
        section: exponent of the cross-section's superellipse; 2 is a circle, 6 nearly a square.
        depth: extent along z relative to that along x.
        flutes: grooves around the axis.
        flute: depth of the grooves, relative to the radius.

    Returns:
        The surface. u goes around the axis, v along the profile by arc length.
    """
    angle = np.linspace(-np.pi, np.pi, columns + 1)
    sine, cosine = np.sin(angle), np.cos(angle)
    reach = (np.abs(sine) ** section + np.abs(cosine) ** section) ** (-1 / section)
    reach = reach * (1 + flute * np.cos(flutes * angle))
    ring = np.stack([reach * sine, np.zeros_like(angle), reach * cosine * depth], axis=-1)
    points = curve[:, :1, None] * ring[None] + curve[:, 1, None, None] * np.array([0.0, 1.0, 0.0])
    along_u = _around(ring)[None] * np.ones((len(curve), 1, 1))
    slope = np.gradient(curve, axis=0)
    along_v = slope[:, :1, None] * ring[None] + slope[:, 1, None, None] * np.array([0.0, 1.0, 0.0])
    normals = np.cross(along_u, along_v)
    poles = curve[:, 0] < _TINY
    normals[poles] = normals[poles].mean(axis=1, keepdims=True)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), length / length[-1])
    return grid_surface(points, _unit(normals), np.stack([u, v], axis=-1))


def _around(ring: Floats) -> Floats:
    """[w,3] differences along a closed ring whose last point repeats the first."""
    ahead, behind = np.roll(ring[:-1], -1, axis=0), np.roll(ring[:-1], 1, axis=0)
    change = ahead - behind
    return np.concatenate([change, change[:1]])


def rounded_box(size: ArrayLike, radius: float) -> Surface:
    """Make a box with rounded edges, centred at the origin.

    Args:
        size: [3] extents.
        radius: of the edges; at most 0.49 of the smallest extent is taken.

    Returns:
        The surface. Each side has a cell of the texture, given by BOX_CELLS.
    """
    half = np.asarray(size, np.float64) / 2
    radius = min(radius, 0.98 * float(half.min()))
    core = half - radius
    # Per side: the axes of the picture's right and up, the outward axis, each with its sign.
    sides = {
        "front": ((0, 1), (1, 1), (2, 1)),
        "back": ((0, -1), (1, 1), (2, -1)),
        "right": ((2, -1), (1, 1), (0, 1)),
        "left": ((2, 1), (1, 1), (0, -1)),
        "top": ((0, 1), (2, -1), (1, 1)),
        "bottom": ((0, 1), (2, 1), (1, -1)),
    }
    parts = []
    for name, (right, up, out) in sides.items():
        s, t = (_side_coordinates(half[axis], core[axis]) for axis, _ in (right, up))
        across, along = np.meshgrid(s, t)
        cube = np.zeros((*across.shape, 3))
        cube[..., right[0]], cube[..., up[0]], cube[..., out[0]] = (
            right[1] * across,
            up[1] * along,
            out[1] * half[out[0]],
        )
        inner = np.clip(cube, -core, core)
        normals = _unit(cube - inner)
        column, row = BOX_CELLS[name]
        u = (column + 0.5 + across / half[right[0]] * 0.49) / 3
        v = (1 - row + 0.5 + along / half[up[0]] * 0.49) / 2
        parts.append(grid_surface(inner + radius * normals, normals, np.stack([u, v], axis=-1)))
    return join(parts)


def _side_coordinates(half: float, core: float) -> Floats:
    """Coordinates along a side of a box: close together in the rounded ends."""
    end = np.linspace(core, half, 4)
    return np.concatenate([-end[::-1], np.linspace(-core, core, 4)[1:-1], end])


def tube(path: ArrayLike, radius: ArrayLike, across: ArrayLike, columns: int = 16, flat: float = 1.0) -> Surface:
    """Sweep a circle along a plane curve.

    Args:
        path: [k,3] the curve; closed where its last point is its first.
        radius: of the tube, one or [k]; zero at an end closes it.
        across: [3] unit normal of the plane.
        columns: around the tube.
        flat: extent across the plane relative to that in it.

    Returns:
        The surface. u goes around the tube, v along it.
    """
    points, side = np.asarray(path, np.float64), np.asarray(across, np.float64)
    radii = np.broadcast_to(np.asarray(radius, np.float64), len(points))
    tangents = _around(points) if np.allclose(points[0], points[-1]) else np.gradient(points, axis=0)
    outward = _unit(np.cross(side, tangents))
    angle = np.linspace(-np.pi, np.pi, columns + 1)
    circle = np.cos(angle)[None, :, None] * outward[:, None] + flat * np.sin(angle)[None, :, None] * side
    normals = np.cos(angle)[None, :, None] * outward[:, None] * flat + np.sin(angle)[None, :, None] * side
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, len(points)))
    surface = points[:, None] + radii[:, None, None] * circle
    return grid_surface(surface, _unit(normals), np.stack([u, v], axis=-1))


def join(parts: Sequence[Surface]) -> Surface:
    """Concatenate surfaces of one texture, none with colours of its own."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces = [part.faces + start for part, start in zip(parts, starts, strict=True)]
    vertices, normals = (
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.normals for part in parts]),
    )
    return Surface(vertices, normals, np.concatenate(faces), np.concatenate([part.uv for part in parts]))


@dataclass(frozen=True)
class Primitive:
    """One solid of a soft union.

    Attributes:
        shape: what `size` means: the half axes of an ellipsoid, the half extents of a box, the radius, half height and
            rounding of a cylinder about y, the ring's and the tube's radius of a torus about z.
        centre: [3].
        size: [3].
        turn: [3,3] rotation from the primitive's own frame.
        part: number of the object's part that it belongs to, for colours.
        hole: whether it is cut out instead of added.
    """

    shape: Shape
    centre: Floats
    size: Floats
    turn: Floats
    part: int = 0
    hole: bool = False

    def distance(self, points: Floats) -> Floats:
        """Return the signed distance [...] of points [...,3], negative inside; of an ellipsoid an estimate."""
        own = (points - self.centre) @ self.turn
        if self.shape == "ellipsoid":
            near = np.linalg.norm(own / self.size, axis=-1)
            return near * (near - 1) / np.maximum(np.linalg.norm(own / self.size**2, axis=-1), _TINY)
        if self.shape == "torus":
            ring = np.hypot(own[..., 0], own[..., 1]) - self.size[0]
            return np.hypot(ring, own[..., 2]) - self.size[1]
        if self.shape == "cylinder":
            rounding = self.size[2]
            gap = np.stack([np.hypot(own[..., 0], own[..., 2]) - self.size[0], np.abs(own[..., 1]) - self.size[1]], -1)
        else:
            rounding = 0.3 * self.size.min()
            gap = np.abs(own) - self.size
        gap = gap + rounding
        return np.linalg.norm(np.maximum(gap, 0), axis=-1) + np.minimum(gap.max(axis=-1), 0) - rounding


def soft_union(primitives: Sequence[Primitive], blend: float, cells: int = 64) -> tuple[Surface, NDArray[np.int64]]:
    """Mesh a union of primitives that flow into each other, with holes cut out.

    The union is the polynomial smooth minimum of the distances; its zero level is found by marching cubes.

    Args:
        primitives: at least one that is not a hole.
        blend: width of the zone where two primitives flow into each other.
        cells: of the grid along the longest side of the bounding box.

    Returns:
        The surface (uv is zero), and the part [n] that each vertex belongs to.
    """
    low, high = _bounds(primitives)
    margin = 3 * (high - low).max() / cells
    step = ((high - low).max() + 2 * margin) / cells
    shape = np.ceil((high - low + 2 * margin) / step).astype(int) + 1
    axes = [low[k] - margin + step * np.arange(shape[k]) for k in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    field = _field(primitives, points, blend)
    corners, faces, _, _ = marching_cubes(field, 0.0)
    vertices = low - margin + step * corners.astype(np.float64)
    small = step / 2
    offsets = np.eye(3) * small
    slopes = [_field(primitives, vertices + d, blend) - _field(primitives, vertices - d, blend) for d in offsets]
    normals = _unit(np.stack(slopes, axis=-1))
    solid = [primitive for primitive in primitives if not primitive.hole]
    distances = np.stack([primitive.distance(vertices) for primitive in solid])
    part = np.array([primitive.part for primitive in solid])[distances.argmin(axis=0)]
    wound = _wound_outward(vertices, faces.astype(np.int64), normals)
    return Surface(vertices, normals, wound, np.zeros((len(vertices), 2))), part


def _wound_outward(vertices: Floats, faces: NDArray[np.int64], normals: Floats) -> NDArray[np.int64]:
    corners = vertices[faces]
    winding = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return faces[:, ::-1] if (winding * normals[faces[:, 0]]).sum() < 0 else faces


def _field(primitives: Sequence[Primitive], points: Floats, blend: float) -> Floats:
    union: Floats | None = None
    for primitive in primitives:
        if not primitive.hole:
            distance = primitive.distance(points)
            union = distance if union is None else _smooth_minimum(union, distance, blend)
    assert union is not None
    for primitive in primitives:
        if primitive.hole:
            union = -_smooth_minimum(-union, primitive.distance(points), 0.3 * blend)
    return union


def _smooth_minimum(a: Floats, b: Floats, width: float) -> Floats:
    near = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - near * near * width / 4


def _bounds(primitives: Sequence[Primitive]) -> tuple[Floats, Floats]:
    solid = [primitive for primitive in primitives if not primitive.hole]
    reach = [_half_extents(primitive) for primitive in solid]
    low = np.min([primitive.centre - r for primitive, r in zip(solid, reach, strict=True)], axis=0)
    high = np.max([primitive.centre + r for primitive, r in zip(solid, reach, strict=True)], axis=0)
    return low, high


def _half_extents(primitive: Primitive) -> Floats:
    """Half extents [3] of the box around a primitive, in the object's frame."""
    size = primitive.size
    own = {
        "cylinder": np.array([size[0], size[1], size[0]]),
        "torus": np.array([size[0] + size[1], size[0] + size[1], size[1]]),
    }.get(primitive.shape, size)
    if primitive.shape == "ellipsoid":
        return np.sqrt(((primitive.turn * own) ** 2).sum(axis=1))
    return np.abs(primitive.turn) @ own


def on_curve(knots: ArrayLike, count: int) -> Floats:
    """Return [count,2] points of a smooth curve through `knots` [k,2] that does not overshoot between them."""
    given = np.asarray(knots, np.float64)
    at = np.linspace(0, 1, len(given))
    curve: Callable[[Floats], Floats] = PchipInterpolator(at, given, axis=0)
    return curve(np.linspace(0, 1, count))


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
