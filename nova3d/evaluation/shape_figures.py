"""Figures of a mesh's shape that a front view does not show: how thick it is behind the picture, and in how many parts.

A flat cut-out has the outline and the colours of its picture, so they do not distinguish it from an object.
These figures do. None has a best value: each is read beside that of the true mesh. All are measured in the unit frame,
seen by the input view's camera, INPUT_SIZE pixels a side.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy import ndimage
from torch import Tensor

from nova3d.cameras import preset
from nova3d.evaluation.mesh_metrics import solid_voxels
from nova3d.metrics import INPUT_SIZE, mask_iou
from nova3d.rendering.raster import barycentric, nearest_faces

THIN = 0.02  # longest sides of the reference
_SAME_SURFACE = 1e-3  # depth difference below which two surfaces count as one
_RIM_PX = (2.0, 3.0)  # from the outline
_VOXELS = 128  # along the mesh's longest side, in which parts are counted


@dataclass(frozen=True)
class FrontView:
    """What the input view's camera sees of a mesh.

    Attributes:
        mask: [h,w] bool, where the mesh is.
        thickness: [h,w] float32, world units from the nearest surface to the next one behind it; 0 where there is none.
        angle_deg: [h,w] float32 in [0,90], between the nearest surface's normal and the view axis.
    """

    mask: Tensor
    thickness: Tensor
    angle_deg: Tensor


def front_view(mesh: trimesh.Trimesh) -> FrontView:
    """Draw the nearest two surfaces of a mesh in the unit frame."""
    camera = preset("ortho16", INPUT_SIZE)[0]
    vertices = torch.from_numpy(np.array(mesh.vertices)).float()
    faces = torch.from_numpy(np.array(mesh.faces))
    pixels, depth = camera.project(vertices)
    corners, z = pixels[0].double()[faces], depth[0].double()[faces]
    normal = F.normalize(torch.linalg.cross(*(vertices[faces[:, k]] - vertices[faces[:, 0]] for k in (1, 2))), dim=-1)
    centres = camera.pixel_centres().double().reshape(-1, 2)

    def layer(behind: Tensor) -> tuple[Tensor, Tensor]:
        """Face [h*w] and depth [h*w] of the nearest surface that lies `behind` a depth [h*w]."""

        def further(face: Tensor, weights: Tensor) -> Tensor:
            place = (weights[..., None] * corners[face]).sum(dim=1).long()
            return (weights * z[face]).sum(dim=1) > behind[place[:, 1] * INPUT_SIZE + place[:, 0]] + _SAME_SURFACE

        face = nearest_faces(corners, z, INPUT_SIZE, INPUT_SIZE, perspective=False, solid=further).flatten()
        hit = torch.nonzero(face >= 0)[:, 0]
        found = torch.full((len(face),), math.inf, dtype=torch.float64)
        found[hit] = (barycentric(corners[face[hit]], centres[hit]) * z[face[hit]]).sum(dim=-1)
        return face, found

    face, first = layer(torch.full((len(centres),), -math.inf, dtype=torch.float64))
    _, second = layer(first)
    mask = face >= 0
    thickness = torch.where(mask & second.isfinite(), second - first, 0.0)
    angle = normal[face.clamp_min(0), 2].abs().clamp(0, 1).acos().rad2deg() * mask
    shape = (INPUT_SIZE, INPUT_SIZE)
    return FrontView(mask.reshape(shape), thickness.float().reshape(shape), angle.reshape(shape))


def count_solids(mesh: trimesh.Trimesh) -> int:
    """Number of connected parts of a mesh's solid, on 128 voxels along its longest side; corners connect."""
    low, high = mesh.bounds
    solid = solid_voxels(mesh, low, high, float((high - low).max()) / _VOXELS)
    return int(ndimage.label(solid, structure=np.ones((3, 3, 3)))[1])


def shape_figures(mesh: trimesh.Trimesh, ref: trimesh.Trimesh, ref_front: FrontView) -> dict[str, float]:
    """The figures of one mesh.

    Args:
        mesh: in the unit frame of the reference.
        ref: the reference, likewise.
        ref_front: its front view.

    Returns:
        input_iou: of the outlines that the input view's camera sees, in [0,1].
        thin_share: share of that camera's rays with less than THIN of solid behind the nearest surface.
        side_width: the mesh's width as view 4 sees it (a quarter turn on), over the reference's.
        rim_angle_deg: mean angle between normal and view axis 2 px inside the outline; nan without such pixels. It
            is near 0 for a cut edge, and large for a surface that curves away.
        parts: see `count_solids`.
    """
    front = front_view(mesh)
    inside = front.mask.numpy()
    distance = ndimage.distance_transform_edt(inside)
    rim = front.angle_deg.numpy()[(distance >= _RIM_PX[0]) & (distance < _RIM_PX[1])]
    return {
        "input_iou": float(mask_iou(front.mask.float()[None], ref_front.mask.float()[None])),
        "thin_share": float((front.thickness.numpy()[inside] < THIN).mean()) if inside.any() else 1.0,
        "side_width": float(np.ptp(mesh.bounds[:, 2]) / max(float(np.ptp(ref.bounds[:, 2])), 1e-6)),
        "rim_angle_deg": float(rim.mean()) if len(rim) else math.nan,
        "parts": float(count_solids(mesh)),
    }
