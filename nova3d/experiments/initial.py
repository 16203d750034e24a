"""The weights that all arms of a seed start from."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from nova3d.data.multiview import MultiViewDataset
from nova3d.models import NovaUNet
from nova3d.models.alignment import AlignmentInit
from nova3d.models.blocks import SpatialBlock, TemporalBlock
from nova3d.training.config import TrainConfig
from nova3d.training.module import build

_ALIGNMENT = ".alignment."


def write_start(config: TrainConfig, folder: Path) -> TrainConfig:
    """The same training started from weights in `folder`, which are written where they are not there yet.

    Every weight that the arms of one seed have in common is the same in all of them, whether the config starts from
    SVD, from a pretrained UNet or from random weights; alignment units start by `config.model.alignment_init`.
    """
    parts = {"unet": folder / "unet", "vae": folder / "vae", "image_encoder": folder / "image_encoder"}
    if not (folder / "complete").is_file():
        _write(config, parts)
        (folder / "complete").touch()
    # Read from files, a network draws nothing: the image encoder, where it is random, is then drawn alike as well.
    started = replace(config, svd="", svd_variant="", unet=str(parts["unet"]))
    if config.svd:
        started = replace(started, vae=str(parts["vae"]), image_encoder=str(parts["image_encoder"]))
    return started


def _write(config: TrainConfig, parts: dict[str, Path]) -> None:
    size = MultiViewDataset(config.data.shards).reader.cameras.width
    torch.manual_seed(config.seed)
    bare = replace(config, model=replace(config.model, alignment="none"))
    module, _ = build(bare, size // 8)
    init = cast(AlignmentInit, config.model.alignment_init)
    arm_of(module.unet, config.model.alignment, init, config.seed).save_pretrained(parts["unet"])
    if config.svd:
        module.vae.save_pretrained(parts["vae"])
        module.image_encoder.save_pretrained(parts["image_encoder"])


def arm_of(base: NovaUNet, alignment: str, init: AlignmentInit, seed: int) -> NovaUNet:
    """`base` with fresh alignment units of another arm; its own, if it has any, are left behind."""
    settings = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arm = NovaUNet(**(settings | {"alignment": alignment, "alignment_init": init}))
    shared = {name: value for name, value in base.state_dict().items() if _ALIGNMENT not in name}
    missing, unexpected = arm.load_state_dict(shared, strict=False)
    assert not unexpected and all(_ALIGNMENT in name for name in missing)
    for block in arm.modules():
        if isinstance(block, SpatialBlock | TemporalBlock) and block.alignment is not None:
            block.alignment.initialise(init, block.norm1, block.attn1)
    return arm
