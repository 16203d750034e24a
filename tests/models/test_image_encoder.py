"""open_clip's and transformers' image encoders are interchangeable: one embedding for the same weights."""

from typing import Any

import pytest
import torch
from torch import nn

from nova3d.errors import InputError
from nova3d.models.conditioning import clip_pixels, condition
from nova3d.models.image_encoder import OpenClipImageEncoder, image_encoder_from_open_clip
from tests.helpers.networks import tiny_autoencoder

open_clip = pytest.importorskip("open_clip", reason="the extra nova3d[clip] is not installed")


def tower(quick_gelu: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A tiny vision tower built by open_clip itself, no weight left as initialised."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(seed)
    sizes = {"width": 128, "layers": 2, "head_width": 32, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
    visual = _build_vision_tower(24, CLIPVisionCfg(**(sizes | changes)), quick_gelu=quick_gelu)
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("plain", {}),
        ("quick GELU", {"quick_gelu": True}),
        ("tanh GELU", {"act_kwargs": {"approximate": "tanh"}}),
        ("another epsilon", {"norm_kwargs": {"eps": 0.1}}),
        ("other heads", {"head_width": 16}),
        ("norm after pooling", {"final_ln_after_pool": True}),
    ],
)
def test_same_weights_same_embedding(named: str, changes: dict[str, Any]) -> None:
    visual = tower(**changes)
    pixels = torch.randn(3, 3, 32, 32)
    converted = image_encoder_from_open_clip(visual)
    torch.testing.assert_close(converted(pixels).image_embeds, visual(pixels), atol=1e-5, rtol=1e-4)
    assert torch.equal(OpenClipImageEncoder(visual)(pixels).image_embeds, visual(pixels))


@torch.no_grad()
def test_a_state_dict_needs_what_it_cannot_tell() -> None:
    visual, pixels = tower(quick_gelu=True), torch.randn(2, 3, 32, 32)
    state = visual.state_dict()
    converted = image_encoder_from_open_clip(state, heads=4, hidden_act="quick_gelu")
    torch.testing.assert_close(converted(pixels).image_embeds, visual(pixels), atol=1e-5, rtol=1e-4)
    whole = {f"visual.{name}": value for name, value in state.items()} | {"logit_scale": torch.zeros(())}
    again = image_encoder_from_open_clip(whole, heads=4, hidden_act="quick_gelu")
    assert torch.equal(again(pixels).image_embeds, converted(pixels).image_embeds)
    default = image_encoder_from_open_clip(state)
    assert default.config.num_attention_heads == 2  # 64 channels each, as open_clip has where nothing is said
    assert not torch.allclose(default(pixels).image_embeds, visual(pixels), atol=1e-2)


def test_weights_are_copied() -> None:
    visual = tower()
    converted = image_encoder_from_open_clip(visual)
    before = converted.visual_projection.weight.clone()
    nn.init.zeros_(visual.proj)
    assert torch.equal(converted.visual_projection.weight, before)
    assert before.is_contiguous() and not converted.training


@torch.no_grad()
def test_either_encoder_conditions() -> None:
    visual = tower()
    torch.manual_seed(1)
    vae = tiny_autoencoder().eval()
    images, strength = torch.rand(2, 3, 48, 48) * 2 - 1, torch.tensor([0.0, 0.1])
    noise = torch.randn(2, 3, 48, 48)
    ours, theirs = (
        condition(encoder, vae, images, strength, noise)
        for encoder in (OpenClipImageEncoder(visual), image_encoder_from_open_clip(visual))
    )
    torch.testing.assert_close(ours.image_embeds, theirs.image_embeds, atol=1e-5, rtol=1e-4)
    assert ours.image_embeds.shape == (2, 1, 24)
    torch.testing.assert_close(ours.image_embeds[:, 0], visual(clip_pixels(images, 32)))
    assert torch.equal(ours.latent, theirs.latent)


@torch.no_grad()
def test_the_adapter_takes_towers_that_return_tokens_too() -> None:
    visual, pixels = tower(), torch.randn(1, 3, 32, 32)
    alone = visual(pixels)
    visual.output_tokens = True
    encoder = OpenClipImageEncoder(visual)
    assert torch.equal(encoder(pixels).image_embeds, alone)
    assert encoder.config.image_size == 32 and encoder.dtype == torch.float32


def test_gradients_reach_the_tower() -> None:
    visual = tower()
    OpenClipImageEncoder(visual)(torch.randn(1, 3, 32, 32)).image_embeds.sum().backward()
    assert visual.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pool_type": "avg"}, "pools its class token"),
        ({"no_ln_pre": True}, "see 'vision_model.pre_layrnorm"),
        ({"ls_init_value": 0.1}, r"see 'vision_model\.encoder\.layers\.0\.ls_1"),
        ({"attentional_pool": True}, "see 'attn_pool"),
        ({"image_size": (32, 48)}, "25 positions are no square"),
    ],
)
def test_towers_that_cannot_be_expressed_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        image_encoder_from_open_clip(tower(**changes))


def test_a_tower_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="not a transformer"):
        image_encoder_from_open_clip(nn.Linear(2, 2))
    with pytest.raises(InputError, match="does not hold all of SVD"):
        image_encoder_from_open_clip({"conv1.bias": torch.zeros(1)})


def test_an_oblong_tower_is_no_condition() -> None:
    with pytest.raises(InputError, match="32x48 pixels"):
        OpenClipImageEncoder(tower(image_size=(32, 48)))
