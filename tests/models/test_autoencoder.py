"""The autoencoder: SVD's function at 32 groups, moments, and decoding video by video."""

import pytest
import torch

from nova3d.models.autoencoder import VideoAutoencoder, decode, encode_mode, encode_moments, sample_moments
from tests.helpers.networks import autoencoder_sizes, tiny_autoencoder


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    model = tiny_autoencoder(sample_size=16, norm_groups=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def test_32_groups_compute_svd_s_function(vae: VideoAutoencoder) -> None:
    from diffusers import AutoencoderKLTemporalDecoder

    stock = AutoencoderKLTemporalDecoder(**autoencoder_sizes(), sample_size=16)
    stock.load_state_dict(vae.state_dict())  # strict: the same names
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    ours, theirs = vae.encode(x).latent_dist, stock.encode(x).latent_dist
    torch.testing.assert_close(ours.parameters, theirs.parameters, atol=1e-5, rtol=1e-4)
    z = theirs.mode()
    torch.testing.assert_close(
        vae.decode(z, num_frames=3).sample, stock.decode(z, num_frames=3).sample, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(encode_moments(vae, x, chunk=2), theirs.parameters, atol=1e-5, rtol=1e-4)


def test_fewer_groups_are_kept_by_saving(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("vae")
    tiny_autoencoder(1, norm_groups=4).save_pretrained(folder)
    loaded = VideoAutoencoder.from_pretrained(folder)
    assert {m.num_groups for m in loaded.modules() if isinstance(m, torch.nn.GroupNorm)} == {4}


def test_sampled_latents_have_the_posterior_s_moments_scaled() -> None:
    moments = torch.cat([torch.full((2, 4, 1, 1), 3.0), torch.full((2, 4, 1, 1), 2 * torch.tensor(0.5).log())], dim=1)
    assert torch.equal(sample_moments(moments, torch.zeros(2, 4, 1, 1), 0.2), torch.full((2, 4, 1, 1), 3 * 0.2))
    torch.testing.assert_close(
        sample_moments(moments, torch.ones(2, 4, 1, 1), 0.2), torch.full((2, 4, 1, 1), 3.5 * 0.2)
    )


@torch.no_grad()
@pytest.mark.parametrize(("views", "rows"), [(0, 0), (2, 0), (1, 3), (16, 8)])
def test_decoding_never_mixes_videos(vae: VideoAutoencoder, views: int, rows: int) -> None:
    latents = torch.randn(2, 2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    base = decode(vae, latents, views, rows)
    assert base.shape == (2, 2, 3, 3, 8, 8) and base.abs().max() <= 1
    moved = latents.clone()
    moved[0, 1] += 1
    changed = (decode(vae, moved, views, rows) - base).abs().amax(dim=(2, 3, 4, 5)) > 1e-6
    assert changed.tolist() == [[False, True], [False, False]]
    alone = decode(vae, latents[1:, :1], views, rows)
    torch.testing.assert_close(alone[0, 0], base[1, 0], atol=1e-5, rtol=1e-4)
    scaled = vae.decode(latents[0, 0] / vae.config.scaling_factor, num_frames=3).sample.clamp(-1, 1)
    torch.testing.assert_close(base[0, 0], scaled, atol=1e-5, rtol=1e-4)


def half(force_upcast: bool) -> VideoAutoencoder:
    torch.manual_seed(0)
    return tiny_autoencoder(norm_groups=32, force_upcast=force_upcast).half()


def test_a_float16_encoder_works_in_float32_where_the_config_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = half(force_upcast=True)
    exact = model.float().encode(frames).latent_dist.mode()
    model.half()
    mode = encode_mode(model, frames)
    torch.testing.assert_close(mode, exact.detach(), atol=1e-6, rtol=1e-6)
    assert {p.dtype for p in model.parameters()} == {torch.float16}  # and back
    seen: list[torch.dtype] = []
    plain = half(force_upcast=False)
    plain.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    assert encode_mode(plain, frames).dtype == torch.float32 and seen == [torch.float16]

    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("in the encoder")

    monkeypatch.setattr(model, "encode", fail)
    with pytest.raises(RuntimeError, match="in the encoder"):
        encode_mode(model, frames)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
