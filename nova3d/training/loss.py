"""What is trained, as one module: its forward is the loss, so that wrappers (DDP, FSDP) see every parameter."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.diffusion import edm
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_mode
from nova3d.models.conditioning import Conditioning, embed_picture, unet_input
from nova3d.models.svd import LoadReport, load_svd_autoencoder, load_svd_image_encoder, load_svd_parts
from nova3d.models.unet import NovaUNet
from nova3d.training.config import NO_ENCODER, ImageEncoderConfig, TrainConfig, UNetConfig
from nova3d.training.data import Batch

log = logging.getLogger(__name__)


class Denoising(nn.Module):
    """The UNet and, where it is trained, the image encoder.

    Frozen networks are held outside the module tree: no wrapper, optimizer, average or checkpoint touches them.
    """

    def __init__(self, unet: NovaUNet, image_encoder: CLIPVisionModelWithProjection | None, vae: VideoAutoencoder):
        super().__init__()
        self.unet = unet
        trained = image_encoder is not None and any(p.requires_grad for p in image_encoder.parameters())
        self.trained_encoder = image_encoder if trained else None
        self._frozen: tuple[nn.Module | None, ...] = (vae,) if trained else (vae, image_encoder)

    @property
    def vae(self) -> VideoAutoencoder:
        return self._frozen[0]  # type: ignore[return-value]

    @property
    def image_encoder(self) -> CLIPVisionModelWithProjection | None:
        """None where the model has none."""
        return self.trained_encoder if self.trained_encoder is not None else self._frozen[1]

    def place_frozen(self, device: torch.device, bf16: bool, clip_needed: bool) -> None:
        """Frozen networks to the device: the autoencoder in float32, a frozen CLIP in bfloat16 where `bf16`. One that
        is not needed, because its embeddings are cached, stays where it is."""
        self.vae.to(device)
        if self.trained_encoder is None and self.image_encoder is not None and clip_needed:
            self.image_encoder.to(device, torch.bfloat16 if bf16 else torch.float32)

    def forward(self, batch: Batch) -> Tensor:
        """[b,t] mean losses of a batch: F-space EDM loss (paper appendix VI, corrected as in nova3d.diffusion.edm)."""
        cond = self._condition(batch).dropped(batch.drop_embeds, batch.drop_latents)
        sigma = edm.per_object(batch.sigma, batch.x0)
        noisy = unet_input(batch.x0 + sigma * batch.noise, batch.sigma, cond)
        _, _, _, c_noise = edm.precondition(batch.sigma)
        output = self.unet(noisy, c_noise, cond.image_embeds, cond.noise_aug, batch.cameras).sample
        return edm.loss(output.float(), batch.x0, batch.noise, sigma).mean(dim=(2, 3, 4, 5))

    def _condition(self, batch: Batch) -> Conditioning:
        if batch.embeds is not None and self.trained_encoder is None:
            embeds = batch.embeds
        else:
            embeds = embed_picture(self.image_encoder, batch.pictures, int(self.unet.config.cross_attention_dim))
        if batch.condition is not None:  # `inflated`: encoded without pixel noise, and the UNet is told so
            return Conditioning(embeds, batch.condition, torch.zeros_like(batch.noise_aug))
        noised = batch.pictures + batch.noise_aug[:, None, None, None] * batch.picture_noise
        return Conditioning(embeds, encode_mode(self.vae, noised), batch.noise_aug)


def build(config: TrainConfig, latent_size: int) -> tuple[Denoising, LoadReport | None]:
    """The module of a run, and the account of SVD's keys where it starts from SVD: pretrained parts where the config
    names them, random ones elsewhere."""
    report = None
    if config.svd:
        arms = {"alignment": config.model.alignment, "alignment_init": config.model.alignment_init}
        unet, vae, encoder, report = load_svd_parts(NovaUNet, config.svd, config.svd_variant, torch.float32, **arms)
        log.info("%s", report)
    elif not config.vae:
        raise InputError(
            "vae= must name a trained autoencoder folder (scripts/train_autoencoder.py makes one), or svd= "
            "Stable Video Diffusion"
        )
    else:
        vae = pretrained(VideoAutoencoder, config.vae)
        unet = pretrained(NovaUNet, config.unet) if config.unet else build_unet(config.model, latent_size)
        encoder = _image_encoder(config)
    vae.requires_grad_(False).eval()
    if encoder is not None:
        encoder_trained = not config.svd and (config.train_image_encoder or not config.image_encoder)
        encoder.requires_grad_(encoder_trained).train(encoder_trained)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return Denoising(unet.train(), encoder, vae), report


def frozen_networks(config: TrainConfig) -> tuple[VideoAutoencoder, CLIPVisionModelWithProjection | None]:
    """The autoencoder, and the image encoder where it is not trained: what a latent cache is made with."""
    if config.svd:
        vae = load_svd_autoencoder(config.svd, config.svd_variant)
        return vae, load_svd_image_encoder(config.svd, config.svd_variant)
    if not config.vae:
        raise InputError("vae= must name a trained autoencoder folder, or svd= Stable Video Diffusion")
    vae = pretrained(VideoAutoencoder, config.vae).eval()
    if config.image_encoder in ("", NO_ENCODER) or config.train_image_encoder:
        return vae, None
    return vae, pretrained(CLIPVisionModelWithProjection, config.image_encoder).eval()


def build_unet(config: UNetConfig, latent_size: int) -> NovaUNet:
    """A randomly initialised NovaUNet."""
    return NovaUNet(sample_size=latent_size, **vars(config))


def build_image_encoder(config: ImageEncoderConfig, projection_dim: int) -> CLIPVisionModelWithProjection:
    """A randomly initialised CLIP image encoder of the class SVD uses."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**vars(config), projection_dim=projection_dim))


def _image_encoder(config: TrainConfig) -> CLIPVisionModelWithProjection | None:
    if config.image_encoder == NO_ENCODER:
        return None
    if config.image_encoder:
        return pretrained(CLIPVisionModelWithProjection, config.image_encoder)
    return build_image_encoder(config.encoder, config.model.cross_attention_dim)


def pretrained(cls: Any, folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"'{folder}' is not a model folder: it has no config.json")
    try:
        return cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"weights in '{folder}' cannot be loaded: {str(error).splitlines()[0]}") from error
