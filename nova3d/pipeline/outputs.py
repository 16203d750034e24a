"""What goes into and comes out of Nova3DPipeline: pictures, seeds, views and their forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.metrics import task_iou
from nova3d.tasks import Task
from nova3d.views import ViewSet

Picture = Tensor | Image.Image
Output = Literal["views", "pil", "np", "pt", "latent"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Nova3DOutput(BaseOutput):
    """One value for one picture, a list of values for a list of pictures; None for what was not asked for.

    views (output "views"): a ViewSet.
    rgb, normals ("pil", "np", "pt"): the same 16 views as pictures. "pil": a list of v RGB pictures; "np": float32
        [v,h,w,3] in [0,1]; "pt": float32 [v,3,h,w] in [0,1]. Colours are on white; normals are (n + 1) / 2 of unit
        vectors in the input view's frame, background mid-grey.
    task_iou (all but "latent"): float32 [v], how far colours and normals show one outline (`nova3d.metrics.task_iou`),
        measured before the colours are cut out by the normals.
    latents ("latent"): float32 [t,v,4,h,w], scaled as the UNet sees them, tasks in the order of nova3d.tasks.
    """

    views: ViewSet | list[ViewSet] | None = None
    rgb: Any = None
    normals: Any = None
    task_iou: Tensor | list[Tensor] | None = None
    latents: Tensor | list[Tensor] | None = None


def check_output(output: str) -> None:
    """Raise InputError for an unknown form of output."""
    if output not in get_args(Output):
        raise InputError(f"output '{output}' is not one of {', '.join(get_args(Output))}")


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """The dtype of a name of DTYPES. Raises InputError for another."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise InputError(f"dtype '{name}' is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def picture_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per picture: seed + i, or the given ones. Raises InputError where their number is another."""
    if not isinstance(seed, Sequence):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise InputError(f"{len(seed)} seeds were given for {count} pictures; give one seed, or one per picture")
    return [int(s) for s in seed]


def frame_picture(picture: Picture, index: int, size: int, framed: bool) -> Tensor:
    """[size,size,4] float in [0,1] of an RGBA picture, framed as the default camera frames a unit object; only resized
    where it is `framed` already. Raises InputError, naming the picture by `index`, where it has no object or is not
    RGBA."""
    if isinstance(picture, Image.Image):
        picture = torch.from_numpy(np.asarray(picture.convert("RGBA")).copy()).float() / 255
    if picture.dim() != 3 or picture.shape[-1] != 4:
        raise InputError(f"picture {index} must be RGBA [h,w,4], got shape {tuple(picture.shape)}")
    picture = picture.detach().float().cpu()
    images.check_object(picture[..., 3], f"picture {index}")
    if not framed:
        return images.frame_object(picture, size)
    if picture.shape[0] != picture.shape[1]:
        raise InputError(f"picture {index} is said to be framed but is not square: {tuple(picture.shape[:2])}")
    return images.resize(picture, size)


def to_views(decoded: Tensor, cameras: Cameras, kept: Tensor | None = None) -> ViewSet:
    """Decoded pictures [t,v,3,h,w] in [-1,1] to a ViewSet; the mask is the normal vectors' length.

    kept: the framed picture [h,w,4] that view 0 is to show instead of its own colours and mask.
    """
    rgb = (decoded[Task.RGB].permute(0, 2, 3, 1) + 1) / 2
    normal, mask = normals.decode((decoded[Task.NORMAL].permute(0, 2, 3, 1) + 1) / 2)
    mask = ((mask - 0.3) / 0.4).clamp(0, 1)  # decoded lengths are soft over more than the outline: sharpen
    if kept is not None:
        rgb[0], mask[0] = images.composite(kept), kept[..., 3]
    rgb = rgb * (mask > 0)[..., None] + (mask <= 0)[..., None].float()
    return ViewSet(rgb, normal * (mask > 0)[..., None], mask, cameras)


def outlines(decoded: Tensor) -> Tensor:
    """[v] `metrics.task_iou` of decoded pictures [t,v,3,h,w] in [-1,1]."""
    rgb, vectors = (decoded[task].permute(0, 2, 3, 1) for task in (Task.RGB, Task.NORMAL))
    return task_iou((rgb + 1) / 2, vectors)


def as_output(views: list[ViewSet], output: str, single: bool) -> Nova3DOutput:
    """Views in the form asked for; a single value where there was a single picture."""
    if output == "views":
        return Nova3DOutput(views=views[0] if single else views)
    rgb = [_pictures(v.rgb, output) for v in views]
    normal = [_pictures((v.normals + 1) / 2, output) for v in views]
    return Nova3DOutput(rgb=rgb[0] if single else rgb, normals=normal[0] if single else normal)


def _pictures(frames: Tensor, output: str) -> Any:
    """[v,h,w,3] in [0,1] as a list of PIL pictures, a numpy array, or a tensor with channels first."""
    if output == "pil":
        return [Image.fromarray(frame) for frame in images.to_uint8(frames)]
    return frames.numpy() if output == "np" else frames.permute(0, 3, 1, 2).contiguous()
