"""What is known before sampling: which cells, that they come out as given, and that nothing else changes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nova3d import images
from nova3d.cameras import preset
from nova3d.data import render_object
from nova3d.diffusion import karras_sigmas, sample
from nova3d.hull import dilate
from nova3d.models.autoencoder import encode_mode
from nova3d.models.denoiser import Denoiser
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.known import background_cells, known_latents
from nova3d.pipeline.pipeline import pixel_noise_generator
from nova3d.tasks import Task
from nova3d.utils.resources import find
from tests.helpers.meshes import write_lopsided

SIZE = 16
Make = Callable[..., Nova3DPipeline]


@pytest.fixture
def pipeline(make_pipeline: Make, request: pytest.FixtureRequest) -> Nova3DPipeline:
    """Of the condition that the test is parametrised with, else of "picture"."""
    made = make_pipeline()
    made.register_to_config(condition=getattr(request, "param", "picture"))
    return made


def test_no_view_of_an_object_reaches_a_cell_of_background(tmp_path: Path) -> None:
    rig = preset("ortho16", 64)
    for path in (
        write_lopsided(tmp_path / "lopsided.glb"),
        find("assets/objects", "asset") / "qua_farm_animals_animated_Llama.glb",
    ):
        mask = render_object(path, rig).mask
        cells = background_cells(mask[0], rig, 4)
        pixels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
        assert cells.shape == (16, 16, 16) and not bool((mask[pixels] > 0).any())
        # Towards the views from the side less is known: there the depth decides.
        known = cells.float().mean(dim=(1, 2))
        assert float(known[0]) > float(known[4]) > 0
        assert torch.equal(cells[8], cells[0].flip(1))
        near = dilate((mask[:1] > 0).float(), 4)[0] > 0  # a margin of one cell
        assert not bool((near & pixels[0]).any())


def test_an_empty_row_is_background_in_every_view() -> None:
    mask = torch.zeros(64, 64)
    mask[20:30, 30:36] = 1
    cells = background_cells(mask, preset("ortho16", 64), 4)
    rows = cells.all(dim=2).all(dim=0)  # rows 5, 6 and 7 hold the object, 4 and 8 are the margin
    assert torch.nonzero(~rows).flatten().tolist() == [4, 5, 6, 7, 8]
    columns = cells[4, 6]  # from the side, that is as far as the object may be deep, and the margin
    assert torch.nonzero(columns).flatten().tolist() == [0, 15]


@pytest.mark.parametrize("pipeline", ["picture", "inflated"], indirect=True)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_known_cells_come_out_as_they_were_given(pipeline: Nova3DPipeline, red: Tensor, solver: str) -> None:
    options = {"solver": solver, "output_type": "latent"}
    free, kept = (pipeline(red, keep_known=on, **options).latents for on in (False, True))
    framed = images.frame_object(red, SIZE)
    frame = (images.composite(framed) * 2 - 1).permute(2, 0, 1)[None]
    latent = encode_mode(pipeline.vae, frame)[0] * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(kept[0, Task.RGB, 0], latent, atol=1e-3, rtol=1e-3)
    assert (free[0, Task.RGB, 0] - latent).abs().max() > 0.1
    known = known_latents(
        framed[None], pipeline.cameras, pipeline.vae, pipeline.encode_image(framed[None], 0.0, [torch.Generator()])
    )
    assert known is not None and 0 < float(known.cells.float().mean()) < 0.9
    where = known.cells.expand_as(kept)
    torch.testing.assert_close(kept[where], known.latents[where], atol=1e-3, rtol=1e-3)
    assert bool((free[~where] != kept[~where]).any())  # the network saw what was kept


def test_without_it_the_sampler_is_the_plain_one(pipeline: Nova3DPipeline, red: Tensor) -> None:
    cond = pipeline.encode_image(images.frame_object(red, SIZE)[None], 0.02, [pixel_noise_generator(0)])
    x = pipeline.prepare_latents((2, 16, *cond.latent.shape[-3:]), [torch.Generator().manual_seed(0)])
    angles = pipeline.cameras.azimuth_elevation()
    found = pipeline(red, output_type="latent", guidance_scale=1.0).latents
    with torch.no_grad():
        plain = sample(Denoiser(pipeline.unet, cond, angles, torch.ones(16)), x, karras_sigmas(2, 0.002, 80.0), "euler")
    assert torch.equal(found, plain)


def test_of_other_cameras_nothing_is_known(
    pipeline: Nova3DPipeline, red: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.register_to_config(camera_preset="persp16")
    plain = pipeline(red, output_type="latent").latents
    with caplog.at_level(logging.INFO, "nova3d.pipeline.known"):
        kept = pipeline(red, keep_known=True, output_type="latent").latents
    assert torch.equal(plain, kept)
    assert len(caplog.records) == 1 and "not level and orthographic" in caplog.text
