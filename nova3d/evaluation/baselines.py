"""Baselines without a model, beside which every result is read.

A method that does not beat them shows no ability to predict the hidden side. An oracle baseline uses a part of the
reference that no method is given, and bounds the score of that part alone. PSNR on white backgrounds rewards a right
silhouette far more than a right texture, as the silhouette oracle shows.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from scipy import ndimage
from torch import Tensor

from nova3d import images
from nova3d.cameras import ORTHO_SPAN, preset
from nova3d.evaluation.rerender import draw, draw_plain
from nova3d.hull import visual_hull_mesh
from nova3d.inflate import inflated_mesh, inflated_views, level_rig
from nova3d.normals import to_camera, to_world
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

THICKNESS = 0.05  # world units; of the cut-out

VERSION = 3  # raise it whenever a baseline's pictures or meshes change; cached baseline scores are then recomputed
COPY = "copy of the input view (scored on the others)"
INFLATED = "inflated outline of the input view"
CUT_OUT = "cut-out of the input view"
BASELINES = {"inflated": INFLATED, "cut-out": CUT_OUT}
"""Baselines made of the input picture alone, by a short key. Every method is compared with them object by object."""
ORACLES = (
    *("silhouette oracle", "hull of all views", "true views, "),
    *("bounding box", "hull of 16 silhouettes", "reference itself"),
)
"""Beginnings of the names of those that use more of the reference than the input view."""
SHOW_INPUT = (COPY, INFLATED, CUT_OUT)
"""The baselines whose view 0 is the reference's. It must not be scored: its 100 dB would hide the others."""


def row_label(name: str) -> str:
    """The label of a baseline's row in a printed table: "baseline: NAME", or "oracle: NAME" for those of ORACLES."""
    if not name.startswith(ORACLES):
        return f"baseline: {name}"
    return name if "oracle" in name else f"oracle: {name}"


def all_white(ref: ViewSet) -> ViewSet:
    """White pictures, empty masks and no normals, from the reference's cameras."""
    return ViewSet(torch.ones_like(ref.rgb), torch.zeros_like(ref.normals), torch.zeros_like(ref.mask), ref.cameras)


def input_copy(ref: ViewSet) -> ViewSet:
    """The input view (view 0) repeated: its colours, its mask, and its normals as seen, turned with each camera."""
    v = len(ref)
    seen = to_camera(ref.normals[:1], ref.cameras.c2w[:1]).expand(v, -1, -1, -1)
    return ViewSet(
        ref.rgb[:1].expand(v, -1, -1, -1).clone(),
        to_world(seen, ref.cameras.c2w),
        ref.mask[:1].expand(v, -1, -1).clone(),
        ref.cameras,
    )


def inflated(ref: ViewSet) -> ViewSet | None:
    """The solid inflated from the input view's outline (`nova3d.inflate`), painted with the input view.

    It needs no network, and uses the input view alone. It needs a level orthographic rig; for other cameras the result
    is None, which is logged once.
    """
    try:
        return inflated_views(ref.straight_alpha(0), ref.cameras)
    except ValueError as error:
        _log_left_out(INFLATED, str(error))
        return None


def cut_out(ref: ViewSet) -> ViewSet | None:
    """The input view as a slab of the thickness THICKNESS with the picture on its front and back (`cut_out_mesh`).

    From the input's camera it cannot be distinguished from an object; from the side it is nearly invisible. None for
    the cameras for which `inflated` is None.
    """
    try:
        _, pixel = level_rig(ref.cameras)
    except ValueError as error:
        _log_left_out(CUT_OUT, str(error))
        return None
    picture = ref.straight_alpha(0)
    if not bool((picture[..., 3] > 0.5).any()):
        return all_white(ref)
    return draw(from_trimesh([cut_out_mesh(picture, pixel)]), ref.cameras, 2, CUT_OUT)


def cut_out_mesh(rgba: Tensor, pixel: float) -> trimesh.Trimesh:
    """A slab with a picture's outline, the picture on its front and its back, and at its sides the nearest colours.

    Args:
        rgba: [h,w,4] float in [0,1], straight alpha; the outline is where alpha passes 0.5, and it is not empty.
        pixel: world units that a pixel spans.

    Returns:
        A textured mesh in the frame of the picture's camera, centred at the picture's middle. Its edges are those of
        the pixels.
    """
    inside = rgba[..., 3].numpy() > 0.5
    h, w = inside.shape
    rows, columns = np.nonzero(inside)
    outside = ~np.pad(inside, 1)
    corner = np.arange(2 * (h + 1) * (w + 1)).reshape(2, h + 1, w + 1)  # front, back

    def quads(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])

    def face(side: np.ndarray) -> list[np.ndarray]:
        return [side[rows + r, columns + c] for r, c in ((0, 0), (1, 0), (1, 1), (0, 1))]

    parts = [quads(*face(corner[0])), quads(*face(corner[1])[::-1])]
    # An edge towards each neighbour outside: its two corners (row, column), counter-clockwise around the pixel.
    for (dy, dx), (first, second) in {
        (-1, 0): ((0, 1), (0, 0)),
        (0, -1): ((0, 0), (1, 0)),
        (1, 0): ((1, 0), (1, 1)),
        (0, 1): ((1, 1), (0, 1)),
    }.items():
        edge = outside[rows + 1 + dy, columns + 1 + dx]
        y, x = rows[edge], columns[edge]
        a, b = ((y + first[0], x + first[1]), (y + second[0], x + second[1]))
        parts.append(quads(corner[0][b], corner[0][a], corner[1][a], corner[1][b]))
    y, x = np.divmod(np.arange((h + 1) * (w + 1)), w + 1)
    plane = np.stack([(x - w / 2) * pixel, (h / 2 - y) * pixel], axis=1)
    vertices = np.concatenate(
        [np.column_stack([plane, np.full(len(plane), z)]) for z in (THICKNESS / 2, -THICKNESS / 2)]
    )
    uv = np.tile(np.stack([x / w, 1 - y / h], axis=1), (2, 1))
    # Outside the outline the nearest colour inside is repeated, so that no white bleeds in.
    _, (row, column) = ndimage.distance_transform_edt(outside[1:-1, 1:-1], return_indices=True)
    picture = Image.fromarray(images.to_uint8(rgba[..., :3])[row, column])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh = trimesh.Trimesh(vertices, np.concatenate(parts), visual=visual, process=False)
    mesh.remove_unreferenced_vertices()
    return mesh


@functools.cache
def _log_left_out(baseline: str, reason: str) -> None:
    log.info("the baseline '%s' is left out: %s", baseline, reason)


def input_colour(ref: ViewSet) -> Tensor:
    """[3] the mean foreground colour of the input view (view 0); black where it shows nothing."""
    weight = (ref.mask[0] > 0.5).float()[..., None]
    return (ref.rgb[0] * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)


def silhouette_oracle(ref: ViewSet) -> ViewSet:
    """The reference's own masks filled with the ONE mean foreground colour of the input view (view 0), on white.

    Its normals face each pixel's camera. It uses every true silhouette, so it bounds the score of shape alone.
    """
    coverage = ref.mask[..., None]
    _, directions = ref.cameras.rays()
    rgb = input_colour(ref) * coverage + (1 - coverage)
    return ViewSet(rgb, -directions * (coverage > 0.5), ref.mask, ref.cameras)


def shifted(ref: ViewSet, pixels: int) -> ViewSet:
    """The true views moved to the right by whole pixels; what moves in is white, what moves out is lost."""

    def move(images: Tensor, value: float) -> Tensor:
        return F.pad(images[:, :, : images.shape[2] - pixels], (0, 0, pixels, 0), value=value)

    mask = move(ref.mask[..., None], 0.0)[..., 0]
    return replace(ref, rgb=move(ref.rgb, 1.0), normals=move(ref.normals, 0.0), mask=mask)


def view_baselines(ref: ViewSet, shifts: Sequence[int], hull_cells: int | None) -> Iterator[tuple[str, ViewSet]]:
    """The baselines of a set of reference views.

    Args:
        ref: the reference views.
        shifts: pixels, of the baselines "true views, n px off".
        hull_cells: cells of the visual hulls along a side; None leaves the hulls out.

    Yields:
        Name and views. View 0 is not to be scored of those in SHOW_INPUT.
    """
    yield "all-white image", all_white(ref)
    yield COPY, input_copy(ref)
    solid = inflated(ref)
    if solid is not None:
        yield INFLATED, solid
    slab = cut_out(ref)
    if slab is not None:
        yield CUT_OUT, slab
    yield "silhouette oracle", silhouette_oracle(ref)
    for name, used in (("input view", ref[:1]), ("all views", ref)):
        hull = visual_hull_mesh(used.mask, used.cameras, hull_cells) if hull_cells else None
        if hull is not None:
            yield f"hull of {name}, mean colour", draw_plain(hull, ref.cameras, input_colour(ref))
    for pixels in shifts:
        yield f"true views, {pixels} px off", shifted(ref, pixels)


def mesh_baselines(ref: trimesh.Trimesh, hull_cells: int | None) -> Iterator[tuple[str, trimesh.Trimesh]]:
    """The baselines of a reference mesh in the unit frame.

    Args:
        ref: the reference mesh.
        hull_cells: cells of the visual hulls along a side; None leaves the hulls out. They are carved by the
            silhouettes of 16 orthographic views at elevation 0, and by the first alone.

    Yields:
        Name and mesh.
    """
    yield "bounding box", trimesh.creation.box(bounds=ref.bounds)
    rig = preset("ortho16") if hull_cells else preset("ortho16")[:1]
    bare = trimesh.Trimesh(ref.vertices, ref.faces, process=False)
    pictures = rasterize(from_trimesh([bare]), rig, supersample=1, light="flat").rgba
    yield INFLATED, inflated_mesh(pictures[0], ORTHO_SPAN / rig.width)
    yield CUT_OUT, cut_out_mesh(pictures[0], ORTHO_SPAN / rig.width)
    if hull_cells:
        mask = pictures[..., 3]
        for name, views in (("input silhouette", 1), ("16 silhouettes", 16)):
            hull = visual_hull_mesh(mask[:views], rig[:views], hull_cells)
            if hull is not None:
                yield f"hull of {name}", hull
    yield "reference itself (sampling limit)", ref


def speck() -> trimesh.Trimesh:
    """A cube of side 1/1000 at the centre of the unit frame, used in place of a missing mesh."""
    return trimesh.creation.box([1e-3] * 3)
