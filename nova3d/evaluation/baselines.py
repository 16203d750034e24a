"""What one scores without any model: the lines every result must be read against.

A method that does not beat these has learnt nothing about the hidden side; PSNR on white backgrounds rewards a right
silhouette far more than a right texture, which the oracle lines show. An oracle knows something of the reference that
no method is given, and bounds what that knowledge alone is worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from nova3d.cameras import preset
from nova3d.evaluation.rerender import draw_plain
from nova3d.hull import visual_hull_mesh
from nova3d.normals import to_camera, to_world
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet

COPY = "copy of the input view (scored on the others)"


def all_white(ref: ViewSet) -> ViewSet:
    """Nothing at all: white pictures, empty masks, no normals."""
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


def input_colour(ref: ViewSet) -> Tensor:
    """[3] the mean foreground colour of the input view (view 0); black where it shows nothing."""
    weight = (ref.mask[0] > 0.5).float()[..., None]
    return (ref.rgb[0] * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)


def silhouette_oracle(ref: ViewSet) -> ViewSet:
    """The reference's own masks filled with the ONE mean foreground colour of the input view (view 0), on white.

    Its normals face each pixel's camera. It knows every silhouette, so it bounds what shape alone can score.
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


def view_floors(ref: ViewSet, shifts: Sequence[int], hull_cells: int) -> Iterator[tuple[str, ViewSet]]:
    """Name and views of every floor of a set of reference views; without hulls where hull_cells is 0.

    View 0 of COPY equals the reference: it is to be left out, for 100 dB there would say nothing of a floor.
    """
    yield "all-white image", all_white(ref)
    yield COPY, input_copy(ref)
    yield "silhouette oracle", silhouette_oracle(ref)
    for name, used in (("input view", ref[:1]), ("all views", ref)):
        hull = visual_hull_mesh(used.mask, used.cameras, hull_cells) if hull_cells else None
        if hull is not None:
            yield f"hull of {name}, mean colour", draw_plain(hull, ref.cameras, input_colour(ref))
    for pixels in shifts:
        yield f"true views, {pixels} px off", shifted(ref, pixels)


def mesh_floors(ref: trimesh.Trimesh, hull_cells: int) -> Iterator[tuple[str, trimesh.Trimesh]]:
    """Name and mesh of every floor of a reference mesh in the unit frame.

    The hulls are those of the silhouettes in 16 orthographic views at elevation 0, and of the first alone; without
    them where hull_cells is 0.
    """
    yield "bounding box", trimesh.creation.box(bounds=ref.bounds)
    if hull_cells:
        rig = preset("ortho16")
        bare = trimesh.Trimesh(ref.vertices, ref.faces, process=False)
        mask = rasterize(from_trimesh([bare]), rig, supersample=1, light="flat").rgba[..., 3]
        for name, views in (("input silhouette", 1), ("16 silhouettes", 16)):
            hull = visual_hull_mesh(mask[:views], rig[:views], hull_cells)
            if hull is not None:
                yield f"hull of {name}", hull
    yield "reference itself (sampling limit)", ref


def speck() -> trimesh.Trimesh:
    """As good as nothing: a cube of side 1/1000 at the centre of the unit frame."""
    return trimesh.creation.box([1e-3] * 3)
