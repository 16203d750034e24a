"""The denoiser D(x, sigma): NovaUNet under a condition, preconditioned as EDM does and guided."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nova3d.diffusion import edm
from nova3d.models.conditioning import Conditioning, unet_input
from nova3d.models.unet import NovaUNet
from nova3d.tasks import TASKS


@dataclass(frozen=True)
class Denoiser:
    """NovaUNet as the denoiser D(x, sigma) of b objects, with classifier-free guidance of its raw output.

    Attributes:
        unet: the network F.
        cond: the condition of b objects.
        cameras: [v,2], azimuth relative to the input view, and elevation, in radians.
        scales: [v], the guidance scale of each view. Where all are 1 the unconditional half is not computed.
    """

    unet: NovaUNet
    cond: Conditioning
    cameras: Tensor
    scales: Tensor

    @cached_property
    def guided(self) -> bool:
        """Whether classifier-free guidance changes any view."""
        return bool((self.scales != 1).any())

    def __call__(self, x: Tensor, sigma: Tensor, batch: int | None = None, sequential: bool = False) -> Tensor:
        """The estimate of x0. `batch` and `sequential` change it by no more than rounding.

        The two tasks of an object always go together: they attend to each other.

        Args:
            x: float [b,t,v,4,h,w], noisy latents.
            sigma: float, scalar, the noise level of all of them.
            batch: objects that go through the network together, None for all.
            sequential: run the conditional and the unconditional half one after the other.

        Returns:
            float32 [b,t,v,4,h,w].
        """
        size = batch or len(x)
        outputs = [
            self._output(x[i : i + size], sigma, self.cond[i : i + size], sequential) for i in range(0, len(x), size)
        ]
        return edm.denoised(torch.cat(outputs), x, sigma)

    def _output(self, x: Tensor, sigma: Tensor, cond: Conditioning, sequential: bool) -> Tensor:
        if not self.guided:
            return self._network(x, sigma, cond)
        halves = [cond, cond.unconditional()]
        if sequential:
            conditional, unconditional = (self._network(x, sigma, half) for half in halves)
        else:
            together = self._network(x.repeat(2, *[1] * (x.dim() - 1)), sigma, Conditioning.cat(halves))
            conditional, unconditional = together.chunk(2)
        return edm.guide(conditional, unconditional, self.scales)

    def _network(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        # The levels stay float32: in half precision c_noise of neighbouring steps would be the same number.
        _, _, c_in, c_noise = edm.precondition(sigma.expand(len(x)))
        noisy = unet_input(x, edm.per_object(c_in, x), cond).to(self.unet.dtype)
        cameras = self.cameras.expand(len(x), -1, -1)
        output = self.unet(noisy, c_noise, cond.image_embeds, cond.noise_aug, cameras, TASKS)
        return output.sample.float()
