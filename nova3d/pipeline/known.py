"""What is known of the views before they are sampled: the picture, and the background that no object can reach.

The known latents replace the denoiser's estimate at every step (Song et al. 2021, Lugmayr et al. 2022). They are those
of the picture's inflated outline: the autoencoder's norms and attention see whole frames, so the latents of background
depend on the object beside it.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.diffusion import Denoise
from nova3d.hull import dilate
from nova3d.inflate import level_rig
from nova3d.models.conditioning import Conditioning, condition_inflated, inflated_guide
from nova3d.tasks import Task

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder

log = logging.getLogger(__name__)

_DEPTH = 0.5  # world units before and behind the middle: the longest side of an object is 1
_MARGIN = 1  # cells of background between a known cell and the object


@dataclass(frozen=True)
class Known:
    """Latents that are known.

    Attributes:
        latents: float [b,t,v,4,h,w], scaled as the UNet sees them.
        cells: bool [b,t,v,1,h,w], where they are known.
    """

    latents: Tensor
    cells: Tensor

    def replaces(self, denoise: Denoise) -> Denoise:
        """`denoise` with the known latents in place of its estimate."""
        return lambda x, sigma: torch.where(self.cells, self.latents, denoise(x, sigma))


def known_latents(
    pictures: Tensor,
    cameras: Cameras,
    vae: "AutoencoderKLTemporalDecoder",
    conditioning: Conditioning,
    chunk: int | None = None,
) -> Known | None:
    """What is known of the views of b pictures.

    Args:
        pictures: float [b,H,W,4] in [0,1], straight alpha, as the first camera sees the objects.
        cameras: v cameras of H x W pixels.
        vae: encodes the views of the inflated outlines.
        conditioning: of the b objects, on the device of the result. The condition "inflated" has these latents already.
        chunk: views that are encoded together, None for all of a task.

    Returns:
        View 0's RGB latents, and in all views and tasks those of cells that `background_cells` says are background.
        None for cameras that are not a level orthographic rig, which is logged.
    """
    try:
        level_rig(cameras)
    except ValueError:
        log.info("keep_known is left out: the cameras of the views are not level and orthographic")
        return None
    device = conditioning.noise_aug.device
    latents = conditioning.latent
    if latents.dim() == 4:  # the condition "picture"
        guide = conditioning.guide
        if guide is None:
            guide = torch.stack([inflated_guide(picture, cameras) for picture in pictures]).to(device)
        latents = condition_inflated(None, vae, guide, chunk=chunk).latent
    cell = pictures.shape[1] // latents.shape[-2]
    empty = torch.stack([background_cells(picture[..., 3], cameras, cell) for picture in pictures]).to(device)
    cells = torch.stack([empty, empty], dim=1)[:, :, :, None]
    cells[:, Task.RGB, 0] = True
    return Known(latents * vae.config.scaling_factor, cells)


def background_cells(mask: Tensor, cameras: Cameras, cell: int) -> Tensor:
    """Cells that show background in every view set of an object with this outline.

    A point of the object keeps its row in every view. What a row of the outline leaves empty is empty at every depth,
    and the object is no deeper than its longest side.

    Args:
        mask: [H,W] float coverage in [0,1], of view 0.
        cameras: v level orthographic cameras of H x W pixels (`nova3d.inflate.level_rig`).
        cell: pixels of a cell's side.

    Returns:
        bool [v,H/cell,W/cell]. There is a margin of background around each of them.
    """
    azimuths, pixel = level_rig(cameras)
    column = (torch.arange(mask.shape[1]) + 0.5 - mask.shape[1] / 2) * pixel
    azimuth = torch.tensor(azimuths)[:, None, None]
    # [v,to,from]: a point that view 0 shows in the column `from` is in the column `to` at some depth.
    reached = (column[:, None] - column * azimuth.cos()).abs() <= _DEPTH * azimuth.sin().abs() + 1.5 * pixel
    occupied = ((mask > 0).float() @ reached.float().transpose(1, 2) > 0).float()
    return dilate(F.max_pool2d(occupied, cell), _MARGIN) == 0
