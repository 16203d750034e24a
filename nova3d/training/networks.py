"""The networks of a run: read from folders or from SVD where the config names them, random elsewhere."""

import logging
from pathlib import Path
from typing import Any

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports transformers

# ruff: noqa: E402
import torch
from safetensors import SafetensorError
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.errors import InputError, first_line
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.models.svd import LoadReport, load_svd_autoencoder, load_svd_image_encoder, load_svd_parts
from nova3d.models.unet import NovaUNet
from nova3d.pipeline.folder import check_keys
from nova3d.training.config import NO_ENCODER, ImageEncoderConfig, TrainConfig, UNetConfig
from nova3d.training.loss import TrainingModule
from nova3d.utils.hub import only_variant

log = logging.getLogger(__name__)


def build_module(config: TrainConfig, latent_size: int) -> tuple[TrainingModule, LoadReport | None]:
    """The UNet, the autoencoder and the image encoder of a run, in one module.

    Args:
        config: of the run.
        latent_size: side of the latents, for a random UNet's config.

    Returns:
        The module, on the CPU, and the report on SVD's keys where the run starts from SVD.

    Raises:
        InputError: where no autoencoder is named, or a folder cannot be loaded.
    """
    report = None
    if config.svd:
        arm = {"alignment": config.model.alignment, "alignment_init": config.model.alignment_init}
        unet, vae, encoder, report = load_svd_parts(NovaUNet, config.svd, config.svd_variant, torch.float32, **arm)
        log.info("%s", report)
    elif not config.vae:
        raise InputError(
            "vae= must name a trained autoencoder folder (nova3d train-autoencoder makes one), or svd= "
            "Stable Video Diffusion"
        )
    else:
        vae = load_pretrained(VideoAutoencoder, config.vae)
        unet = load_pretrained(NovaUNet, config.unet) if config.unet else build_unet(config.model, latent_size)
        encoder = _image_encoder(config)
    vae.requires_grad_(False).eval()
    if encoder is not None:
        trained = not config.svd and (config.train_image_encoder or not config.image_encoder)
        encoder.requires_grad_(trained).train(trained)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return TrainingModule(unet.train(), encoder, vae), report


def frozen_networks(config: TrainConfig) -> tuple[VideoAutoencoder, CLIPVisionModelWithProjection | None]:
    """The networks that a latent cache is made with.

    Args:
        config: of the run that will read the cache.

    Returns:
        The autoencoder, and the image encoder; None where it is trained or the model has none.

    Raises:
        InputError: where no autoencoder is named, or a folder cannot be loaded.
    """
    if config.svd:
        sources = config.svd, config.svd_variant
        return load_svd_autoencoder(*sources), load_svd_image_encoder(*sources)
    if not config.vae:
        raise InputError("vae= must name a trained autoencoder folder, or svd= Stable Video Diffusion")
    vae = load_pretrained(VideoAutoencoder, config.vae).eval()
    if not config.image_encoder or config.image_encoder == NO_ENCODER or config.train_image_encoder:
        return vae, None
    return vae, load_pretrained(CLIPVisionModelWithProjection, config.image_encoder).eval()


def build_unet(config: UNetConfig, latent_size: int) -> NovaUNet:
    """A randomly initialised NovaUNet."""
    try:
        return NovaUNet(sample_size=latent_size, **vars(config))
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:  # what diffusers raises for sizes
        raise InputError(f"the keys of model.* make no UNet: {first_line(error)}") from error


def build_image_encoder(config: ImageEncoderConfig, projection_dim: int) -> CLIPVisionModelWithProjection:
    """A randomly initialised CLIP image encoder of the class SVD uses."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**vars(config), projection_dim=projection_dim))


def load_pretrained(cls: Any, folder: str) -> Any:
    """A network from its folder, in float32. Where the folder has float16 files only, those are read.

    Args:
        cls: a class of diffusers or transformers.
        folder: what its `save_pretrained` wrote.

    Returns:
        An instance of `cls`.

    Raises:
        InputError: where it is not a model folder, its weights cannot be loaded, or they are not those of its config.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"'{folder}' is not a model folder: it has no config.json")
    try:
        variant = only_variant(folder)
        network = cls.from_pretrained(folder, dtype=torch.float32, variant=variant, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"weights in '{folder}' cannot be loaded: {first_line(error)}") from error
    check_keys(network, Path(folder), folder, strict=cls is not CLIPVisionModelWithProjection)
    return network


def _image_encoder(config: TrainConfig) -> CLIPVisionModelWithProjection | None:
    if config.image_encoder == NO_ENCODER:
        return None
    if config.image_encoder:
        return load_pretrained(CLIPVisionModelWithProjection, config.image_encoder)
    return build_image_encoder(config.encoder, config.model.cross_attention_dim)
