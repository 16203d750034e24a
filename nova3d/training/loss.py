"""The training loss: EDM's, in the network's output space (paper appendix VI, corrected as in nova3d.diffusion.edm)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nova3d.diffusion import edm
from nova3d.models.autoencoder import VideoAutoencoder, encode_mode
from nova3d.models.conditioning import Conditioning, embed_picture, unet_input
from nova3d.models.unet import NovaUNet
from nova3d.tasks import TASKS, Task
from nova3d.training.data import Batch

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection


class TrainingModule(nn.Module):
    """The UNet and, where it is trained, the image encoder. Its forward is the loss.

    Wrappers (DDP, FSDP) hook a module's forward, so all that is trained takes part in this one. Frozen networks are
    held outside the module tree: no wrapper, optimizer, average or checkpoint touches them.

    Args:
        unet: trained.
        image_encoder: trained where any of its parameters requires a gradient; None where the model has none.
        vae: frozen.
    """

    def __init__(self, unet: NovaUNet, image_encoder: "CLIPVisionModelWithProjection | None", vae: VideoAutoencoder):
        super().__init__()
        self.unet = unet
        trained = image_encoder is not None and any(p.requires_grad for p in image_encoder.parameters())
        self.trained_encoder = image_encoder if trained else None
        self._frozen_vae = (vae,)  # a module inside a tuple is outside the module tree
        self._frozen_encoder = (None if trained else image_encoder,)

    @property
    def vae(self) -> VideoAutoencoder:
        """The autoencoder."""
        return self._frozen_vae[0]

    @property
    def image_encoder(self) -> "CLIPVisionModelWithProjection | None":
        """The image encoder, trained or frozen; None where the model has none."""
        return self.trained_encoder if self.trained_encoder is not None else self._frozen_encoder[0]

    def move_frozen(self, device: torch.device, bf16: bool, encoder_needed: bool) -> None:
        """Move the frozen networks to a device, the autoencoder in float32.

        Args:
            device: of the run.
            bf16: a frozen image encoder goes in bfloat16 instead of float32.
            encoder_needed: False leaves a frozen image encoder where it is: its embeddings are cached.
        """
        self.vae.to(device)
        if encoder_needed and (encoder := self._frozen_encoder[0]) is not None:
            encoder.to(device, torch.bfloat16 if bf16 else torch.float32)

    def forward(self, batch: Batch, tasks: Sequence[Task] = TASKS) -> Tensor:
        """The mean losses of a batch.

        Args:
            batch: b objects.
            tasks: the labels that the UNet is given for the t sequences.

        Returns:
            float32 [b,t].
        """
        cond = self._condition(batch).dropped(batch.drop_embeds, batch.drop_latents)
        sigma = edm.per_object(batch.sigma, batch.x0)
        _, _, c_in, c_noise = edm.precondition(batch.sigma)
        noisy = unet_input(batch.x0 + sigma * batch.noise, edm.per_object(c_in, batch.x0), cond)
        output = self.unet(noisy, c_noise, cond.image_embeds, cond.noise_aug, batch.cameras, tuple(tasks)).sample
        return edm.loss(output.float(), batch.x0, batch.noise, sigma).mean(dim=(2, 3, 4, 5))

    def _condition(self, batch: Batch) -> Conditioning:
        if batch.embeds is not None and self.trained_encoder is None:
            embeds = batch.embeds
        else:
            embeds = embed_picture(self.image_encoder, batch.pictures, int(self.unet.config.cross_attention_dim))
        if batch.condition is not None:  # `inflated`: encoded without pixel noise, so noise_aug is 0
            return Conditioning(embeds, batch.condition, torch.zeros_like(batch.noise_aug))
        noised = batch.pictures + batch.noise_aug[:, None, None, None] * batch.picture_noise
        return Conditioning(embeds, encode_mode(self.vae, noised), batch.noise_aug)
