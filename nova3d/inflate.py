"""An outline inflated to a solid: a first guess of an object's shape from one picture, without any network.

The solid is the union of the balls whose centres lie on the outline's medial axis, in the plane through the object's
middle, and which touch the outline (Blum 1967 for the axis). Seen from the picture's camera it has the picture's
outline; its back mirrors its front. Painted with the picture through and through it serves as a baseline, as the
model's condition and as the prior of the fusion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from skimage.morphology import medial_axis
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.views import ViewSet

Floats = NDArray[np.float32]

_LEAST_HEIGHT = 0.25  # pixels; of the mesh, inside the outline
LEVEL_TOLERANCE = 1e-3  # radians of elevation, and world units off the axis, that still count as none


@dataclass(frozen=True)
class Inflated:
    """The front half of an inflated outline; the back half is its mirror image at the plane z = 0.

    Attributes:
        height: [h,w] float32, world units. Distance of the surface from the plane z = 0, 0 outside the outline.
        normal: [h,w,3] float32, unit outward normals of the front half in the world frame of the camera; zero outside.
        radius: [h,w] float32, world units. Radius of the largest ball that covers the pixel: half the width of its part
            of the outline. 0 outside the outline.
    """

    height: Floats
    normal: Floats
    radius: Floats

    @property
    def prior(self) -> Tensor:
        """Height and radius, [2,h,w] float32, as `nova3d.volume` takes them."""
        return torch.from_numpy(np.stack([self.height, self.radius]))


def inflate(mask: Tensor | NDArray[np.floating], pixel: float) -> Inflated:
    """Inflate an outline by the balls on its medial axis.

    Args:
        mask: [h,w] coverage in [0,1]; the outline is where it passes 0.5.
        pixel: world units that a pixel spans.

    Returns:
        Height, normals and radius at the pixels' centres. All are zero everywhere where the mask is empty.
    """
    inside = np.pad(np.asarray(mask) > 0.5, 1)  # the picture's border ends the object
    height = np.zeros(inside.shape, np.float32)
    normal = np.zeros((*inside.shape, 3), np.float32)
    largest = np.zeros(inside.shape, np.float32)
    if inside.any():
        # Ties of the thinning are broken by a fixed order, so that one mask has one axis.
        axis, distance = medial_axis(inside, return_distance=True, rng=0)
        radii = np.where(axis, distance, 0.0)
        rows, columns = np.nonzero(radii)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            _add_ball(height, normal, largest, row, column, float(radii[row, column]), inside)
    height, normal, largest = (layer[1:-1, 1:-1] for layer in (height, normal, largest))
    return Inflated(height * np.float32(pixel), normal, largest * np.float32(pixel))


def inflated_views(rgba: Tensor, cameras: Cameras, supersample: int = 3, only: Sequence[int] | None = None) -> ViewSet:
    """The views of a picture's inflated outline, painted with the picture through and through.

    In a rig of level orthographic cameras that look at one vertical axis, a point of the object keeps its row in every
    view. So every row is rendered by itself, with a depth buffer of one dimension.

    Args:
        rgba: [h,w,4] float in [0,1], straight alpha; the picture as the first camera sees the object.
        cameras: v cameras of h by w pixels: orthographic, level, looking at the world's y axis, the first one from +Z.
        supersample: samples per pixel along either axis. Odd, so that no pixel is covered by exactly one half.
        only: indices of the views to render, in their order; None renders all.

    Returns:
        The views on white. View 0 shows the picture itself, with the inflated outline's normals.

    Raises:
        ValueError: for cameras of another rig, and for a picture of another size.
    """
    azimuths, pixel = level_rig(cameras)
    if rgba.shape != (cameras.height, cameras.width, 4):
        raise ValueError(f"the picture {tuple(rgba.shape)} does not fit cameras of {cameras.height}x{cameras.width}")
    fine = images.resize(rgba.cpu().float(), cameras.width * supersample, cameras.height * supersample).numpy()
    solid = inflate(fine[..., 3], pixel / supersample)
    colour = _opaque(fine)
    chosen = list(range(len(cameras))) if only is None else list(only)
    views = [_render_rows(solid, colour, azimuths[view], pixel / supersample) for view in chosen]
    layers = torch.from_numpy(np.stack([_block_means(view, supersample) for view in views]))
    colours, normals, mask = layers[..., :3], layers[..., 3:6], layers[..., 6]
    normals = torch.nn.functional.normalize(normals, dim=-1) * (mask > 0)[..., None]
    rgb = colours + (1 - mask[..., None])
    picture = rgba.cpu().float()
    alpha = picture[..., 3]
    for index in (i for i, view in enumerate(chosen) if view == 0):
        rgb[index] = images.composite(picture)
        mask[index] = alpha
        normals[index] *= (alpha > 0)[..., None]
    return ViewSet(rgb.clamp(0, 1), normals, mask, cameras[chosen])


def inflated_mesh(rgba: Tensor, pixel: float) -> trimesh.Trimesh:
    """The inflated outline as a closed surface, painted with the picture through and through.

    Every pixel inside the outline is a fan of eight triangles in front and eight at the back, through its centre, its
    corners and the middles of its edges. Front and back share the points that lie on the outline. The middles keep a
    line of single pixels closed: its corners all lie on the outline.

    Args:
        rgba: [h,w,4] float in [0,1], straight alpha; the outline is where alpha passes 0.5.
        pixel: world units that a pixel spans.

    Returns:
        A watertight mesh with vertex colours in the frame of the picture's camera: +X right, +Y up, centred at the
        picture's middle. It has no faces where the outline is empty.
    """
    layers = rgba.cpu().numpy().astype(np.float32)
    inside = layers[..., 3] > 0.5
    h, w = inside.shape
    # Points lie on a lattice of half pixels. Pixel (r, c) has its centre at (2r + 1, 2c + 1).
    count = _spread(inside[..., None].astype(np.float32))
    share = np.maximum(count, 1)
    # A thinned axis leaves out a few pixels of the outline. Front and back must not coincide there.
    solid = np.maximum(inflate(layers[..., 3], pixel).height, _LEAST_HEIGHT * pixel) * inside
    height = _spread(solid[..., None].astype(np.float32)) / share
    colour = _spread(_opaque(layers) * inside[..., None]) / share
    on_line = [1 + (np.arange(2 * side + 1) % 2 == 0) for side in (h, w)]
    around = np.outer(*on_line)  # pixels around a point, inside the outline or not

    y, x = np.nonzero(count[..., 0])
    interior = count[y, x, 0] == around[y, x]
    z = np.where(interior, height[y, x, 0], 0)
    front = np.stack([(x / 2 - w / 2) * pixel, (h / 2 - y / 2) * pixel, z], axis=1)
    number = np.zeros((2, 2 * h + 1, 2 * w + 1), np.int64)  # of the front's points, and of the back's
    number[:, y, x] = np.arange(len(y))
    number[1, y[interior], x[interior]] = len(y) + np.arange(int(interior.sum()))

    rows, columns = np.nonzero(inside)
    faces = []
    for first, second in zip(_RIM, [*_RIM[1:], _RIM[0]], strict=True):
        for side, corners in zip(number, ([(0, 0), first, second], [(0, 0), second, first]), strict=True):
            faces.append(np.stack([side[2 * rows + 1 + r, 2 * columns + 1 + c] for r, c in corners], axis=1))
    paint = np.round(255 * np.concatenate([colour[y, x], colour[y[interior], x[interior]]])).astype(np.uint8)
    vertices = np.concatenate([front, front[interior] * [1, 1, -1]])
    return trimesh.Trimesh(vertices, np.concatenate(faces), vertex_colors=paint, process=False)


# The rim of a pixel in half pixels (row, column) from its centre, counter-clockwise as the camera sees it.
_RIM = [(-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)]


def _spread(field: Floats) -> Floats:
    """[h,w,c] at pixel centres to [2h+1,2w+1,c] on half pixels: each point's sum over the pixels around it."""
    h, w, c = field.shape
    total = np.zeros((2 * h + 1, 2 * w + 1, c), np.float32)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            total[1 + row : 2 * h + row + 1 : 2, 1 + column : 2 * w + column + 1 : 2] += field
    return total


def level_rig(cameras: Cameras) -> tuple[list[float], float]:
    """The azimuths of level orthographic cameras around the world's y axis, the first one on +Z.

    Args:
        cameras: v cameras of one rig.

    Returns:
        v azimuths in radians, and the world units that a pixel spans.

    Raises:
        ValueError: for another rig.
    """
    angles = cameras.azimuth_elevation()
    centre = cameras.intrinsics.new_tensor([cameras.width / 2, cameras.height / 2])
    pixels, _ = cameras.project(torch.zeros(1, 3).to(cameras.c2w))
    level = cameras.model == "orthographic" and bool((angles[:, 1].abs() < LEVEL_TOLERANCE).all())
    if not level or bool((pixels - centre).abs().max() > 1e-2) or abs(float(angles[0, 0])) > LEVEL_TOLERANCE:
        raise ValueError("an inflated outline is rendered for level orthographic cameras around the world's y axis")
    step, _ = cameras.project(torch.tensor([[1.0, 0.0, 0.0]]).to(cameras.c2w))
    return angles[:, 0].tolist(), 1 / float((step - pixels)[0, 0, 0].abs())


def _add_ball(
    height: Floats,
    normal: Floats,
    largest: Floats,
    row: int,
    column: int,
    radius: float,
    inside: NDArray[np.bool_],
) -> None:
    """Raise `height` [h,w] (pixels) to a ball around a pixel where the ball is higher, and take its normals there.

    `largest` [h,w] is raised to the ball's radius where the ball covers the pixel.
    """
    reach = math.ceil(radius)
    top, left = max(row - reach, 0), max(column - reach, 0)
    window = (slice(top, row + reach + 1), slice(left, column + reach + 1))
    y = np.arange(top, min(row + reach + 1, height.shape[0]), dtype=np.float32) - row
    x = np.arange(left, min(column + reach + 1, height.shape[1]), dtype=np.float32) - column
    squared = radius * radius - (y * y)[:, None] - (x * x)[None]
    ball = np.sqrt(np.maximum(squared, 0))
    covered = (squared >= 0) & inside[window]
    largest[window][covered] = np.maximum(largest[window][covered], radius)
    higher = (ball > height[window]) & inside[window]
    height[window][higher] = ball[higher]
    rows, columns = np.nonzero(higher)
    normal[window][rows, columns] = np.stack([x[columns], -y[rows], ball[rows, columns]], axis=-1) / radius


def _render_rows(solid: Inflated, colour: Floats, azimuth: float, pixel: float) -> Floats:
    """[h,w,7] colour, normal and coverage, premultiplied, of the solid as seen from `azimuth` (radians).

    A row's cross-section is bounded by the height profile and its mirror image. Each piece of that boundary between two
    neighbouring samples covers some pixels of the row; the piece nearest to the camera wins.
    """
    h, w = solid.height.shape
    x0, x1, z0, z1, row, near, far = _boundary(solid, pixel)
    cosine, sine = math.cos(azimuth), math.sin(azimuth)
    u0, u1 = ((x * cosine - z * sine) / pixel + w / 2 - 0.5 for x, z in ((x0, z0), (x1, z1)))
    first = np.ceil(np.minimum(u0, u1)).astype(np.int64).clip(0, w)
    last = np.floor(np.maximum(u0, u1)).astype(np.int64).clip(-1, w - 1)
    counts = np.maximum(last - first + 1, 0)
    piece = np.repeat(np.arange(len(counts)), counts)
    column = first[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
    span = (u1 - u0)[piece]
    share = np.divide(column - u0[piece], span, out=np.zeros(len(piece), np.float32), where=span != 0).clip(0, 1)
    x, z = (a[piece] * (1 - share) + b[piece] * share for a, b in ((x0, x1), (z0, z1)))
    order = np.argsort(x * sine + z * cosine, kind="stable")  # the camera is where this grows: it writes last
    piece, column, share = piece[order], column[order], share[order, None]
    seen = np.full(h * w, -1, np.int64)
    seen[row[piece] * w + column] = np.arange(len(piece))
    hit = np.nonzero(seen >= 0)[0]
    piece, share = piece[seen[hit]], share[seen[hit]]
    a, b = near[piece], far[piece]
    mirrored = (z0[piece] + z1[piece] < 0)[:, None] * np.array([0, 0, 2], np.float32)
    flat = colour.reshape(-1, 3), solid.normal.reshape(-1, 3)
    shown = [field[a] * (1 - share) + field[b] * share for field in flat]
    facing = shown[1] * (1 - mirrored)
    layers = np.zeros((h * w, 7), np.float32)
    layers[hit] = np.concatenate([shown[0], facing, np.ones((len(hit), 1), np.float32)], axis=1)
    return layers.reshape(h, w, 7)


def _boundary(
    solid: Inflated, pixel: float
) -> tuple[Floats, Floats, Floats, Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The pieces of every row's boundary: x and z of both ends (world units), row, and the flat indices of the pixels
    whose colour and normal the ends have. A run of pixels ends half a pixel beyond its last one, at height 0."""
    w = solid.height.shape[1]
    padded = np.pad(solid.height, ((0, 0), (1, 1)))
    inside = padded > 0
    rows, columns = np.nonzero(inside[:, :-1] | inside[:, 1:])  # from padded column c to c + 1
    left, right = inside[rows, columns], inside[rows, columns + 1]
    place = columns.astype(np.float32) - 0.5  # of padded column c, in pixels from the left edge of the picture
    x0 = np.where(left, place, place + 0.5)
    x1 = np.where(right, place + 1, place + 0.5)
    z0, z1 = padded[rows, columns], padded[rows, columns + 1]
    near = rows * w + np.where(left, columns - 1, columns)
    far = rows * w + np.where(right, columns, columns - 1)
    x0, x1 = (((x - w / 2) * pixel).astype(np.float32) for x in (x0, x1))

    def both(front: NDArray, back: NDArray) -> NDArray:
        return np.concatenate([front, back])

    return (
        both(x0, x0),
        both(x1, x1),
        cast(Floats, both(z0, -z0)),
        cast(Floats, both(z1, -z1)),
        both(rows, rows),
        both(near, near),
        both(far, far),
    )


def _opaque(rgba: Floats) -> Floats:
    """[h,w,3] colours; pixels of no coverage take the mean colour of the object, so that no white bleeds in."""
    alpha = rgba[..., 3:]
    total = float(alpha.sum())
    mean = (rgba[..., :3] * alpha).sum(axis=(0, 1)) / total if total else np.ones(3, np.float32)
    return np.where(alpha > 0, rgba[..., :3], mean).clip(0, 1).astype(np.float32)


def _block_means(layers: Floats, factor: int) -> Floats:
    """[h*factor,w*factor,c] to [h,w,c] by the mean of every block."""
    h, w, c = layers.shape
    return layers.reshape(h // factor, factor, w // factor, factor, c).mean(axis=(1, 3), dtype=np.float32)
