"""Tiny random networks that the tests of several rooms build."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


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
    UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
    ).save_pretrained(folder / "unet")
    AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 32, 32, 32), layers_per_block=1
    ).save_pretrained(folder / "vae")
    tiny_image_encoder().save_pretrained(folder / "image_encoder")
    return folder
