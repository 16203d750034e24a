"""Tiny random networks that the tests of several rooms build."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.models import NovaUNet
from nova3d.models.autoencoder import VideoAutoencoder

TINY_UNET: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "block_out_channels": [32, 64],
    "num_attention_heads": [2, 4],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 32,
}
"""Sizes of a UNet of two levels, one of them without attention, for NovaUNet and diffusers' UNet."""
ONE_LEVEL: dict[str, Any] = {
    "down_block_types": ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"],
    "block_out_channels": [32],
    "num_attention_heads": [2],
}
"""Changes of TINY_UNET to one level, with attention in the middle block alone, for tests that trace or shard it."""
TINY_SVD_UNET = TINY_UNET | {"projection_class_embeddings_input_dim": 96}
"""TINY_UNET for diffusers' UNet, with SVD's three ids."""
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def tiny_unet(**changes: Any) -> NovaUNet:
    """A random UNet of the sizes of TINY_UNET with 8 groups; `changes` replace arguments. torch's generator goes on."""
    return NovaUNet(**(TINY_UNET | {"norm_groups": 8} | changes))


def autoencoder_sizes(levels: int = 2) -> dict[str, Any]:
    """Sizes of an autoencoder of 32 channels that halves the pictures `levels` - 1 times, for ours and diffusers'."""
    kinds, widths = ("DownEncoderBlock2D",) * levels, (32,) * levels
    return {"down_block_types": kinds, "block_out_channels": widths, "layers_per_block": 1}


def tiny_autoencoder(levels: int = 2, **changes: Any) -> VideoAutoencoder:
    """A random autoencoder of `autoencoder_sizes` with 8 groups; `changes` replace arguments."""
    return VideoAutoencoder(**(autoencoder_sizes(levels) | {"norm_groups": 8} | changes))


def tiny_image_encoder(dim: int = 16, seed: int | None = None, **sizes: int) -> CLIPVisionModelWithProjection:
    """A random CLIP image encoder of the sizes of TINY_CLIP in eval mode, whose embeddings have `dim` numbers.

    Without a seed torch's generator goes on.
    """
    if seed is not None:
        torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**(TINY_CLIP | sizes), projection_dim=dim)).eval()


def tiny_svd(folder: Path) -> Path:
    """A tiny SVD: diffusers' own classes, random weights, its folder's layout. Returns the folder."""
    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(**TINY_SVD_UNET).save_pretrained(folder / "unet")
    AutoencoderKLTemporalDecoder(**autoencoder_sizes(4)).save_pretrained(folder / "vae")
    tiny_image_encoder().save_pretrained(folder / "image_encoder")
    return folder
