"""A generated mesh beside the picture that it was made from, seen by the picture's own camera."""

from dataclasses import dataclass

import trimesh
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.metrics import INPUT_SIZE, count_parts, input_iou, input_psnr
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize

_SUPERSAMPLE = 3


@dataclass(frozen=True)
class InputAgreement:
    """How well a mesh agrees with the picture that it was made from.

    Attributes:
        input_iou: of the outlines, in [0,1] (`nova3d.metrics.input_iou`).
        input_psnr: on the picture's object, in dB (`nova3d.metrics.input_psnr`).
        parts_seen: connected parts of the mesh's outline (`nova3d.metrics.count_parts`).
        parts_of_picture: of the picture's.
    """

    input_iou: float
    input_psnr: float
    parts_seen: int
    parts_of_picture: int


def draw_input_view(mesh: trimesh.Trimesh, camera: Cameras) -> Tensor:
    """A mesh as the camera of its picture sees it, under flat light.

    Args:
        mesh: textured or with vertex colours, in the world frame; vertex colours are sRGB.
        camera: one camera; its pictures are resized to INPUT_SIZE pixels a side.

    Returns:
        [INPUT_SIZE,INPUT_SIZE,4] float32 in [0,1], straight alpha; transparent where the camera does not see the mesh.

    Raises:
        InputError: where the camera sees nothing of the mesh.
    """
    try:
        drawn = rasterize(from_trimesh([mesh]), camera.resized(INPUT_SIZE, INPUT_SIZE), _SUPERSAMPLE, light="flat")
    except InputError as error:
        raise InputError(f"the mesh cannot be compared with its picture: {error}") from error
    return drawn.rgba[0]


def input_agreement(mesh: trimesh.Trimesh, picture: Tensor, camera: Cameras) -> InputAgreement:
    """Compare a mesh with the picture that it was made from.

    Args:
        mesh: textured or with vertex colours, in the world frame.
        picture: [INPUT_SIZE,INPUT_SIZE,4] float in [0,1], straight alpha, framed as the camera sees it.
        camera: the picture's, view 0 of generated views.

    Returns:
        The figures.

    Raises:
        InputError: where the camera sees nothing of the mesh.
    """
    drawn = draw_input_view(mesh, camera)
    return InputAgreement(
        input_iou(drawn, picture),
        input_psnr(drawn, picture),
        count_parts(drawn[..., 3]),
        count_parts(picture[..., 3]),
    )
