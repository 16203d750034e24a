"""Gradient checkpointing changes memory, never gradients."""

import torch

from nova3d.models import NovaUNet


def test_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    unet = NovaUNet(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        num_attention_heads=(1, 1),
        layers_per_block=1,
        cross_attention_dim=16,
        addition_time_embed_dim=16,
        norm_groups=8,
    ).train()
    call = (
        torch.randn(1, 2, 3, 8, 8, 8),
        torch.zeros(1),
        torch.randn(1, 1, 16),
        torch.full((1,), 0.02),
        torch.rand(1, 3, 2),
    )

    def gradients() -> dict[str, torch.Tensor]:
        unet.zero_grad(set_to_none=True)
        unet(*call).square().mean().backward()
        return {n: p.grad.clone() for n, p in unet.named_parameters() if p.grad is not None}

    plain = gradients()
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)
