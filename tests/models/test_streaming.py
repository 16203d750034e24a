"""Decoding in pieces is the decoder's own function, for every size of the pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.models import autoencoder
from nova3d.models.autoencoder import VideoAutoencoder, decode
from nova3d.models.streaming import Normaliser, decode_in_pieces
from tests.helpers.networks import tiny_autoencoder

VIEWS, HEIGHT, WIDTH = 5, 6, 3  # of the latents


def build(shaken: Any, layers: int, groups: int, dtype: torch.dtype = torch.float64) -> VideoAutoencoder:
    torch.manual_seed(0)
    widths = (32, 64)  # residual blocks with and without a shortcut
    model = tiny_autoencoder(block_out_channels=widths, layers_per_block=layers, sample_size=12, norm_groups=groups)
    return shaken(model).eval().to(dtype)


@pytest.fixture(scope="module", params=[(1, 32), (2, 8)], ids=["no-attention", "attention"])
def vae(request: pytest.FixtureRequest, shaken: Any) -> VideoAutoencoder:
    return build(shaken, *request.param)


def latents(views: int = VIEWS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(views, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)


def plain(vae: VideoAutoencoder, z: Tensor) -> Tensor:
    return vae.decode(z, num_frames=len(z)).sample


PIECES = [(0, 0), (0, 5), (1, 0), (1, 1), (2, 3), (3, 2), (4, 12), (9, 40)]  # (views, rows), most divide nothing


@torch.no_grad()
@pytest.mark.parametrize(("views", "rows"), PIECES)
def test_pieces_of_any_size_give_the_plain_decode(vae: VideoAutoencoder, views: int, rows: int) -> None:
    z, given = latents(), latents()
    pieces = decode_in_pieces(vae.decoder, z, views, rows)
    torch.testing.assert_close(pieces, plain(vae, z), atol=1e-11, rtol=0)
    assert torch.equal(z, given)  # temporal layers work in place, but not on the caller's latents


@torch.no_grad()
def test_one_view_is_a_video_too(vae: VideoAutoencoder) -> None:
    z = latents(views=1)
    torch.testing.assert_close(decode_in_pieces(vae.decoder, z, 1, 2), plain(vae, z), atol=1e-11, rtol=0)


@torch.no_grad()
def test_chunks_of_views_are_another_function_and_this_is_not_it(vae: VideoAutoencoder) -> None:
    z = latents()
    chunked = torch.cat([plain(vae, z[:3]), plain(vae, z[3:])])
    assert (decode_in_pieces(vae.decoder, z, views=3) - chunked).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_lower_precision_differs_by_its_rounding(shaken: Any, dtype: torch.dtype, tolerance: float) -> None:
    model = build(shaken, 2, 8, dtype)
    z = latents(dtype=dtype)
    pieces, whole = decode_in_pieces(model.decoder, z, 2, 3), plain(model, z)
    assert pieces.dtype == dtype
    assert (pieces - whole).abs().max() < tolerance * whole.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(("views", "rows"), [(1, 0), (2, 0), (2, 3), (1, 1)])
def test_no_convolution_sees_more_than_a_piece(vae: VideoAutoencoder, views: int, rows: int) -> None:
    seen: list[tuple[str, int, int, int]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            frames, height = (x.shape[2], x.shape[3]) if x.dim() == 5 else (x.shape[0], x.shape[2])
            seen.append((name, x.dim(), frames, height))

        return hook

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in vae.decoder.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and name != "time_conv_out"  # pictures of 3 channels: small
    ]
    decode_in_pieces(vae.decoder, latents(), views, rows)
    for handle in handles:
        handle.remove()
    assert {dims for _, dims, _, _ in seen} == {4, 5}
    for name, dims, frames, height in seen:
        full = HEIGHT * 2  # at the last resolution
        if dims == 4:  # spatial: a group of views, a strip and its neighbours' rows (doubled after upsampling)
            limit = (rows + 2) * 2 if rows else full
            assert frames <= views and height <= limit, name
        else:  # temporal: all views, of as many pixels as a spatial piece
            assert frames == VIEWS and height <= max(1, (rows or full) * views // VIEWS), name


def test_statistics_merged_over_parts_are_those_of_the_whole() -> None:
    rng = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-5)
    norm.weight.data, norm.bias.data = torch.randn(8, generator=rng), torch.randn(8, generator=rng)
    x = 300 + torch.randn(2, 8, 11, 5, generator=rng)  # far from zero: sums of squares would cancel in float32
    truth = nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-5)
    with torch.no_grad():
        merged = Normaliser(norm).measure(x.split([1, 6, 4], dim=2))
        result = torch.cat([merged(part) for part in x.split(3, dim=2)], dim=2)
    assert (result - truth).abs().max() < 2e-3  # x itself is only known to 3e-5 deviations here
    constant = Normaliser(norm).measure([torch.full((1, 8, 3, 3), 7.0)])
    with torch.no_grad():
        torch.testing.assert_close(constant(torch.full((1, 8, 1, 1), 7.0))[0, :, 0, 0], norm.bias, atol=1e-3, rtol=0)


@torch.no_grad()
def test_decode_of_several_videos_takes_the_pieces(shaken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(shaken, 1, 8, torch.float32)
    z = torch.randn(2, 2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = decode(model, z)
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        autoencoder,
        "decode_in_pieces",
        lambda decoder, video, *size: calls.append((len(video), *size[:2])) or decode_in_pieces(decoder, video, *size),
    )
    torch.testing.assert_close(decode(model, z, views=2, rows=3), whole, atol=1e-5, rtol=0)
    assert calls == [(3, 2, 3)] * 4


def test_weights_that_are_not_here_are_refused() -> None:
    with torch.device("meta"):
        model = tiny_autoencoder(1)
    with pytest.raises(InputError, match="model offload"):
        decode_in_pieces(model.decoder, torch.zeros(2, 4, 4, 4), 1)
