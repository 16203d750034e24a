"""Views as latents for training, encoded when first needed and kept in memory."""

import torch
from torch import Tensor

from nova3d.models.autoencoder import VideoAutoencoder, encode_moments
from nova3d.views import ViewSet


class LatentEncoder:
    """Moments of an object's views. RGB moments do not depend on which view is the input view, up to order, and are
    cached as float16 by object; normal maps do and are encoded every time."""

    def __init__(self, vae: VideoAutoencoder, device: torch.device | str, cache: bool = True):
        self.vae, self.device = vae, device
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def moments(self, row: int, input_view: int, views: ViewSet) -> Tensor:
        """[t,v,8,h,w] float32 moments of object `row` whose `views` start at `input_view`."""
        rgb = self._cache.get(row) if self._cache is not None else None
        if rgb is None:
            encoded = self._encode(views.rgb * 2 - 1)
            rgb = encoded.roll(input_view, dims=0).half().cpu()  # back to rendered order
            if self._cache is not None:
                self._cache[row] = rgb
        return torch.stack([rgb.roll(-input_view, dims=0).float().to(self.device), self._encode(views.normals)])

    def _encode(self, frames: Tensor) -> Tensor:
        return encode_moments(self.vae, frames.permute(0, 3, 1, 2).to(self.device))
