"""What the pipeline returns: decoded pictures as view sets, PIL pictures, arrays or tensors."""

from dataclasses import dataclass
from typing import Any, Literal

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports diffusers

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from nova3d import images  # noqa: E402
from nova3d.calibration import Calibration  # noqa: E402
from nova3d.cameras import Cameras  # noqa: E402
from nova3d.inflate import inflated_views  # noqa: E402
from nova3d.metrics import task_iou  # noqa: E402
from nova3d.tasks import Task  # noqa: E402
from nova3d.views import ViewSet  # noqa: E402

OutputType = Literal["views", "pil", "np", "pt", "latent"]

# The mask of a decoded view, see `outline_evidence`. Chosen on held-out training objects (docs/results/mini.md).
_NONE, _CERTAIN = 0.05, 0.8
_OUTSIDE, _INSIDE = 1 / 3, 2 / 3  # of the evidence: what is doubtful is cut, not shown as a ghost
_LEAST_NORMAL = 0.1  # a shorter vector says nothing of its direction: the normal is unknown, zero


@dataclass
class Nova3DOutput(BaseOutput):
    """What Nova3DPipeline returns: one entry per picture. Fields that `output_type` does not ask for are None."""

    views: list[ViewSet] | None = None
    """For "views": b view sets of 16 views."""
    rgb: list[list[Image.Image]] | np.ndarray | Tensor | None = None
    """The views' colours on white. "pil": b lists of v pictures; "np": float32 [b,v,h,w,3] in [0,1]; "pt": float32
    [b,v,3,h,w] in [0,1]."""
    normals: list[list[Image.Image]] | np.ndarray | Tensor | None = None
    """The normal maps in the same forms, "np" [b,v,h,w,3] and "pt" [b,v,3,h,w]: (n + 1) / 2 in [0,1] of unit vectors in
    the input view's frame, background mid-grey."""
    task_iou: Tensor | None = None
    """float32 [b,v] in [0,1], for all but "latent": how far colours and normals show one outline
    (`nova3d.metrics.task_iou`), measured before the normals cut out the colours."""
    latents: Tensor | None = None
    """For "latent": float32 [b,t,v,4,h,w], scaled as the UNet sees them, tasks in the order of `nova3d.tasks`."""


def to_views(
    decoded: Tensor,
    cameras: Cameras,
    kept: Tensor | None = None,
    calibration: Calibration | None = None,
    guide: Tensor | None = None,
    share: float = 0.0,
) -> ViewSet:
    """Decoded pictures as a ViewSet.

    Args:
        decoded: float [t,v,3,h,w] in [-1,1].
        cameras: of the v views.
        kept: the framed picture [h,w,4] in [0,1] that view 0 shows instead of its own colours and mask.
        calibration: of the model, for the views to carry. With a kept picture it says how much of the normals of the
            picture's inflated outline is mixed into view 0's.
        guide: [t,v,4,h,w] guide pictures of the condition "inflated" (`nova3d.models.conditioning.inflated_guide`).
        share: in [0,1), the share of the guide pictures in colours, normals and masks; the rest are decoded.

    Returns:
        v views on white.
    """
    rgb = (decoded[Task.RGB].permute(0, 2, 3, 1) + 1) / 2
    vectors = decoded[Task.NORMAL].permute(0, 2, 3, 1)
    evidence = outline_evidence(rgb, vectors)
    if guide is not None and share > 0:
        inflated_rgb, inflated_normals = guide[..., :3, :, :].permute(0, 1, 3, 4, 2).to(rgb)
        rgb = torch.lerp(rgb, (inflated_rgb + 1) / 2, share)
        vectors = torch.lerp(vectors, inflated_normals, share)
        evidence = torch.lerp(evidence, guide[Task.NORMAL, :, 3].to(rgb), share)
    normal = F.normalize(vectors, dim=-1) * (vectors.norm(dim=-1, keepdim=True) >= _LEAST_NORMAL)
    # A network that doubts whether there is an object mixes its colour with white: the colour is what remains of it.
    colour = (1 - (1 - rgb) / evidence.clamp(min=_OUTSIDE)[..., None]).clamp(0, 1)
    mask = ((evidence - _OUTSIDE) / (_INSIDE - _OUTSIDE)).clamp(0, 1)
    rgb = colour * mask[..., None] + 1 - mask[..., None]
    if kept is not None:
        rgb[0], mask[0] = images.composite(kept), kept[..., 3]
    trusted = tuple(kept is not None and view == 0 for view in range(len(mask)))
    if kept is not None and calibration is not None and calibration.inflated_normals > 0:
        inflated = inflated_views(kept, cameras, only=[0]).normals[0]
        normal[0] = F.normalize(torch.lerp(normal[0], inflated, calibration.inflated_normals), dim=-1)
    return ViewSet(rgb, normal * (mask > 0)[..., None], mask, cameras, trusted, calibration)


def outline_evidence(rgb: Tensor, normals: Tensor) -> Tensor:
    """How sure colours and normals are, together, that a pixel shows the object.

    A normal is short where the model doubts, and then alone says too little; a coloured pixel is object all the same.

    Args:
        rgb: [...,h,w,3] in [0,1] on white.
        normals: [...,h,w,3], decoded vectors of length 0 to 1.

    Returns:
        [...,h,w] float in [0,1].
    """
    evidence = normals.norm(dim=-1) + (1 - rgb).amax(dim=-1)
    return ((evidence - _NONE) / (_CERTAIN - _NONE)).clamp(0, 1)


def outline_agreement(decoded: Tensor) -> Tensor:
    """How far the decoded colours and normals show one outline.

    Args:
        decoded: float [t,v,3,h,w] in [-1,1].

    Returns:
        float32 [v] in [0,1], `nova3d.metrics.task_iou`.
    """
    rgb, vectors = (decoded[task].permute(0, 2, 3, 1) for task in (Task.RGB, Task.NORMAL))
    return task_iou((rgb + 1) / 2, vectors)


def postprocess(views: list[ViewSet], output_type: OutputType, task_iou: Tensor) -> Nova3DOutput:
    """Convert view sets to the form that a call asks for.

    Args:
        views: of b pictures.
        output_type: "views", "pil", "np" or "pt".
        task_iou: float32 [b,v] in [0,1].

    Returns:
        The output, with what its fields say for this type.
    """
    if output_type == "views":
        return Nova3DOutput(views=views, task_iou=task_iou)
    rgb, normal = torch.stack([v.rgb for v in views]), torch.stack([(v.normals + 1) / 2 for v in views])
    return Nova3DOutput(rgb=_convert(rgb, output_type), normals=_convert(normal, output_type), task_iou=task_iou)


def _convert(frames: Tensor, output_type: OutputType) -> Any:
    """[b,v,h,w,3] in [0,1] as lists of PIL pictures, a numpy array, or a tensor with channels before rows."""
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in images.to_uint8(views)] for views in frames]
    return frames.numpy() if output_type == "np" else frames.permute(0, 1, 4, 2, 3).contiguous()
