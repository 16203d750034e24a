"""Less memory, the same result: the named settings, and what happens when the device runs out."""

import logging
import operator
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nova3d import images
from nova3d.errors import InputError
from nova3d.models import NovaUNet
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.memory import LOW_MEMORY, Memory, fit_in_memory
from nova3d.pipeline.pipeline import pixel_noise_generator

Make = Callable[..., Nova3DPipeline]
GUIDED: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": (1.0, 2.0)}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Objects of every call of the UNet (conditional and unconditional ones alike)."""
    calls: list[int] = []
    true = NovaUNet.forward
    monkeypatch.setattr(NovaUNet, "forward", lambda self, x, *a, **k: calls.append(len(x)) or true(self, x, *a, **k))
    return calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [4]),
        ({"sequential_guidance": True}, [2, 2]),
        ({"batch": 1}, [2, 2]),
        ({"batch": 1, "sequential_guidance": True}, [1, 1, 1, 1]),
        ({"batch": 7}, [4]),
    ],
)
def test_denoising_in_pieces_is_the_same_denoising(
    make_pipeline: Make, red: Tensor, blue: Tensor, counted: list[int], settings: dict[str, Any], expected: list[int]
) -> None:
    pipeline = make_pipeline()
    whole = pipeline([red, blue], output_type="latent", **GUIDED).latents
    counted.clear()
    pipeline.set_memory(**settings)
    pieces = pipeline([red, blue], output_type="latent", **GUIDED).latents
    assert counted == expected
    for a, b in zip(pieces, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)


def test_everything_at_its_smallest_gives_the_same_views(
    make_pipeline: Make, red: Tensor, same: Callable[..., bool]
) -> None:
    pipeline = make_pipeline()
    whole = pipeline(red, **GUIDED).views[0]
    pipeline.set_memory(batch=1, sequential_guidance=True, decode_views=3, decode_rows=5)
    assert same(pipeline(red, **GUIDED).views[0], whole, 1e-4)
    assert LOW_MEMORY.sequential_guidance and LOW_MEMORY.batch == LOW_MEMORY.decode_views == 1
    with pytest.raises(InputError, match="decode_rows must be 0"):
        pipeline.set_memory(decode_rows=-1)


def out_above(module: nn.Module, limit: int, size: Callable[[Tensor], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """`module` runs out of memory on an input larger than `limit`, as a GPU does."""
    true = module.forward

    def forward(x: Tensor, *rest: Any, **named: Any) -> Any:
        if size(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return true(x, *rest, **named)

    monkeypatch.setattr(module, "forward", forward)


@pytest.mark.parametrize(("limit", "chosen"), [(4, Memory()), (2, Memory(0, True)), (1, Memory(1, True))])
def test_denoising_that_does_not_fit_is_cut_and_goes_on(
    make_pipeline: Make, red: Tensor, blue: Tensor, limit: int, chosen: Memory, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pipeline = make_pipeline()
    settings = GUIDED | {"num_inference_steps": 2}
    whole = pipeline([red, blue], output_type="latent", seed=3, **settings).latents
    out_above(pipeline.unet, limit, len, monkeypatch)
    with caplog.at_level(logging.WARNING, "nova3d"):
        pieces = pipeline([red, blue], output_type="latent", seed=3, **settings).latents
    for a, b in zip(pieces, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)
    assert pipeline.memory == chosen
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (chosen != Memory()) and all(m.endswith(f"with the same result, with {chosen}") for m in said)


@pytest.mark.parametrize(
    ("limit", "chosen"), [(16 * 256, (None, None)), (1024, (4, None)), (300, (1, None)), (16 * 10, (1, 8))]
)  # pixels that the last convolution of 16 views of 16 x 16 may see
def test_decoding_that_does_not_fit_is_cut_and_goes_on(
    make_pipeline: Make, red: Tensor, same: Callable[..., bool], limit: int, chosen: tuple[int | None, int | None],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pipeline = make_pipeline()
    whole = pipeline(red, **GUIDED).views[0]
    out_above(pipeline.vae.decoder.conv_out, limit, lambda x: x.shape[0] * x.shape[2] * x.shape[3], monkeypatch)
    with caplog.at_level(logging.WARNING, "nova3d"):
        assert same(pipeline(red, **GUIDED).views[0], whole, 1e-4)
        assert (pipeline.memory.decode_views, pipeline.memory.decode_rows) == chosen
        pipeline(red, **GUIDED)  # it stays so: nothing runs out again, nothing is said again
    assert len(caplog.records) == (chosen != (None, None))


def test_encoding_that_does_not_fit_is_cut(
    make_pipeline: Make, red: Tensor, blue: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    pictures = torch.rand(2, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    generators = lambda: [pixel_noise_generator(seed) for seed in (5, 9)]  # noqa: E731
    whole = pipeline.encode_image(pictures, 0.1, generators())
    out_above(pipeline.vae.encoder, 1, len, monkeypatch)
    pieces = pipeline.encode_image(pictures, 0.1, generators())
    torch.testing.assert_close(pieces.latent, whole.latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pieces.image_embeds, whole.image_embeds, atol=1e-5, rtol=1e-4)
    assert pipeline.memory == Memory(batch=1)


@pytest.mark.parametrize(("batch", "expected"), [(None, [16]), (5, [5, 5, 5, 1]), (1, [1] * 16)])
def test_the_views_of_the_inflated_condition_are_encoded_in_pieces(
    make_pipeline: Make, red: Tensor, monkeypatch: pytest.MonkeyPatch, batch: int | None, expected: list[int]
) -> None:
    pipeline = make_pipeline()
    pipeline.register_to_config(condition="inflated")
    whole = pipeline(red, output_type="latent", **GUIDED).latents
    sizes: list[int] = []
    true = pipeline.vae.encoder.forward
    monkeypatch.setattr(pipeline.vae.encoder, "forward", lambda x: sizes.append(len(x)) or true(x))
    pipeline.set_memory(batch=batch)
    pieces = pipeline(red, output_type="latent", **GUIDED).latents
    assert sizes == expected * 2  # tasks
    torch.testing.assert_close(pieces, whole, atol=1e-4 * float(whole.abs().max()), rtol=0)


def test_encoding_of_the_inflated_condition_that_does_not_fit_is_cut(
    make_pipeline: Make, red: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    pipeline.register_to_config(condition="inflated")
    framed = images.frame_object(red, 16)[None]
    whole = pipeline.encode_image(framed, 0.0, [pixel_noise_generator(5)])
    out_above(pipeline.vae.encoder, 1, len, monkeypatch)
    pieces = pipeline.encode_image(framed, 0.0, [pixel_noise_generator(5)])
    torch.testing.assert_close(pieces.latent, whole.latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pieces.image_embeds, whole.image_embeds, atol=1e-5, rtol=1e-4)
    assert pipeline.memory == Memory(batch=1)


def test_encoding_of_what_is_known_that_does_not_fit_is_cut(
    make_pipeline: Make, red: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    whole = pipeline(red, keep_known=True, output_type="latent", **GUIDED).latents
    out_above(pipeline.vae.encoder, 1, len, monkeypatch)
    pieces = pipeline(red, keep_known=True, output_type="latent", **GUIDED).latents
    torch.testing.assert_close(pieces, whole, atol=1e-4 * float(whole.abs().max()), rtol=0)
    assert pipeline.memory == Memory(batch=1)


@pytest.mark.parametrize(("part", "stage"), [("unet", "denoising"), ("vae.decoder.conv_out", "decoding")])
def test_when_nothing_smaller_is_left_the_user_is_told_what_to_do(
    make_pipeline: Make, red: Tensor, monkeypatch: pytest.MonkeyPatch, part: str, stage: str
) -> None:
    pipeline = make_pipeline()
    out_above(operator.attrgetter(part)(pipeline), 0, len, monkeypatch)
    with pytest.raises(InputError, match=f"{stage} does not fit .* enable_model_cpu_offload") as caught:
        pipeline(red, **GUIDED)
    assert "\n" not in str(caught.value) and "9.00 GiB" in str(caught.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(memory: Memory) -> None:
        raise RuntimeError("shapes disagree")

    with pytest.raises(RuntimeError, match="shapes disagree"):
        fit_in_memory("denoising", Memory(), fail, lambda memory: None if memory.batch else Memory(batch=1))


def test_the_failed_attempt_s_tensors_are_gone_before_the_next() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def run(memory: Memory) -> bool:
        if memory.batch:
            return alive[0]() is None
        big = torch.zeros(8)
        alive.append(weakref.ref(big))
        raise torch.OutOfMemoryError("full")

    assert fit_in_memory("denoising", Memory(), run, lambda memory: Memory(batch=1)) == (True, Memory(batch=1))


def test_the_steps_down() -> None:
    def steps(less: Callable[[Memory], Memory | None], start: Memory) -> list[Memory]:
        found = []
        while (start := less(start)) is not None:  # type: ignore[assignment]
            found.append(start)
        return found

    assert steps(lambda m: m.less_for_denoising(3, True), Memory()) == [Memory(0, True), Memory(1, True)]
    assert steps(lambda m: m.less_for_denoising(3, False), Memory()) == [Memory(1)]
    assert steps(lambda m: m.less_for_denoising(1, False), Memory()) == []
    sizes = [(m.decode_views, m.decode_rows) for m in steps(lambda m: m.less_for_decoding(16, 64), Memory())]
    assert sizes == [(8, None), (4, None), (2, None), (1, None), (1, 32), (1, 16), (1, 8)]
    assert Memory(decode_views=99).less_for_decoding(16, 64) == Memory(decode_views=8)


def test_zero_is_read_as_all_as_in_earlier_versions(make_pipeline: Make) -> None:
    pipeline = make_pipeline()
    pipeline.set_memory(batch=0, decode_views=0, decode_rows=0)
    assert pipeline.memory == Memory() and pipeline.memory.batch is None and str(pipeline.memory) == ""
    assert str(Memory(batch=2, decode_rows=8)) == "batch=2, decode_rows=8"
