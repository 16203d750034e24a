"""What diffusers' own pipeline tests ask of a pipeline class, asked of Nova3DPipeline; loading by its loaders."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from nova3d import generation, images
from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.export import export_model
from nova3d.pipeline.folder import model_hashes
from nova3d.sampling import SampleConfig, generate_views, sample_views
from nova3d.training.config import TrainConfig
from nova3d.training.setup import svd_source
from nova3d.utils import yaml_text

Make = Callable[..., Nova3DPipeline]
Same = Callable[..., bool]
QUICK: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}
LATENT = QUICK | {"output_type": "latent"}


def test_the_call_has_diffusers_arguments() -> None:
    parameters = inspect.signature(Nova3DPipeline.__call__).parameters
    assert next(iter(parameters)) == "self" and "image" in parameters
    for name in (
        "num_inference_steps", "guidance_scale", "generator", "latents", "output_type", "return_dict",
        "callback_on_step_end", "callback_on_step_end_tensor_inputs",
    ):  # fmt: skip
        assert parameters[name].default is not inspect.Parameter.empty


def test_tuple_and_output_hold_the_same(pipeline: Nova3DPipeline, red: Tensor) -> None:
    named = pipeline(red, output_type="np", **QUICK)
    bare = pipeline(red, output_type="np", return_dict=False, **QUICK)
    assert len(bare) == 3 and bare[0].shape == (1, 16, 16, 16, 3)
    for value, expected in zip(bare, (named.rgb, named.normals, named.task_iou), strict=True):
        assert np.array_equal(value, expected)


def test_generators_give_a_batch_its_singles(pipeline: Nova3DPipeline, red: Tensor, blue: Tensor) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    together = pipeline([red, blue], generator=[generator(3), generator(4)], **LATENT).latents
    for latents, picture, seed in zip(together, (red, blue), (3, 4), strict=True):
        alone = pipeline(picture, generator=generator(seed), **LATENT).latents
        torch.testing.assert_close(latents[None], alone, atol=1e-4, rtol=1e-3)
        assert torch.equal(alone, pipeline(picture, generator=generator(seed), **LATENT).latents)
    one = generator(3)
    first, second = pipeline([red, red], generator=one, **LATENT).latents  # one generator draws for both in turn
    assert (first - second).abs().max() > 1e-2
    with pytest.raises(InputError, match="either generator or seed"):
        pipeline(red, generator=one, seed=1)
    with pytest.raises(InputError, match="1 generators were given for 2 pictures"):
        pipeline([red, blue], generator=[one])


def test_given_latents_are_the_noise_to_start_from(pipeline: Nova3DPipeline, red: Tensor) -> None:
    noise = torch.randn(2, 16, 4, 8, 8, generator=torch.Generator().manual_seed(5))  # what seed 5 draws
    expected = pipeline(red, seed=5, **LATENT).latents
    for latents in (noise, noise[None]):
        assert torch.equal(pipeline(red, seed=5, latents=latents, **LATENT).latents, expected)
    with pytest.raises(InputError, match=r"latents must have the shape \(1, 2, 16, 4, 8, 8\)"):
        pipeline(red, latents=noise[:1])


def test_callbacks_see_and_replace_the_latents(pipeline: Nova3DPipeline, red: Tensor) -> None:
    seen: list[tuple[int, float]] = []

    def clear_the_last(
        pipeline: Nova3DPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        seen.append((step, float(timestep)))
        assert set(tensors) == set(pipeline._callback_tensor_inputs) == {"latents"}
        last = step == pipeline.num_timesteps - 1
        return {"latents": torch.zeros_like(tensors["latents"])} if last else tensors

    latents = pipeline(red, callback_on_step_end=clear_the_last, **LATENT).latents
    assert latents.abs().sum() == 0
    assert [step for step, _ in seen] == [0, 1]
    assert seen[0][1] == pytest.approx(np.log(80.0) / 4) and seen[1][1] < seen[0][1]
    with pytest.raises(InputError, match="can be latents, got prompt_embeds"):
        pipeline(red, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_changes_the_guidance_and_interrupts(pipeline: Nova3DPipeline, red: Tensor) -> None:
    def more(pipeline: Nova3DPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._guidance_scale += 1.0  # type: ignore[operator]  # a number, as given below
        return tensors

    settings = LATENT | {"guidance_scale": 2.0}
    changed = pipeline(red, callback_on_step_end=more, **settings).latents
    assert pipeline.guidance_scale == 2.0 + pipeline.num_timesteps and pipeline.do_classifier_free_guidance
    assert (changed - pipeline(red, **settings).latents).abs().max() > 1e-4
    steps: list[int] = []

    def stop(pipeline: Nova3DPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        pipeline._interrupt = True
        return tensors

    pipeline(red, callback_on_step_end=stop, **LATENT)
    assert steps == [0] and pipeline.interrupt
    pipeline(red, **LATENT)
    assert not pipeline.interrupt and not pipeline.do_classifier_free_guidance


def test_the_progress_bar_is_governed_by_its_config(
    make_pipeline: Make, red: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = make_pipeline()
    pipeline(red, **LATENT)
    assert "2/2" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(red, **LATENT)
    assert capsys.readouterr().err == ""


def test_one_guidance_scale_is_that_scale_at_every_view(pipeline: Nova3DPipeline, red: Tensor) -> None:
    settings = LATENT | {"num_inference_steps": 1}
    one = pipeline(red, **settings | {"guidance_scale": 2.0}).latents
    for kind in ("triangle", "constant"):
        pair = pipeline(red, **settings | {"guidance_scale": (2.0, 2.0), "guidance_kind": kind}).latents
        assert torch.equal(pair, one)


def test_diffusers_loads_a_saved_model_by_the_code_in_its_folder(
    make_pipeline: Make, tmp_path: Path, red: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    make_pipeline().save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/model_index.json").read_text())["_class_name"] == [
        "pipeline",
        "Nova3DPipeline",
    ]
    assert len((tmp_path / "model/pipeline.py").read_text().splitlines()) == 1
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(loaded) is Nova3DPipeline and loaded.config.size == 16
    (tmp_path / "model/pipeline.py").write_text("raise RuntimeError('code of the folder was run')\n")
    ours = Nova3DPipeline.from_pretrained(tmp_path / "model")  # runs no code of the folder
    assert torch.equal(ours(red, **LATENT).latents, loaded(red, **LATENT).latents)


def test_an_older_index_names_the_class_alone(make_pipeline: Make, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "Nova3DPipeline"}))
    (tmp_path / "pipeline.py").unlink()
    assert Nova3DPipeline.load(tmp_path).config.size == 16


def test_every_network_has_one_dtype_whatever_is_stored(make_pipeline: Make, tmp_path: Path) -> None:
    stored = make_pipeline()
    for name in ("unet", "vae", "image_encoder"):
        getattr(stored, name).half()
    stored.save_pretrained(tmp_path)
    for arguments, expected in (({}, torch.float32), ({"dtype": torch.bfloat16}, torch.bfloat16)):
        loaded = Nova3DPipeline.from_pretrained(tmp_path, **arguments)
        assert {getattr(loaded, name).dtype for name in ("unet", "vae", "image_encoder")} == {expected}


def test_an_exported_model_has_the_variant_fp16(make_pipeline: Make, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").rglob("*.safetensors"))
    assert len(files) == 3 and all(".fp16." in name for name in files)
    explicit = Nova3DPipeline.from_pretrained(tmp_path / "out", variant="fp16")
    found = Nova3DPipeline.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(explicit.unet.parameters(), found.unet.parameters(), strict=True))
    with (tmp_path / "out/SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  model_index.json\n")
    with pytest.raises(InputError, match=r"damaged: .*model_index.json differs"):
        Nova3DPipeline.load(tmp_path / "out")


@pytest.mark.parametrize("svd", ["somebody/svd", "svd-xt"])
def test_weights_that_derive_from_svd_keep_its_licence(make_pipeline: Make, tmp_path: Path, svd: str) -> None:
    """A training that goes on from another's UNet names no SVD in its config."""
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    make_pipeline().save_pretrained(earlier)
    (earlier / "record.json").write_text(json.dumps({"config": {"svd": svd}}))
    assert svd_source(TrainConfig(unet=str(earlier / "unet"))) == svd
    (earlier / "record.json").write_text(json.dumps({"svd": svd, "config": {"svd": None}}))
    assert svd_source(TrainConfig(unet=str(earlier / "unet"))) == svd
    assert svd_source(TrainConfig(unet=str(tmp_path / "unet"))) is None and svd_source(TrainConfig(svd="a/b")) == "a/b"
    make_pipeline().save_pretrained(later)
    (later / "record.json").write_text(json.dumps({"svd": svd, "config": {"svd": None, "unet": "unet"}}))
    export_model(later, tmp_path / "out")
    facts = yaml_text.parse((tmp_path / "out/README.md").read_text().split("---\n", 2)[1], "head")
    assert (facts["license"], facts["license_name"]) == ("other", "stable-video-diffusion-community")
    assert facts.get("base_model") == (svd if "/" in svd else None)  # a folder's name is no hub id


def test_an_export_is_ready_for_the_hub(make_pipeline: Make, red: Tensor, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    settings = {"steps": 7, "seed": 3, "svd": "somebody/svd", "optim": {"name": "muon", "learning_rate": 0.001}}
    (tmp_path / "model/record.json").write_text(json.dumps({"config": settings, "commit": "abc", "created": "today"}))
    images.save_image(tmp_path / "toy.png", red)
    export_model(tmp_path / "model", tmp_path / "out", "My model", pictures=[tmp_path / "toy.png"])
    card = (tmp_path / "out/README.md").read_text()
    _, head, body = card.split("---\n", 2)
    facts = yaml_text.parse(head, "head")
    assert facts["license"] == "other" and facts["base_model"] == "somebody/svd"
    assert (facts["library_name"], facts["pipeline_tag"]) == ("diffusers", "image-to-3d") and "nova3d" in facts["tags"]
    assert "# My model\n" in body and "| steps | 7 |" in body and "| optimizer | muon |" in body
    assert "| commit of the code | abc |" in body and "](samples/toy.png)" in body
    assert images.read_image(tmp_path / "out/samples/toy.png").shape[0] > 16
    weights = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert f"| `unet` | NovaUNet | {weights / 1e6:.2f} M |" in body
    (tmp_path / "out/README.md").write_text("mine")
    export_model(tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == "mine"
    (tmp_path / "model/record.json").unlink()
    export_model(tmp_path / "model", tmp_path / "other")
    plain = (tmp_path / "other/README.md").read_text()
    assert plain.startswith("---\nlicense: apache-2.0\n") and "# other\n" in plain and "No record of" in plain


def test_a_hub_id_works_as_a_folder_does(
    make_pipeline: Make, tmp_path: Path, red: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline().save_pretrained(tmp_path / "copy")
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, allow_patterns: list[str] | None, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "copy")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Nova3DPipeline.load("someone/model").config.size == 16
    Nova3DPipeline.from_pretrained("someone/model", revision="v1")
    assert asked == [("someone/model", {}), ("someone/model", {"revision": "v1"})]
    assert set(model_hashes("someone/model")) == set(model_hashes(tmp_path / "copy"))
    images.save_image(tmp_path / "red.png", red)
    config = SampleConfig(str(tmp_path / "red.png"), "someone/model", str(tmp_path / "views"), steps=1)
    folder, *_ = sample_views(config, "cpu")
    assert len(json.loads((folder / "record.json").read_text())["model"]) == 3


def test_the_defaults_of_python_and_of_the_configs_are_the_same(
    pipeline: Nova3DPipeline, red: Tensor, same: Same
) -> None:
    views, _ = generate_views(pipeline, red, SampleConfig())
    assert same(views, pipeline(red).views[0])
    config = generation.default_config()
    # Of a picture alone more may be taken for known than in a protocol.
    assert config.sample == SampleConfig(keep_known=True) and config.fusion.optim.steps == 700
