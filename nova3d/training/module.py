"""What is trained, as one module: its forward is the loss, so that wrappers (DDP, FSDP) see every parameter."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.diffusion import edm
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.models.conditioning import condition, unet_input
from nova3d.models.unet import NovaUNet
from nova3d.training.batches import Batch
from nova3d.training.config import ImageEncoderConfig, TrainConfig, UNetConfig


class Denoising(nn.Module):
    """UNet and, where it is trained from scratch, image encoder. `vae` is held outside the module tree: frozen."""

    def __init__(self, unet: NovaUNet, image_encoder: CLIPVisionModelWithProjection, vae: VideoAutoencoder):
        super().__init__()
        self.unet = unet
        self.image_encoder = image_encoder
        self._frozen = (vae,)

    def forward(self, batch: Batch) -> Tensor:
        """[b,t] mean losses of a batch: F-space EDM loss (paper appendix VI, corrected as in nova3d.diffusion.edm)."""
        cond = condition(self.image_encoder, self._frozen[0], batch.pictures, batch.noise_aug, batch.picture_noise)
        cond = cond.dropped(batch.drop_embeds, batch.drop_latents)
        sigma = edm.per_object(batch.sigma, batch.x0)
        noisy = unet_input(batch.x0 + sigma * batch.noise, batch.sigma, cond)
        c_noise = batch.sigma.log() / 4
        output = self.unet(noisy, c_noise, cond.image_embeds, cond.noise_aug, batch.cameras)
        return edm.loss(output.float(), batch.x0, batch.noise, sigma).mean(dim=(2, 3, 4, 5))


def build(config: TrainConfig, size: int, latent_size: int) -> Denoising:
    """The module of a run: pretrained parts where folders are given, random ones elsewhere."""
    if not config.vae:
        raise InputError("vae= must name a trained autoencoder folder; scripts/train_autoencoder.py makes one")
    vae = _pretrained(VideoAutoencoder, config.vae).requires_grad_(False).eval()
    unet = _pretrained(NovaUNet, config.unet) if config.unet else build_unet(config.model, latent_size)
    if config.image_encoder:
        encoder = _pretrained(CLIPVisionModelWithProjection, config.image_encoder).requires_grad_(False).eval()
    else:
        encoder = build_image_encoder(config.encoder, config.model.cross_attention_dim)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return Denoising(unet, encoder, vae)


def build_unet(config: UNetConfig, latent_size: int) -> NovaUNet:
    """A randomly initialised NovaUNet."""
    return NovaUNet(sample_size=latent_size, **vars(config))


def build_image_encoder(config: ImageEncoderConfig, projection_dim: int) -> CLIPVisionModelWithProjection:
    """A randomly initialised CLIP image encoder of the class SVD uses."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**vars(config), projection_dim=projection_dim))


def _pretrained(cls: Any, folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"'{folder}' is not a model folder: it has no config.json")
    try:
        return cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"weights in '{folder}' cannot be loaded: {str(error).splitlines()[0]}") from error
