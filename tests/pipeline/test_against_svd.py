"""Against diffusers' own StableVideoDiffusionPipeline: what it computes for a picture, each of our tasks computes.

Its components are tiny but real, saved to a folder, and read by `from_svd`.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from nova3d import images
from nova3d.diffusion import initial_noise
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.pipeline import PIXEL_NOISE_SEED, pixel_noise_generator
from nova3d.tasks import Task
from tests.helpers.networks import TINY_SVD_UNET, autoencoder_sizes, tiny_image_encoder

SIZE, VIEWS, STEPS, SCALE, SEED, NOISE_AUG = 32, 16, 3, 2.0, 7, 0.1


def scheduler() -> EulerDiscreteScheduler:
    """As SVD ships it."""
    return EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        interpolation_type="linear", timestep_type="continuous", timestep_spacing="leading",
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def svd() -> StableVideoDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(**TINY_SVD_UNET, sample_size=16, num_frames=VIEWS)
    vae = AutoencoderKLTemporalDecoder(**autoencoder_sizes(), sample_size=SIZE)
    with torch.no_grad():
        for model in (unet, vae):
            for parameter in model.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
    pipeline = StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=tiny_image_encoder(image_size=224, patch_size=56),
        unet=unet.eval(),
        scheduler=scheduler(),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(svd: StableVideoDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("svd")
    svd.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Nova3DPipeline:
    pipeline, _ = Nova3DPipeline.from_svd(folder)
    pipeline.register_to_config(size=SIZE)
    return pipeline


@pytest.fixture(scope="module")
def rgba() -> Image.Image:
    """A framed picture, its alpha 0 or 1, so that its white composite is the same in 8 bits and in float."""
    rng = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    alpha = ((x - 15) ** 2 + (y - 17) ** 2 < 100)[..., None].float()
    return Image.fromarray(images.to_uint8(torch.cat([torch.rand(SIZE, SIZE, 3, generator=rng) * alpha, alpha], -1)))


@pytest.fixture(scope="module")
def white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def test_from_svd_has_svd_s_settings_and_an_account(folder: Path) -> None:
    pipeline, report = Nova3DPipeline.from_svd(folder, dtype="bfloat16", alignment="cross_domain")
    config = pipeline.config
    assert (config.size, config.sigma_min, config.sigma_max, config.rho, config.steps) == (256, 0.002, 700.0, 7.0, 25)
    assert pipeline.unet.config.alignment == "cross_domain" and len(report.new) > 0 and len(report.copied) > 100
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.image_encoder.dtype} == {torch.bfloat16}
    with pytest.raises(InputError, match="dtype 'half' is not one of float32"):
        Nova3DPipeline.from_svd(folder, dtype="half")


@torch.no_grad()
def test_clip_sees_what_svd_shows_it_from_pil_and_from_tensors(
    svd: StableVideoDiffusionPipeline, ours: Nova3DPipeline, rgba: Image.Image, white: Image.Image
) -> None:
    expected = svd._encode_image(white, "cpu", 1, do_classifier_free_guidance=False)
    tensor = torch.from_numpy(np.asarray(rgba).copy()).float() / 255
    assert svd.image_encoder.config.image_size == 224 != SIZE  # the resize is part of it
    captured: list[Tensor] = []
    handle = ours.image_encoder.register_forward_hook(lambda _, given, out: captured.append(out.image_embeds))
    for picture in (rgba, tensor):
        ours(picture, framed=True, num_inference_steps=1, guidance_scale=(1, 1), output_type="latent")
    handle.remove()
    assert len(captured) == 2
    for embeds in captured:
        torch.testing.assert_close(embeds[:, None], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_vae_sees_the_noisy_picture_as_svd_s_does(
    svd: StableVideoDiffusionPipeline, ours: Nova3DPipeline, rgba: Image.Image, white: Image.Image
) -> None:
    picture = torch.from_numpy(np.asarray(rgba).copy()).float() / 255
    cond = ours.encode_image(picture[None], NOISE_AUG, [pixel_noise_generator(SEED)])
    prepared = svd.video_processor.preprocess(white, height=SIZE, width=SIZE)
    noise = torch.randn(prepared.shape, generator=torch.Generator().manual_seed(PIXEL_NOISE_SEED + SEED))
    latents = svd._encode_vae_image(prepared + NOISE_AUG * noise, "cpu", 1, do_classifier_free_guidance=True)
    torch.testing.assert_close(cond.latent, latents[1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cond.unconditional().latent, latents[:1])  # zeros


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_each_task_s_denoising_is_svd_s_own(
    svd: StableVideoDiffusionPipeline, ours: Nova3DPipeline, rgba: Image.Image, white: Image.Image, kind: str
) -> None:
    """At step 0 the additions are silent, so the RGB and the normal sequence are two SVD videos from two noises."""
    result = ours(
        rgba, framed=True, num_inference_steps=STEPS, guidance_scale=(1.0, SCALE), guidance_kind=kind, seed=SEED,
        noise_aug_strength=NOISE_AUG, output_type="latent",
    ).latents[0]  # fmt: skip
    noise = initial_noise((2, VIEWS, 4, 16, 16), 700.0, SEED, "cpu") / math.sqrt(700.0**2 + 1)
    for task in Task:
        video = svd(
            white, height=SIZE, width=SIZE, num_inference_steps=STEPS, latents=noise[task][None],
            min_guidance_scale=SCALE if kind == "constant" else 1.0, max_guidance_scale=SCALE,
            noise_aug_strength=NOISE_AUG, generator=torch.Generator().manual_seed(PIXEL_NOISE_SEED + SEED),
            output_type="latent",
        ).frames[0]  # fmt: skip
        assert video.std() > 0.1
        torch.testing.assert_close(result[task], video, atol=1e-3 * float(video.abs().max()), rtol=0)
    assert (result[Task.RGB] - result[Task.NORMAL]).abs().max() > 0.1


def test_the_decoder_gives_svd_s_frames(svd: StableVideoDiffusionPipeline, ours: Nova3DPipeline) -> None:
    latents = torch.randn(1, 2, VIEWS, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents *= svd.vae.config.scaling_factor
    decoded = ours.decode_latents(latents)
    for task in Task:
        frames = svd.decode_latents(latents[:, task], VIEWS, decode_chunk_size=VIEWS)  # [b,c,v,h,w]
        torch.testing.assert_close(decoded[0, task], frames[0].transpose(0, 1).clamp(-1, 1), atol=1e-4, rtol=0)
