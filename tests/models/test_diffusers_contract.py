"""What diffusers' own model tests ask of a model class, asked of NovaUNet."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from nova3d.models import NovaUNet
from nova3d.models.blocks import SpatialBlock, TemporalBlock
from tests.helpers.networks import ONE_LEVEL

Inputs = dict[str, Tensor]
Make = Callable[..., NovaUNet]


@torch.no_grad()
def close(a: NovaUNet, b: NovaUNet, inputs: Inputs, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.eval()(**inputs).sample, b.eval()(**inputs).sample, atol=atol, rtol=1e-4)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return inputs | {name: inputs[name].to(dtype) for name in ("sample", "image_embeds")}


@torch.no_grad()
def test_determinism(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet().eval()
    assert torch.equal(unet(**inputs).sample, unet(**inputs).sample)
    assert torch.equal(copy.deepcopy(unet)(**inputs).sample, unet(**inputs).sample)


def test_save_pretrained_variant(make_unet: Make, shaken: Any, inputs: Inputs, tmp_path: Path) -> None:
    unet = shaken(make_unet())
    unet.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    close(NovaUNet.from_pretrained(tmp_path, variant="fp16"), unet, inputs)
    with pytest.raises(OSError):
        NovaUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_asked_for(make_unet: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    make_unet().to(dtype).save_pretrained(tmp_path)
    assert NovaUNet.from_pretrained(tmp_path, dtype=dtype).dtype == dtype
    other = torch.bfloat16 if dtype != torch.bfloat16 else torch.float32
    loaded = NovaUNet.from_pretrained(tmp_path, dtype=other)
    assert {parameter.dtype for parameter in loaded.parameters()} == {other}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_answers_in_its_dtype(make_unet: Make, inputs: Inputs, dtype: torch.dtype) -> None:
    unet = make_unet().eval()
    expected = unet(**inputs).sample
    out = unet.to(dtype)(**cast(inputs, dtype)).sample
    assert out.dtype == dtype and bool(torch.isfinite(out).all())
    assert (out.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_checkpoints(make_unet: Make, shaken: Any, inputs: Inputs, tmp_path: Path, variant: str | None) -> None:
    unet = shaken(make_unet())
    unet.save_pretrained(tmp_path, max_shard_size="2MB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and len(list(tmp_path.glob("*.index*.json"))) == 1
    close(NovaUNet.from_pretrained(tmp_path, variant=variant), unet, inputs)


def test_configuration(make_unet: Make) -> None:
    unet = make_unet(alignment="gta_spatial", id_mode="constant")
    assert unet.config.alignment == "gta_spatial" and unet.config.id_mode == "constant"
    again = NovaUNet.from_config(unet.config)
    assert again.state_dict().keys() == unet.state_dict().keys() and dict(again.config) == dict(unet.config)
    with pytest.raises(AttributeError, match="'NovaUNet' object has no attribute 'does_not_exist'"):
        unet.does_not_exist  # noqa: B018


def test_gradient_checkpointing_switches(make_unet: Make) -> None:
    unet = make_unet()
    assert not unet.is_gradient_checkpointing
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    applied = {type(m).__name__ for m in unet.modules() if getattr(m, "gradient_checkpointing", False)}
    assert applied == {
        "SpatioTemporalTransformer",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
        "UNetMidBlockSpatioTemporal",
    }
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


def test_checkpointing_recomputes_spatial_and_temporal_blocks(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet().train()
    unet.enable_gradient_checkpointing()
    calls: dict[str, int] = {}
    for name, module in unet.named_modules():
        if isinstance(module, SpatialBlock | TemporalBlock):
            module.register_forward_pre_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    out = unet(**inputs).sample
    assert set(calls.values()) == {1}
    out.square().mean().backward()
    assert set(calls.values()) == {2} and len(calls) == 8  # four transformers, two blocks each
    calls.clear()
    with torch.no_grad():
        unet(**inputs)
    assert set(calls.values()) == {1}


def test_mixed_precision_training(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = unet(**inputs).sample.float().square().mean()
    loss.backward()
    grads = [p.grad for p in unet.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and bool(torch.isfinite(g).all()) for g in grads)


def test_attention_processors_can_be_read_and_set(make_unet: Make, inputs: Inputs) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    unet = make_unet(alignment="gta").eval()
    processors = unet.attn_processors
    assert any(".alignment.attn.processor" in name for name in processors)
    with torch.no_grad():
        fused = unet(**inputs).sample
        unet.set_attn_processor(AttnProcessor())  # plain matrix products and a softmax
        assert all(isinstance(p, AttnProcessor) for p in unet.attn_processors.values())
        torch.testing.assert_close(unet(**inputs).sample, fused, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_layerwise_casting(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet().eval()
    expected = unet(**inputs).sample
    unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert unet.conv_in.weight.dtype == torch.bfloat16
    out = unet(**inputs).sample
    assert (out - expected).norm() / expected.norm() < 0.02


@torch.no_grad()
def test_any_number_of_views_tasks_and_pixels(make_unet: Make, inputs: Inputs) -> None:
    from nova3d.tasks import Task

    unet = make_unet().eval()
    for views, side in ((1, 8), (3, 16), (6, 8)):
        sample = torch.randn(2, 2, views, 8, side, side)
        given = inputs | {"sample": sample, "cameras": torch.zeros(2, views, 2)}
        assert unet(**given).sample.shape == (2, 2, views, 4, side, side)
    alone = inputs | {"sample": inputs["sample"][:, :1]}
    assert unet(**alone, tasks=(Task.RGB,)).sample.shape == (2, 1, 4, 4, 8, 8)


@torch.no_grad()
def test_it_compiles_in_one_graph(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet(**ONE_LEVEL).eval()  # tracing takes its time
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).sample, unet(**inputs).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_output_is_a_tuple_or_has_a_sample(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet().eval()
    (bare,) = unet(**inputs, return_dict=False)
    assert torch.equal(bare, unet(**inputs).sample) and torch.equal(bare, unet(**inputs)[0])


def test_processors_that_never_run_are_not_listed(make_unet: Make) -> None:
    """Over one context token cross-attention computes no scores, so that its processor would be set in vain."""
    from diffusers.models.attention_processor import AttnProcessor

    unet = make_unet(alignment="gta")
    names = unet.attn_processors
    assert names and not any(".attn2." in name for name in names)
    given = {name: AttnProcessor() for name in names}
    unet.set_attn_processor(given)
    assert all(unet.attn_processors[name] is processor for name, processor in given.items())
    with pytest.raises(ValueError, match="number of processors"):
        unet.set_attn_processor(dict(list(given.items())[:1]))


def test_forward_chunking_is_refused(make_unet: Make) -> None:
    with pytest.raises(NotImplementedError, match="set_memory"):
        make_unet().enable_forward_chunking()


@torch.no_grad()
def test_widths_that_32_groups_do_not_divide(make_unet: Make, inputs: Inputs, tmp_path: Path) -> None:
    unet = make_unet(block_out_channels=(48, 96), num_attention_heads=(3, 6), norm_groups=16).eval()
    assert {m.num_groups for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)} == {16}
    unet.save_pretrained(tmp_path)
    close(NovaUNet.from_pretrained(tmp_path), unet, inputs)


def test_lora_targets_are_the_attention_layers_that_get_a_gradient(make_unet: Make, inputs: Inputs) -> None:
    unet = make_unet(alignment="gta").train()
    targets = unet.lora_target_modules
    attentions = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    assert len(targets) == sum(2 if name.endswith("attn2") else 4 for name in attentions)
    with torch.no_grad():  # at zero the alignment units hand their queries, keys and values no gradient
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    unet.requires_grad_(True)
    unet(**inputs).sample.square().mean().backward()
    for name, module in unet.named_modules():
        if name in targets:
            assert module.weight.grad is not None and module.weight.grad.abs().max() > 0, name
        elif name.endswith((".attn2.to_q", ".attn2.to_k")):
            assert module.weight.grad is None
