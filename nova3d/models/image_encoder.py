"""CLIP image encoders: transformers' and open_clip's, interchangeable as SVD's condition.

`conditioning.condition` asks an encoder for `config.image_size`, `dtype` and `encoder(pixel_values).image_embeds`.
transformers' model has them; `OpenClipImageEncoder` gives them to an open_clip tower as it is, and
`image_encoder_from_open_clip` turns the tower's weights into transformers' model. open_clip is not imported here.
"""

import math
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.errors import InputError
from nova3d.models.svd_original import Shape, ShapesUnder, SourceTensor, rename_key, unchanged

# open_clip's vision transformers have heads of 64 channels but for these widths (ViT-H, ViT-g, ViT-bigG, ViT-e).
_CLIP_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_CLIP_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1": "vision_model.embeddings.patch_embedding",
    "ln_pre": "vision_model.pre_layrnorm",  # transformers' spelling
    "ln_post": "vision_model.post_layernorm",
    "proj": "visual_projection.weight",
}
_CLIP_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class OpenClipImageEncoder(nn.Module):
    """An open_clip vision tower (`model.visual`) behind transformers' interface."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        height, width = _pair(visual.image_size)
        if height != width:
            raise InputError(f"the open_clip tower takes {height}x{width} pixels, SVD's condition is square")
        self.config = SimpleNamespace(image_size=height)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """pixel_values [b,3,s,s] with CLIP's mean and deviation -> `.image_embeds` [b,d], projected, not normalised."""
        embeds = self.visual(pixel_values)
        return SimpleNamespace(image_embeds=embeds[0] if isinstance(embeds, tuple) else embeds)  # output_tokens


def image_encoder_from_open_clip(
    visual: nn.Module | Mapping[str, Tensor], heads: int | None = None, hidden_act: str = "gelu"
) -> CLIPVisionModelWithProjection:
    """transformers' model with the weights of an open_clip vision transformer: the same embedding for the same pixels.

    visual: the tower (`model.visual`), which tells its heads, activation and norms itself, or a state dict of the
    tower or of the whole model (`visual.*`), which does not: then `heads` (None: open_clip's for that width) and
    `hidden_act` ("gelu"; "quick_gelu" for towers trained so) count. Weights are copied, in their own type.
    Raises InputError for towers that transformers' CLIP cannot express (average or attention pooling, layer scale,
    no norm before the transformer, timm and ResNet towers).
    """
    source = "open_clip's vision tower"
    eps = 1e-5
    if isinstance(visual, nn.Module):
        heads, hidden_act, eps = _read_settings(visual)
        state = dict(visual.state_dict())
    else:
        state = dict(visual)
        if any(name.startswith("visual.") for name in state):
            state = {n.removeprefix("visual."): value for n, value in state.items() if n.startswith("visual.")}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    config, taken = clip_layout(shapes, source, prefix="", heads=heads)
    encoder = empty_image_encoder(**config | {"hidden_act": hidden_act, "layer_norm_eps": eps})
    expected = encoder.state_dict()
    strange = [*(name for name in taken if name not in expected), *(name for name in expected if name not in taken)]
    if strange:
        raise InputError(f"{source} is not one that transformers' CLIP can express: see '{strange[0]}'")
    filled = {
        name: place.cut(state[place.name]).detach().clone(memory_format=torch.contiguous_format)
        for name, place in taken.items()
    }
    encoder.load_state_dict(filled, assign=True)
    return encoder.eval()


def empty_image_encoder(**config: Any) -> CLIPVisionModelWithProjection:
    """transformers' encoder of a CLIPVisionConfig, without storage for its parameters, to be filled with
    load_state_dict(assign=True)."""
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    embeddings = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device="cpu")[None]  # a buffer, in no state dict
    return encoder


def clip_layout(
    shapes: Mapping[str, Shape], source: str, prefix: str, heads: int | None = None
) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """transformers' config of an open_clip vision transformer, and transformers name -> SourceTensor.

    heads: where None, open_clip's for this width. Raises InputError where sizes cannot be told.
    """
    known = ShapesUnder(shapes, prefix, source)
    width, channels, patch = known["conv1.weight"][0], known["conv1.weight"][1], known["conv1.weight"][-1]
    positions = known["positional_embedding"][0]
    side = math.isqrt(positions - 1)
    if side**2 + 1 != positions:
        raise InputError(f"'{source}': {positions} positions are no square of patches and a class token, as SVD's has")
    head_width = _CLIP_HEAD_WIDTHS.get(width, 64)
    if heads is None and width % head_width:
        raise InputError(
            f"'{source}': a width of {width} does not tell the number of heads of an open_clip tower; name it"
        )
    config = {
        "hidden_size": width,
        "intermediate_size": known["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "projection_dim": known["proj"][1],
        "num_hidden_layers": len({n for n in known if re.match(r"transformer\.resblocks\.\d+\.ln_1\.w", n)}),
        "num_attention_heads": heads or width // head_width,
        "num_channels": channels,
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    taken: dict[str, SourceTensor] = {}
    for name in known:
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if found is None:
            taken[rename_key(name, _CLIP_NAMES)] = SourceTensor(
                prefix + name, _transpose if name == "proj" else unchanged
            )
            continue
        layer, rest = f"vision_model.encoder.layers.{found[1]}", found[2]
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
                kind = rest.removeprefix("attn.in_proj_")
                taken[f"{layer}.self_attn.{projection}.{kind}"] = SourceTensor(prefix + name, _THIRDS[third])
        else:
            taken[f"{layer}.{rename_key(rest, _CLIP_BLOCK_NAMES)}"] = SourceTensor(prefix + name)
    return config, taken


def _read_settings(visual: nn.Module) -> tuple[int, str, float]:
    """Heads, activation and the norms' epsilon of an open_clip vision transformer."""
    if not hasattr(visual, "transformer") or getattr(visual, "pool_type", "tok") != "tok":
        raise InputError("open_clip's vision tower is not a transformer that pools its class token: SVD has ViT-H-14")
    block: Any = visual.transformer.resblocks[0]  # type: ignore[union-attr, index]
    norms = {module.eps for module in visual.modules() if isinstance(module, nn.LayerNorm)}
    if len(norms) != 1:
        raise InputError(f"open_clip's vision tower has norms of several epsilons {sorted(norms)}")
    act = block.mlp.gelu
    if type(act).__name__ == "QuickGELU":
        name = "quick_gelu"
    elif isinstance(act, nn.GELU):
        name = "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    else:
        raise InputError(
            f"open_clip's vision tower has the activation {type(act).__name__}, expected GELU or QuickGELU"
        )
    return int(block.attn.num_heads), name, float(norms.pop())


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) else (int(size), int(size))


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.T


_THIRDS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda tensor: tensor.chunk(3)[0],
    lambda tensor: tensor.chunk(3)[1],
    lambda tensor: tensor.chunk(3)[2],
)
