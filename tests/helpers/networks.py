"""Tiny random networks that the tests of several rooms build."""

import torch
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
