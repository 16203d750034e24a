"""The guided decoder: its plain self at the start and without a guide, and the same function in pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nova3d.models.autoencoder import VideoAutoencoder, decode
from tests.helpers.networks import tiny_autoencoder

VIEWS, SIDE = 5, 6


def build(guide_channels: int) -> VideoAutoencoder:
    torch.manual_seed(0)
    return tiny_autoencoder(block_out_channels=(32, 64), sample_size=12, guide_channels=guide_channels).eval()


def inputs(tasks: int = 2) -> tuple[Tensor, Tensor]:
    """Latents [1,t,v,4,h,w] and guides [1,t,v,4,H,W]."""
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(1, tasks, VIEWS, 4, SIDE, SIDE, generator=rng)
    return latents, torch.rand(1, tasks, VIEWS, 4, 2 * SIDE, 2 * SIDE, generator=rng)


@torch.no_grad()
def test_at_its_start_and_without_a_guide_it_is_the_plain_decoder() -> None:
    plain, guided = build(0), build(4)
    guided.load_state_dict(plain.state_dict(), strict=False)
    latents, guide = inputs()
    expected = decode(plain, latents)
    torch.testing.assert_close(decode(guided, latents, guide=guide), expected, atol=1e-6, rtol=0)
    for conv in guided.decoder.guides:
        torch.nn.init.normal_(conv.weight)
    assert torch.equal(decode(guided, latents), expected)
    assert not torch.allclose(decode(guided, latents, guide=guide), expected)


@torch.no_grad()
@pytest.mark.parametrize(("views", "rows"), [(1, 0), (2, 5), (0, 3)])
def test_pieces_of_any_size_give_the_guided_decode(shaken: Any, views: int, rows: int) -> None:
    model = shaken(build(4)).eval().double()
    latents, guide = (part.double() for part in inputs())
    whole = decode(model, latents, guide=guide)
    torch.testing.assert_close(decode(model, latents, views, rows, guide), whole, atol=1e-11, rtol=0)


@torch.no_grad()
def test_the_guide_of_a_task_reaches_that_task_alone(shaken: Any) -> None:
    model = shaken(build(4)).eval()
    latents, guide = inputs()
    changed = guide.clone()
    changed[0, 1, 2] += 1
    moved = (decode(model, latents, guide=changed) - decode(model, latents, guide=guide)).abs().amax(dim=(3, 4, 5))[0]
    assert not moved[0].any() and float(moved[1, 2]) > 1e-3


def test_it_survives_saving(tmp_path: Any, shaken: Any) -> None:
    model = shaken(build(4)).eval()
    model.save_pretrained(tmp_path)
    again = VideoAutoencoder.from_pretrained(tmp_path)
    latents, guide = inputs(1)
    with torch.no_grad():
        assert torch.equal(decode(again, latents, guide=guide), decode(model, latents, guide=guide))
