"""Training of the alignment arm of docs/how-to/extending.md, in a copy of the package that has it."""

from collections.abc import Callable
from dataclasses import replace

from nova3d.models import NovaUNet
from nova3d.training.config import TrainConfig, UNetConfig
from nova3d.training.trainer import train


def test_one_step_moves_the_gates_from_zero(make_config: Callable[..., TrainConfig], one_level: UNetConfig) -> None:
    result = train(make_config(model=replace(one_level, alignment="gated"), steps=1), "cpu")
    unet = NovaUNet.from_pretrained(result.path / "unet")
    assert result.finished and unet.config.alignment == "gated"
    gates = [parameter for name, parameter in unet.named_parameters() if name.endswith(".gate")]
    assert gates and all(gate.abs().max() > 0 for gate in gates)
