"""How attention is computed: torch's fused kernel, or two batched matrix products where that is faster."""

import logging
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

log = logging.getLogger(__name__)

AttentionBackend = Literal["sdpa", "products"]


def pick_attention(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend for training on a device, by the dtype of the products.

    Measured with a backward pass on a CPU (docs/results/model.md): in bfloat16 two batched products are faster than
    torch's scaled_dot_product_attention at every shape of ours, with the same result up to rounding. In float32 they
    are slower, or equal within 10 %. Without a backward pass the products lose in bfloat16 too at 512 tokens, so the
    choice is made for training alone. GPUs are not measured. There the fused kernel is the usual choice: it does not
    hold the matrix of weights in memory.

    Args:
        device: where the network runs.
        dtype: of the products: the network's own, or autocast's.

    Returns:
        "products" for bfloat16 on a CPU, else "sdpa".
    """
    return "products" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def use_attention(network: nn.Module, backend: AttentionBackend) -> None:
    """Set the backend of every attention of a network, in place, and log it where it changes."""
    processor = AttnProcessor() if backend == "products" else AttnProcessor2_0()
    changed = False
    for module in network.modules():
        if isinstance(module, Attention) and type(module.processor) is not type(processor):
            module.set_processor(processor)
            changed = True
    if changed:
        log.info("attention: %s", "two batched products (bfloat16 on a CPU)" if backend == "products" else "SDPA")
