"""The alignment arm of docs/how-to/extending.md, in a copy of the package that has it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nova3d.models import NovaUNet
from nova3d.models.alignment import ALIGNMENTS


def test_the_example_of_an_arm_starts_as_the_network_without_it_and_learns(
    stock: nn.Module, inputs: dict[str, Tensor], make_unet: Callable[..., NovaUNet]
) -> None:
    unet, plain = (make_unet(alignment=name, id_mode="constant", norm_groups=32) for name in ("gated", "none"))
    for network in (unet, plain):
        missing, _ = network.load_state_dict(stock.state_dict(), strict=False)
        assert sorted(missing) == sorted(network.new_parameter_names)
    output = unet(**inputs).sample
    with torch.no_grad():
        torch.testing.assert_close(output, plain(**inputs).sample, rtol=0, atol=0)
    output.square().mean().backward()
    gated = ALIGNMENTS["gated"].spatial
    units = [module for module in unet.modules() if gated and isinstance(module, gated)]
    assert {unit.fold for unit in units} == {"spatial", "temporal"}
    assert all(unit.gate.grad.abs().sum() > 0 for unit in units)


def test_the_example_of_an_arm_loads_svd_s_weights(svd: tuple[nn.Module, Path]) -> None:
    unet, report = NovaUNet.from_svd(svd[1], alignment="gated")
    gates = [name for name in report.new if name.endswith(".gate")]
    assert gates and all((unet.get_parameter(name) == 0).all() for name in gates)
