"""What can be asked of the pipeline: forms of output, seeds, precision, offload, compilation; and what is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.models import NovaUNet
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.outputs import outline_evidence
from nova3d.views import ViewSet
from tests.helpers.networks import ONE_LEVEL

SIZE = 16
QUICK: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": (1.0, 1.0)}
Same = Callable[..., bool]
Make = Callable[..., Nova3DPipeline]


def test_outputs_are_the_same_views_in_every_form(pipeline: Nova3DPipeline, red: Tensor) -> None:
    views = pipeline(red, **QUICK).views[0]
    shown = {"rgb": views.rgb, "normals": (views.normals + 1) / 2}
    as_np, as_pt, as_pil = (pipeline(red, output_type=form, **QUICK) for form in ("np", "pt", "pil"))
    for name, expected in shown.items():
        array, tensor, pictures = as_np[name][0], as_pt[name][0], as_pil[name][0]
        assert array.dtype == np.float32 and np.array_equal(array, expected.numpy())
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected.permute(0, 3, 1, 2))
        assert len(pictures) == 16 and {(p.mode, p.size) for p in pictures} == {("RGB", (SIZE, SIZE))}
        back = torch.stack([torch.from_numpy(np.asarray(p).copy()) for p in pictures]).float() / 255
        torch.testing.assert_close(back, expected, atol=0.51 / 255, rtol=0)
    assert as_np.views is None and as_np.latents is None


def test_latents_are_what_is_decoded(pipeline: Nova3DPipeline, red: Tensor, blue: Tensor) -> None:
    latents = pipeline(red, output_type="latent", **QUICK).latents[0]
    assert latents.shape == (2, 16, 4, 8, 8) and latents.dtype == torch.float32
    rgb = pipeline.decode_latents(latents[None])[0, 0].permute(0, 2, 3, 1) / 2 + 0.5
    views = pipeline(red, keep_input=False, **QUICK).views[0]
    vectors = pipeline.decode_latents(latents[None])[0, 1].permute(0, 2, 3, 1)
    seen = outline_evidence(rgb, vectors) == 1  # elsewhere doubt pales the decoded colours, which is taken back
    assert seen.float().mean() > 0.5
    torch.testing.assert_close(rgb[seen], views.rgb[seen], atol=1e-6, rtol=0)


@pytest.mark.parametrize("output", ["views", "pil", "np", "pt", "latent"])
def test_every_output_has_one_entry_a_picture(pipeline: Nova3DPipeline, red: Tensor, blue: Tensor, output: Any) -> None:
    both, one = pipeline([red, blue], output_type=output, **QUICK), pipeline(red, output_type=output, **QUICK)
    names = {"views": ("views",), "latent": ("latents",)}.get(output, ("rgb", "normals"))
    measured = set() if output == "latent" else {"task_iou"}
    assert set(both) == set(one) == set(names) | measured  # and nothing that was not asked for
    for name in names:
        kind = {"views": list, "pil": list, "np": np.ndarray}.get(output, Tensor)
        assert isinstance(both[name], kind) and len(both[name]) == 2 and len(one[name]) == 1


def test_seeds_can_be_named_one_by_one(pipeline: Nova3DPipeline, red: Tensor, blue: Tensor) -> None:
    apart = [
        pipeline(picture, seed=s, output_type="latent", **QUICK).latents[0] for picture, s in ((red, 9), (blue, 4))
    ]
    together = pipeline([red, blue], seed=[9, 4], output_type="latent", **QUICK).latents
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert torch.equal(pipeline(red, seed=(9,), output_type="latent", **QUICK).latents[0], apart[0])
    assert torch.equal(pipeline(red, seed=np.int64(9), output_type="latent", **QUICK).latents[0], apart[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "jpg"}, "output_type 'jpg' is not one of views, pil, np, pt, latent"),
        ({"num_inference_steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"solver": "rk4"}, "solver 'rk4' is not one of euler, heun"),
        ({"guidance_kind": "square"}, "guidance 'square' is not one of triangle"),
        ({"image": []}, "list of pictures is empty"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(
    pipeline: Nova3DPipeline, red: Tensor, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nova3DPipeline, "encode_image", None)  # refused before any work
    with pytest.raises(InputError, match=message) as caught:
        pipeline(**({"image": red} | arguments))
    assert "\n" not in str(caught.value)


def test_every_solver_and_guidance_runs_and_matters(pipeline: Nova3DPipeline, red: Tensor) -> None:
    calls: list[int] = []
    found = [
        pipeline(
            red, num_inference_steps=2, guidance_scale=(1.0, 3.0), guidance_kind=kind, solver=solver,
            output_type="latent", callback_on_step_end=lambda _, step, __, tensors: calls.append(step) or tensors,
        ).latents
        for solver, kind in (("euler", "triangle"), ("heun", "triangle"), ("euler", "linear"), ("euler", "constant"))
    ]  # fmt: skip
    assert calls == [0, 1] * 4
    assert all(bool(torch.isfinite(x).all()) for x in found)
    assert min(float((a - b).abs().max()) for i, a in enumerate(found) for b in found[:i]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saving_and_loading_keeps_weights_in_the_dtype_asked_for(
    make_pipeline: Make, tmp_path: Path, red: Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_pipeline()
    variant = "fp16" if dtype == torch.float16 else None
    expected = original(red, output_type="latent", **QUICK).latents
    for name in ("unet", "vae", "image_encoder"):
        getattr(original, name).to(dtype)
    original.save_pretrained(tmp_path, safe_serialization=True, variant=variant)
    stored = "diffusion_pytorch_model.fp16.safetensors" if variant else "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "unet" / stored).is_file()
    loaded = Nova3DPipeline.from_pretrained(tmp_path, dtype=dtype, variant=variant, local_files_only=True)
    named = Nova3DPipeline.load(tmp_path, dtype=str(dtype).removeprefix("torch."), variant=variant or "")
    for found in (loaded, named):
        for name in ("unet", "vae", "image_encoder"):
            ours, theirs = getattr(original, name).state_dict(), getattr(found, name).state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[key]) and theirs[key].dtype == dtype for key, value in ours.items())
    inputs: list[Tensor] = []
    true = NovaUNet.forward
    monkeypatch.setattr(NovaUNet, "forward", lambda self, *a, **k: inputs.extend(a) or true(self, *a, **k))
    latents = loaded(red, output_type="latent", **QUICK).latents
    assert inputs[0].dtype == dtype and {x.dtype for x in inputs[1:5:2]} <= {torch.float32, dtype}
    assert inputs[1].dtype == torch.float32  # the noise level is not rounded
    assert latents.dtype == torch.float32
    # The same weights at other addresses: on some processors kernels then sum in another order.
    tolerance = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(latents, expected, atol=tolerance, rtol=0)
    assert bool(torch.isfinite(loaded(red, **QUICK).views[0].rgb).all())
    up = Nova3DPipeline.load(tmp_path, variant=variant or "")  # float32, whatever is stored
    assert up.unet.dtype == torch.float32


def test_an_unknown_condition_is_refused(pipeline: Nova3DPipeline) -> None:
    with pytest.raises(InputError, match="condition must be one of picture, inflated, got 'inverted'"):
        Nova3DPipeline(pipeline.unet, pipeline.vae, condition="inverted")


def test_loading_logs_no_warning(
    pipeline: Nova3DPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with caplog.at_level(logging.WARNING, "diffusers"):
        Nova3DPipeline.from_pretrained(tmp_path)
    assert [record.message for record in caplog.records] == []


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype 'fp16' is not one of float32, float16, bfloat16"):
        Nova3DPipeline.load(tmp_path, dtype="fp16")


def test_model_offload_moves_each_network_in_and_out_and_changes_nothing(
    make_pipeline: Make, red: Tensor, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.hooks import CpuOffload, UserCpuOffloadHook

    pipeline = make_pipeline()
    expected = pipeline(red, **QUICK).views[0]
    pipeline.enable_model_cpu_offload(device="cpu")  # the hooks are the same; only the device is not another one
    names = {id(getattr(pipeline, name)): name for name in ("unet", "vae", "image_encoder")}
    events: list[str] = []
    enter, leave = CpuOffload.pre_forward, UserCpuOffloadHook.offload
    monkeypatch.setattr(
        CpuOffload, "pre_forward", lambda self, m, *a, **k: events.append(f"+{names[id(m)]}") or enter(self, m, *a, **k)
    )
    monkeypatch.setattr(
        UserCpuOffloadHook, "offload", lambda self: events.append(f"-{names[id(self.model)]}") or leave(self)
    )
    for settings in ({}, {"decode_views": 2}):
        pipeline.set_memory(**settings)
        events.clear()
        assert same(pipeline(red, **QUICK).views[0], expected, 1e-4)
        # CLIP, the VAE's encoder and off with it, the UNet, the VAE's decoder.
        assert events[:4] == ["+image_encoder", "+vae", "-vae", "+unet"] and set(events[4:]) == {"+vae"}
    # Entering the UNet puts CLIP off the accelerator, entering the VAE the UNet.
    assert pipeline.unet._hf_hook.prev_module_hook.model is pipeline.image_encoder
    assert pipeline.vae._hf_hook.prev_module_hook.model is pipeline.unet


def test_offload_leaves_the_device_to_the_hooks(
    make_pipeline: Make, monkeypatch: pytest.MonkeyPatch, red: Tensor
) -> None:
    pipeline = make_pipeline()
    monkeypatch.setattr(Nova3DPipeline, "device", property(lambda self: torch.device("meta")))
    monkeypatch.setattr(Nova3DPipeline, "_execution_device", property(lambda self: torch.device("cpu")))
    assert pipeline(red, output_type="latent", **QUICK).latents.device.type == "cpu"


def test_compiling_changes_neither_result_nor_names(
    make_pipeline: Make, red: Tensor, tmp_path: Path, same: Same
) -> None:
    pipeline = make_pipeline(**ONE_LEVEL)  # tracing takes its time
    names, expected = set(pipeline.unet.state_dict()), pipeline(red, num_inference_steps=1).views[0]
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    pipeline.compile_unet(backend=backend)
    assert same(pipeline(red, num_inference_steps=1).views[0], expected, 1e-3)
    compiled = len(graphs)
    assert compiled > 0 and max(graphs) > 100  # the network, not a scrap of it
    assert same(pipeline(red, num_inference_steps=1).views[0], expected, 1e-3)
    assert len(graphs) == compiled  # and not again for the next picture
    assert set(pipeline.unet.state_dict()) == names
    pipeline.save_pretrained(tmp_path)
    assert set(Nova3DPipeline.load(tmp_path).unet.state_dict()) == names


def test_the_network_is_told_the_cameras_that_training_told_it(
    make_pipeline: Make, red: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azimuth relative to the input view: whichever view of a rendered object is the input view, training and the
    pipeline feed the same angles."""
    pipeline = make_pipeline()
    given: list[Tensor] = []
    true = NovaUNet.forward
    monkeypatch.setattr(NovaUNet, "forward", lambda self, *a, **k: given.append(a[4]) or true(self, *a, **k))
    pipeline([red, red], output_type="latent", **QUICK)
    assert given[0].shape == (2, 16, 2) and given[0].dtype == torch.float32
    rig = orbit(16, size=8)
    plain = torch.zeros(16, 8, 8, 3)
    rendered = ViewSet(plain, plain, plain[..., 0], rig)
    for start in (0, 5):
        told = rendered.rotated_to(start).cameras.azimuth_elevation()
        torch.testing.assert_close(told, given[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(told, given[0][1], atol=1e-5, rtol=0)


def test_a_model_that_is_not_there_is_told_from_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model 'nope' is neither a folder nor one of nova3d-mini"):
        Nova3DPipeline.load("nope")
    with pytest.raises(InputError, match=r"is not a model folder: it has no model_index\.json"):
        Nova3DPipeline.load(tmp_path)
