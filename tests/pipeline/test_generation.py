"""Nova3DPipeline end to end on tiny random networks: determinism, batches, guidance, damaged folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nova3d import images
from nova3d.calibration import Calibration
from nova3d.cameras import preset
from nova3d.diffusion import view_scales
from nova3d.errors import InputError
from nova3d.inflate import inflated_views
from nova3d.models import NovaUNet
from nova3d.models.conditioning import inflated_guide
from nova3d.models.denoiser import Denoiser
from nova3d.models.guided_decoder import GuidedTemporalDecoder
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.folder import check_model
from nova3d.pipeline.outputs import outline_agreement, to_views
from nova3d.pipeline.pipeline import pixel_noise_generator, prepare_image
from nova3d.tasks import TASKS, Task
from nova3d.utils import hub
from nova3d.views import ViewSet

SIZE = 16
OWN = {"keep_input": False}  # view 0 as generated
Same = Callable[..., bool]


def test_output_is_sixteen_valid_views(pipeline: Nova3DPipeline, red: Tensor) -> None:
    calls: list[int] = []
    views = pipeline(
        red, keep_input=False, callback_on_step_end=lambda _, step, __, tensors: calls.append(step) or tensors
    ).views[0]
    assert isinstance(views, ViewSet) and views.rgb.shape == (16, SIZE, SIZE, 3)
    assert views.rgb.min() >= 0 and views.rgb.max() <= 1 and bool(torch.isfinite(views.normals).all())
    lengths = views.normals.norm(dim=-1)
    assert bool(((lengths < 1e-6) | ((lengths - 1).abs() < 1e-4)).all())
    assert (views.rgb[views.mask == 0] == 1).all()
    assert calls == [0, 1] and pipeline.num_timesteps == 2
    assert torch.equal(views.cameras.c2w, pipeline.cameras.c2w)


def test_a_guided_decoder_gets_its_guide_pictures_under_either_condition(
    make_pipeline: Callable[..., Nova3DPipeline], red: Tensor
) -> None:
    pipeline = make_pipeline()
    GuidedTemporalDecoder.convert_in_place(pipeline.vae.decoder, 4)
    pipeline.vae.register_to_config(guide_channels=4)
    call = {"keep_input": False, "guidance_scale": 1.0, "output_type": "pt"}
    before = pipeline(red, **call).rgb
    with torch.no_grad():
        for conv in pipeline.vae.decoder.guides:
            conv.bias.add_(0.5)
    assert pipeline.config.condition == "picture" and not torch.equal(pipeline(red, **call).rgb, before)
    conditioning = pipeline.encode_image(prepare_image(red, 0, SIZE, False)[None], 0.0, [torch.Generator()])
    assert conditioning.latent.dim() == 4  # still the picture's
    expected = inflated_guide(prepare_image(red, 0, SIZE, False), pipeline.cameras)
    torch.testing.assert_close(conditioning.guide, expected[None])
    kept = pipeline(red, keep_known=True, **call).rgb  # its latents are of the guide pictures, not of the condition
    assert kept.shape == before.shape and not torch.equal(kept, before)


def test_the_mask_adds_the_colours_to_the_length_of_the_decoded_normals() -> None:
    lengths = torch.tensor([0.0, 0.3, 0.35, 0.425, 0.5, 0.6, 1.0, 0.175])
    decoded = torch.ones(2, 1, 3, 8, 8)  # white
    decoded[Task.RGB, 0, :, :, 7] = 0.5  # a quarter from white counts as a normal longer by a quarter
    decoded[Task.NORMAL] = 0
    decoded[Task.NORMAL, 0, 2] = lengths
    views = to_views(decoded, preset("ortho1", 8))
    mask = torch.tensor([0, 0, 0.2, 0.5, 0.8, 1, 1, 0.5]).expand(8, 8)  # of evidence 1/3 to 2/3
    torch.testing.assert_close(views.mask[0], mask, atol=1e-5, rtol=0)
    assert views.normals[0, 0, :, 2].tolist() == pytest.approx([0, 0, 1, 1, 1, 1, 1, 1])
    # At an evidence of 1/2 the white part of the mixture is taken off the colour, and the mask puts it on again.
    assert views.rgb[0, 0, :, 0].tolist() == pytest.approx([1] * 7 + [0.75])


def test_a_vector_too_short_to_have_a_direction_is_no_normal() -> None:
    decoded = torch.zeros(2, 1, 3, 8, 8)  # grey: object everywhere, whatever its normals are
    decoded[Task.NORMAL, 0, 0] = torch.linspace(0, 0.2, 8)  # four of them below 0.1
    views = to_views(decoded, preset("ortho1", 8))
    assert bool((views.mask > 0).all())
    assert views.normals[0, :, :, 0].tolist() == [pytest.approx([0] * 4 + [1] * 4)] * 8


def test_colours_that_doubt_has_paled_are_those_of_the_object() -> None:
    decoded = torch.zeros(2, 1, 3, 8, 8)
    decoded[Task.RGB, 0] = torch.tensor([0.3, 1.0, 1.0])[:, None, None]  # 0.65 in [0,1]: red lacks 0.35
    decoded[Task.NORMAL, 0, 2] = 0.25  # evidence (0.25 + 0.35 - 0.05) / 0.75 = 11/15
    views = to_views(decoded, preset("ortho1", 8))
    assert bool((views.mask == 1).all())
    assert views.rgb[0, 0, 0].tolist() == pytest.approx([1 - 0.35 * 15 / 11, 1, 1])


def test_a_share_of_the_condition_s_pictures_is_mixed_into_the_views() -> None:
    decoded, guide = torch.ones(2, 1, 3, 8, 8), torch.zeros(2, 1, 4, 8, 8)
    decoded[Task.RGB, 0, :, :, :4] = -1  # black on the left, normals to +z
    decoded[Task.NORMAL] = 0
    decoded[Task.NORMAL, 0, 2, :, :4] = 1
    guide[Task.RGB, 0, :3] = 1  # white outside
    guide[Task.RGB, 0, 0, 2:] = -1  # cyan in the lower rows, normals to +x
    guide[Task.NORMAL, 0, 0, 2:] = 1
    guide[:, 0, 3, 2:] = 1
    cameras = preset("ortho1", 8)
    views = to_views(decoded, cameras, guide=guide, share=0.45)
    places = [(5, 1), (0, 1), (5, 6), (0, 6)]  # shown by both, decoded alone, in the guide alone, by neither
    assert [float(views.mask[0, r, c]) for r, c in places] == pytest.approx([1, 0.65, 0.35, 0])
    both, decoded_only, guide_only, neither = (views.rgb[0, r, c].tolist() for r, c in places)
    assert both == pytest.approx([0, 0.45, 0.45]) and neither == [1, 1, 1]
    assert decoded_only == pytest.approx([0.35] * 3)  # black under its mask, though evidence 0.55 made it grey
    assert guide_only == pytest.approx([0.65, 1, 1])
    length = (0.55**2 + 0.45**2) ** 0.5
    assert views.normals[0, 5, 1].tolist() == pytest.approx([0.45 / length, 0, 0.55 / length])
    plain, none = to_views(decoded, cameras), to_views(decoded, cameras, guide=guide)
    assert torch.equal(plain.rgb, none.rgb) and torch.equal(plain.normals, none.normals)


def test_a_seed_names_one_result_and_a_batch_is_its_singles(
    pipeline: Nova3DPipeline, same: Same, red: Tensor, blue: Tensor
) -> None:
    first = pipeline(red, seed=4, **OWN).views[0]
    assert same(first, pipeline(red, seed=4, **OWN).views[0])
    second = pipeline(blue, seed=5, **OWN).views[0]
    batch = pipeline([red, blue], seed=4, **OWN).views
    assert isinstance(batch, list) and len(batch) == 2
    assert same(batch[0], first, 2e-4) and same(batch[1], second, 2e-4)
    assert not same(first, pipeline(red, seed=5, **OWN).views[0], 0.02)
    assert not same(pipeline(blue, seed=4, **OWN).views[0], first, 1e-3)  # the picture matters
    assert same(pipeline([red], seed=4, **OWN).views[0], first)


def test_guidance_of_one_is_no_guidance(pipeline: Nova3DPipeline, monkeypatch: pytest.MonkeyPatch, red: Tensor) -> None:
    cond = pipeline.encode_image(torch.stack([images.frame_object(red, SIZE)]), 0.02, [pixel_noise_generator(0)])
    x, sigma = torch.randn(1, 2, 16, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0)
    sizes: list[int] = []
    true = NovaUNet.forward
    monkeypatch.setattr(NovaUNet, "forward", lambda self, x, *a, **k: sizes.append(len(x)) or true(self, x, *a, **k))
    with torch.no_grad():
        angles = pipeline.cameras.azimuth_elevation()
        plain, guided, nearly = (
            Denoiser(pipeline.unet, cond, angles, view_scales("triangle", 1.0, high, angles[:, 0]))(x, sigma)
            for high in (1, 2, 1 + 1e-6)
        )
    assert sizes == [1, 2, 2]  # none is paid for where every scale is 1
    torch.testing.assert_close(nearly, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided[:, :, 0], plain[:, :, 0], atol=1e-4, rtol=1e-4)  # scale 1 at the input view
    assert (guided[:, :, 8] - plain[:, :, 8]).abs().max() > 1e-4


def test_the_pixel_noise_and_the_latent_noise_are_independent(
    pipeline: Nova3DPipeline, monkeypatch: pytest.MonkeyPatch, red: Tensor
) -> None:
    from nova3d.diffusion import initial_noise
    from nova3d.pipeline import pipeline as module

    given: list[Tensor] = []
    true = module.condition
    monkeypatch.setattr(module, "condition", lambda *a: given.append(a[4]) or true(*a))
    pipeline.encode_image(torch.stack([images.frame_object(red, SIZE)]), 0.02, [pixel_noise_generator(3)])
    pixels = given[0].flatten()
    latents = initial_noise((2, 16, 4, 8, 8), 1.0, 3, "cpu").flatten()[: len(pixels)]
    assert abs(float(torch.corrcoef(torch.stack([pixels, latents]))[0, 1])) < 0.2


def test_the_outlines_of_both_tasks_are_compared_before_one_cuts_the_other(
    pipeline: Nova3DPipeline, red: Tensor
) -> None:
    decoded = torch.ones(len(TASKS), 1, 3, 8, 8)  # white pictures; normals (1, 1, 1) everywhere
    decoded[Task.RGB, 0, :, :, 4:] = 0.0  # an object on the right half
    decoded[Task.NORMAL, 0, :, :, :4] = 0.0  # a surface on the right half
    decoded[Task.NORMAL, 0, :, 4:] = 0.0  # of its upper part
    assert outline_agreement(decoded).tolist() == [0.5]
    found = pipeline([red, red]).task_iou
    assert len(found) == 2 and found[0].shape == (16,) and bool(((found[0] >= 0) & (found[0] <= 1)).all())
    assert torch.equal(found[0], pipeline(red, keep_input=True).task_iou[0])  # of what was drawn, not of what is kept
    assert pipeline(red, output_type="latent").task_iou is None


def test_views_carry_the_model_s_calibration_and_the_normals_that_it_asks_for(
    make_pipeline: Callable[..., Nova3DPipeline], red: Tensor, tmp_path: Path
) -> None:
    pipeline = make_pipeline()
    plain = pipeline(red).views[0]
    assert plain.calibration is None and plain.trusted == (True, *[False] * 15)
    pipeline.calibration = Calibration((0.1,) * 8, (-0.1,) * 8, (0.0,) * 5, inflated_normals=1.0)
    pipeline.save_pretrained(tmp_path)
    again = Nova3DPipeline.from_pretrained(tmp_path)
    assert again.calibration == pipeline.calibration
    views = again(red).views[0]
    assert views.calibration == pipeline.calibration
    framed = images.frame_object(red, SIZE)
    inflated = inflated_views(framed, views.cameras, only=[0]).normals[0]
    torch.testing.assert_close(views.normals[0], inflated * (views.mask[0] > 0)[..., None])
    torch.testing.assert_close(views.normals[1:], plain.normals[1:])
    assert again(red, keep_input=False).views[0].trusted == (False,) * 16


def test_keep_input_and_framed(pipeline: Nova3DPipeline, same: Same, red: Tensor) -> None:
    framed = images.frame_object(red, SIZE)
    kept = pipeline(red, keep_input=True).views[0]
    torch.testing.assert_close(kept.rgb[0], images.composite(framed), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.mask[0], framed[..., 3])
    assert same(kept[1:], pipeline(red, **OWN).views[0][1:])
    assert same(pipeline(framed, framed=True, **OWN).views[0], pipeline(red, **OWN).views[0])
    pil = Image.fromarray(images.to_uint8(red), "RGBA")
    assert same(pipeline(pil).views[0], pipeline(torch.from_numpy(images.to_uint8(red)) / 255).views[0])
    with pytest.raises(InputError, match="not square"):
        pipeline(red[:, 4:], framed=True)
    with pytest.raises(InputError, match="must be RGBA"):
        pipeline(red[..., :3])
    with pytest.raises(InputError, match=r"picture 1.*transparent"):
        pipeline([red, red * 0])


def test_a_photograph_means_the_same_in_every_form(
    pipeline: Nova3DPipeline, same: Same, red: Tensor, tmp_path: Path
) -> None:
    on_white = images.to_uint8(images.composite(red))  # no alpha: the object is cut out of its background
    Image.fromarray(on_white).save(tmp_path / "photo.png")
    expected = pipeline(images.cut_out(on_white).rgba).views[0]
    assert 0.2 < float((expected.mask[0] > 0.5).float().mean()) < 0.5  # a disc, not the whole rectangle
    forms = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.open(tmp_path / "photo.png"), on_white]
    for form in [*forms, torch.from_numpy(on_white), on_white / 255]:
        assert same(pipeline(form).views[0], expected, 1e-5)
    batch = pipeline(np.stack([on_white, on_white])).views
    assert len(batch) == 2 and same(batch[0], expected, 2e-4)
    whole = pipeline(tmp_path / "photo.png", cutout="none").views[0]
    assert float(whole.mask[0].sum()) > float(expected.mask[0].sum())
    with pytest.raises(InputError, match=r"picture 0.*channels last"):
        pipeline(torch.from_numpy(on_white).permute(2, 0, 1))


@pytest.fixture(scope="module")
def saved(pipeline: Nova3DPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def test_saving_and_loading_gives_the_same_views(
    pipeline: Nova3DPipeline, saved: Path, same: Same, red: Tensor
) -> None:
    loaded = Nova3DPipeline.load(saved)
    assert loaded.config.sigma_max == 80.0 and loaded.config.size == SIZE and loaded.unet.config.norm_groups == 8
    assert same(loaded(red, seed=1).views[0], pipeline(red, seed=1).views[0])


def test_damaged_model_folders_are_one_line(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none' is neither a folder nor one of nova3d-mini"):
        Nova3DPipeline.load(tmp_path / "none")
    for part, message in (("unet", "truncated or missing"), ("vae", "truncated or missing")):
        folder = tmp_path / f"cut-{part}"
        shutil.copytree(saved, folder)
        path = folder / part / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:10_000])
        with pytest.raises(InputError, match=message) as caught:
            Nova3DPipeline.load(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    shutil.copytree(saved, tmp_path / "gone")
    (tmp_path / "gone/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="truncated or missing"):
        Nova3DPipeline.load(tmp_path / "gone")


def test_a_hub_id_is_not_looked_up_before_it_is_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub_id: str) -> Path:
        raise AssertionError(f"{hub_id} was looked up")

    monkeypatch.setattr(hub, "download", download)
    for name in (saved, "mini", "someone/at-the-hub"):
        check_model(name)
    for name in (saved / "model_index.json", saved / "unet", "absent"):
        with pytest.raises(InputError, match=f"'{name}' is (neither a folder nor one of|not a model folder)"):
            check_model(name)


def test_an_edited_config_is_refused_where_its_weights_are_others(saved: Path, tmp_path: Path) -> None:
    """diffusers itself leaves what is missing without storage and ignores what is left over."""
    shutil.copytree(saved, tmp_path / "edited")
    path = tmp_path / "edited/unet/config.json"
    config = json.loads(path.read_text())
    for alignment, message in (("none", "its config has no place for the weight '"), ("gta", "")):
        path.write_text(json.dumps(config | {"alignment": alignment, "row_attention": not message}))
        with pytest.raises(InputError, match=message or "its weights lack '.*row_attention") as caught:
            Nova3DPipeline.load(tmp_path / "edited")
        assert "edited/unet': config.json and weights do not fit" in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_that_are_not_numbers_are_refused(saved: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(saved, tmp_path / "nan")
    path = tmp_path / "nan" / part / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"NaN or infinite weights in its {part}"):
        Nova3DPipeline.load(tmp_path / "nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": ["evil", "Nova3DPipeline"]}, "is no Nova3DPipeline"),
        ({"unet": ["evil", "Nova3DPipeline"]}, "unet is .*evil.* and not NovaUNet"),
        ({"unet": ["subprocess", "Popen"]}, "and not NovaUNet"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "and not VideoAutoencoder"),
        ({"size": 100_000}, "size must be a whole number from 1 to 4096, not 100000"),
        ({"steps": 10**9}, "steps must be a whole number"),
    ],
)
def test_a_model_index_that_names_other_code_or_sizes_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    index = folder / "model_index.json"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        Nova3DPipeline.load(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_pickle_in_place_of_safetensors_is_not_opened(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    file = next((folder / "vae").glob("*.safetensors"))
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Nova3DPipeline.load(folder)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"block_out_channels": [10**6, 10**6]}),
        ("unet", {"layers_per_block": 10**6}),
        ("vae", {"block_out_channels": [20_000]}),
    ],
)
def test_a_config_of_larger_networks_than_its_weights_is_refused_at_once(
    saved: Path, tmp_path: Path, part: str, change: dict[str, object]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    config = folder / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=f"{part}'s config has {next(iter(change))}=.*, which its weights have not"):
        Nova3DPipeline.load(folder)
