"""LoRA through peft, alone and under DistributedDataParallel."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nova3d.models import NovaUNet

pytest.importorskip("peft")


def with_lora(unet: NovaUNet) -> NovaUNet:
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=unet.lora_target_modules))
    return unet.train()


def test_every_adapter_gets_a_gradient_and_the_base_stays(make_unet: Any, inputs: dict[str, Tensor]) -> None:
    unet = with_lora(make_unet(alignment="gta"))
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    unet(**inputs).sample.square().mean().backward()
    assert all(p.grad is not None for p in trained.values())


def three_steps(rank: int, address: Path, unet: NovaUNet, inputs: dict[str, Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        wrapped = DistributedDataParallel(with_lora(unet))
        optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):  # a parameter without a gradient stops the second step
            optimizer.zero_grad()
            wrapped(**inputs).sample.square().mean().backward()
            optimizer.step()
        assert any(p.abs().max() > 0 for name, p in wrapped.named_parameters() if "lora_B" in name)
    finally:
        dist.destroy_process_group()


def test_it_trains_under_ddp(make_unet: Any, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    unet = make_unet(alignment="gta")
    torch.multiprocessing.spawn(three_steps, args=(tmp_path / "store", unet, inputs), nprocs=2)
