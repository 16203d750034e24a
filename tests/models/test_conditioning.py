"""What the UNet is told of the input picture: SVD's contract."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nova3d.cameras import preset
from nova3d.diffusion import edm
from nova3d.errors import InputError
from nova3d.models.conditioning import (
    CLIP_MEAN,
    CLIP_STD,
    Conditioning,
    clip_pixels,
    condition,
    condition_inflated,
    inflated_guide,
    unet_input,
)


@pytest.mark.parametrize(("side", "size"), [(96, 32), (50, 32), (20, 32), (32, 32)])
def test_clip_pixels_are_those_of_diffusers_svd_pipeline(side: int, size: int) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    resized = (_resize_with_antialiasing(images, (size, size)) + 1) / 2
    mean, std = torch.tensor(CLIP_MEAN).reshape(3, 1, 1), torch.tensor(CLIP_STD).reshape(3, 1, 1)
    torch.testing.assert_close(clip_pixels(images, size), (resized - mean) / std, atol=1e-4, rtol=1e-4)


def test_clip_statistics_are_transformers_own() -> None:
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert tuple(OPENAI_CLIP_MEAN) == CLIP_MEAN and tuple(OPENAI_CLIP_STD) == CLIP_STD


class Encoder(nn.Module):
    config = SimpleNamespace(image_size=8)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        self.seen.append(pixels)
        return SimpleNamespace(image_embeds=pixels.mean(dim=(2, 3)))


class Vae(nn.Module):
    """Its mode is the picture itself (one more channel), its scaling factor must not be used."""

    config = SimpleNamespace(scaling_factor=0.1, force_upcast=True)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.encoder, self.quant_conv = nn.Identity(), nn.Identity()

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        latent = torch.cat([pixels, pixels[:, :1]], dim=1) * self.weight
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latent))


def test_clip_sees_the_clean_picture_and_the_vae_the_noisy_one_unscaled() -> None:
    rng = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 3, 8, 8, generator=rng), torch.randn(2, 3, 8, 8, generator=rng)
    strength = torch.tensor([0.0, 0.5])
    encoder = Encoder()
    cond = condition(encoder, Vae(), images, strength, noise)
    assert cond.image_embeds.shape == (2, 1, 3)
    torch.testing.assert_close(encoder.seen[0], clip_pixels(images, 8))
    torch.testing.assert_close(cond.latent[0, :3], images[0])
    torch.testing.assert_close(cond.latent[1, :3], images[1] + 0.5 * noise[1])
    assert not cond.latent.requires_grad  # the VAE is frozen
    assert torch.equal(cond.noise_aug, strength)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_are_prepared_in_float32_whatever_the_networks_are(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    images, noise = torch.rand(1, 3, 8, 8, generator=rng), torch.randn(1, 3, 8, 8, generator=rng)
    encoder, vae = Encoder(), Vae()
    encoder.dtype = vae.dtype = dtype  # type: ignore[misc]
    vae.config = SimpleNamespace(force_upcast=False)
    cond = condition(encoder, vae, images, torch.tensor([0.02]), noise)
    assert torch.equal(encoder.seen[0], clip_pixels(images, 8).to(dtype))  # rounded once, at the network's door
    assert torch.equal(cond.latent[:, :3], (images + 0.02 * noise).to(dtype).float())
    assert cond.latent.dtype == torch.float32 and cond.noise_aug.dtype == torch.float32


def test_conditions_are_cut_and_joined() -> None:
    rng = torch.Generator().manual_seed(0)
    cond = Conditioning(torch.randn(3, 1, 5, generator=rng), torch.randn(3, 4, 2, 2, generator=rng), torch.arange(3.0))
    assert len(cond) == 3 and len(cond[1:]) == 2
    joined = Conditioning.cat([cond[:1], cond[1:]])
    for name in ("image_embeds", "latent", "noise_aug"):
        assert torch.equal(getattr(joined, name), getattr(cond, name))
    assert torch.equal(cond[1:].latent, cond.latent[1:])


def test_conditions_are_dropped_at_their_rates() -> None:
    from nova3d.diffusion import NoiseSchedule
    from nova3d.training.config import NoiseConfig
    from nova3d.training.data import Draws, draw

    objects = 3000

    def drawn(**rates: float) -> Draws:  # of latents and pictures of one number: these two are what matters
        return draw(NoiseConfig(**rates), NoiseSchedule(), 0, 0, range(objects), (1, 1, 1, 1, 1), (1, 1, 1))

    draws = drawn(drop_both=0.1, drop_clip=0.05, drop_latent=0.2)
    embeds, latents = draws.drop_embeds, draws.drop_latents
    assert embeds.shape == latents.shape == (objects,)  # one draw per object, for both tasks and all views
    for (clip, latent), rate in {(True, True): 0.1, (True, False): 0.05, (False, True): 0.2}.items():
        found = float(((embeds == clip) & (latents == latent)).float().mean())
        assert abs(found - rate) < 4 * (rate * (1 - rate) / objects) ** 0.5, (clip, latent, found)
    never = drawn(drop_both=0.0, drop_clip=0.0, drop_latent=0.0)
    assert not never.drop_embeds.any() and not never.drop_latents.any()


def test_dropped_conditions_are_zeros_per_object() -> None:
    cond = Conditioning(torch.ones(3, 1, 5), torch.ones(3, 4, 2, 2), torch.full((3,), 0.02))
    dropped = cond.dropped(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
    assert dropped.image_embeds.sum(dim=(1, 2)).tolist() == [0, 5, 5]
    assert dropped.latent.sum(dim=(1, 2, 3)).tolist() == [0, 0, 16]
    assert torch.equal(dropped.noise_aug, cond.noise_aug)
    empty = cond.unconditional()
    assert not empty.image_embeds.any() and not empty.latent.any()


def c_in(sigma: Tensor) -> Tensor:
    return edm.precondition(sigma)[2].reshape(-1, 1, 1, 1, 1, 1)


def test_the_unet_gets_the_scaled_latent_beside_the_repeated_condition() -> None:
    rng = torch.Generator().manual_seed(0)
    noisy, sigma = torch.randn(2, 2, 3, 4, 5, 5, generator=rng), torch.tensor([0.5, 20.0])
    cond = Conditioning(torch.zeros(2, 1, 5), torch.randn(2, 4, 5, 5, generator=rng), torch.zeros(2))
    x = unet_input(noisy, c_in(sigma), cond)
    assert x.shape == (2, 2, 3, 8, 5, 5)
    for b in range(2):
        torch.testing.assert_close(x[b, ..., :4, :, :], noisy[b] / float((sigma[b] ** 2 + 1).sqrt()))
        assert (x[b, ..., 4:, :, :] == cond.latent[b]).all()


def test_latents_of_every_view_and_task_stand_beside_their_own_noisy_latents() -> None:
    rng = torch.Generator().manual_seed(0)
    noisy, latent = torch.randn(2, 2, 3, 4, 2, 2, generator=rng), torch.randn(2, 2, 3, 4, 2, 2, generator=rng)
    cond = Conditioning(torch.ones(2, 1, 5), latent, torch.zeros(2))
    x = unet_input(noisy, c_in(torch.tensor([0.0, 3.0])), cond)
    assert torch.equal(x[:, :, :, 4:], latent)
    torch.testing.assert_close(x[:, :, :, :4], torch.stack([noisy[0], noisy[1] / 10**0.5]))
    dropped = cond.dropped(torch.tensor([False, False]), torch.tensor([False, True]))
    assert torch.equal(dropped.latent[0], latent[0]) and not dropped.latent[1].any()


def test_the_inflated_condition_shows_the_picture_first_and_every_view_its_own_outline() -> None:
    rig = preset("ortho16", 32)
    alpha = torch.zeros(32, 32)
    alpha[8:24, 6:18] = 1
    rgba = torch.cat([torch.full((32, 32, 3), 0.25), alpha[..., None]], dim=-1)
    guide = inflated_guide(rgba, rig)
    assert guide.shape == (2, 16, 4, 32, 32)
    assert torch.equal(guide[:, 0, 3], alpha.expand(2, -1, -1))
    frames = guide[:, :, :3]
    assert torch.equal(frames[0, 0], ((0.25 - 1) * alpha + 1).expand(3, -1, -1) * 2 - 1)
    cond = condition_inflated(None, Vae(), guide[None], width=7)
    assert cond.guide is not None and torch.equal(cond.guide[0], guide)
    assert torch.equal(cond.latent[0, :, :, :3], frames)
    assert cond.image_embeds.shape == (1, 1, 7) and not cond.image_embeds.any() and not cond.noise_aug.any()
    cond = condition_inflated(Encoder(), Vae(), guide[None])
    torch.testing.assert_close(cond.image_embeds[0], clip_pixels(frames[:1, 0], 8).mean(dim=(2, 3)))


def test_the_inflated_condition_is_refused_for_other_cameras() -> None:
    with pytest.raises(InputError, match=r"level orthographic cameras.*: other cameras need the condition 'picture'"):
        inflated_guide(torch.ones(32, 32, 4), preset("persp16", 32))
