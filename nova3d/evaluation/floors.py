"""What one scores without any model: the lines every result must be read against.

A method that does not beat these has learnt nothing about the hidden side; PSNR on white backgrounds rewards a right
silhouette far more than a right texture, which the oracle line shows.
"""

import torch
import trimesh

from nova3d.normals import to_camera, to_world
from nova3d.views import ViewSet


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


def silhouette_oracle(ref: ViewSet) -> ViewSet:
    """The reference's own masks filled with the ONE mean foreground colour of the input view (view 0), on white.

    Its normals face each pixel's camera. It knows every silhouette, so it bounds what shape alone can score.
    """
    weight = (ref.mask[0] > 0.5).float()[..., None]
    colour = (ref.rgb[0] * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)
    coverage = ref.mask[..., None]
    _, directions = ref.cameras.rays()
    return ViewSet(colour * coverage + (1 - coverage), -directions * (coverage > 0.5), ref.mask, ref.cameras)


def bounding_box(ref: trimesh.Trimesh) -> trimesh.Trimesh:
    """The reference's axis-aligned bounding box, closed."""
    return trimesh.creation.box(bounds=ref.bounds)


VIEW_FLOORS = {
    "all-white image": all_white,
    "copy of the input view": input_copy,
    "silhouette oracle": silhouette_oracle,
}
MESH_FLOORS = {
    "bounding box": bounding_box,
    "reference itself (sampling limit)": lambda ref: ref,
}
