"""The layout of SVD's original file (`svd.safetensors`, `svd_xt.safetensors`): its names and what its shapes tell.

The file holds
    model.diffusion_model.*                      the UNet
    conditioner.embedders.3.encoder.*            an image autoencoder, whose encoder and quant_conv make the condition
    first_stage_model.*                          an encoder without quant_conv, and the temporal decoder
    conditioner.embedders.0.open_clip.model.*    open_clip's ViT-H-14 without its text transformer
diffusers' autoencoder is the condition's encoder with its quant_conv, and the temporal decoder. Every name follows from
the structure, so the functions below serve any widths and numbers of layers; a name that no rule knows is passed
through and then stands out as unexpected.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nova3d.errors import InputError

Shape = tuple[int, ...]

UNET = "model.diffusion_model."
CONDITION = "conditioner.embedders.3.encoder."
FIRST_STAGE = "first_stage_model."
VISUAL = "conditioner.embedders.0.open_clip.model.visual."
_USED = (UNET, CONDITION + "encoder.", CONDITION + "quant_conv.", FIRST_STAGE + "decoder.", VISUAL)

HEAD_WIDTH = 64  # of every attention of SVD's UNet; shapes do not tell it
_LINEARS = {"0": "linear_1", "2": "linear_2"}
_UNET_NAMES = {
    **{f"time_embed.{i}": f"time_embedding.{linear}" for i, linear in _LINEARS.items()},
    **{f"label_emb.0.{i}": f"add_embedding.{linear}" for i, linear in _LINEARS.items()},
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TRANSFORMER_NAMES = {
    "time_stack": "temporal_transformer_blocks",
    **{f"time_pos_embed.{i}": f"time_pos_embed.{linear}" for i, linear in _LINEARS.items()},
}
_VAE_ATTENTION_NAMES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class SourceTensor:
    """Where a tensor of diffusers' layout lies in the original one, and how it is cut out of it."""

    name: str
    cut: Callable[[Tensor], Tensor] = unchanged


def check(shapes: Mapping[str, Shape], source: str) -> None:
    """Raise InputError unless a file of these keys and shapes is SVD, and not one of its relatives."""
    unet = [name for name in shapes if name.startswith(UNET)]
    if not unet:
        raise InputError(
            f"'{source}' is not SVD's original file: no key begins with '{UNET}'; "
            "weights in diffusers' layout are named by their folder"
        )
    if not any(".time_stack." in name for name in unet):
        raise InputError(
            f"'{source}' is an image model (Stable Diffusion?), not SVD: its UNet has no temporal layers; "
            "take svd.safetensors or svd_xt.safetensors"
        )
    ids = shapes.get(f"{UNET}label_emb.0.0.weight", (0, 0))[-1]
    if ids == 0 or ids % 6:  # three ids of one even width
        raise InputError(
            f"'{source}' is not SVD: its ids are embedded in {ids} channels, SVD's three in 768 (SV3D has 256 or "
            "1280); take svd.safetensors or svd_xt.safetensors"
        )


def unused(shapes: Mapping[str, Shape]) -> list[str]:
    """The keys that belong to no network of the diffusers layout, sorted."""
    return sorted(name for name in shapes if not name.startswith(_USED))


def unet_layout(shapes: Mapping[str, Shape], source: str) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """diffusers' UNet config, and diffusers name -> SourceTensor. Raises InputError where sizes cannot be told."""
    known = ShapesUnder(shapes, UNET, source)
    numbers = [int(m[1]) for name in known if (m := re.match(r"input_blocks\.(\d+)\.", name))]
    halvings = [n for n in sorted(set(numbers)) if f"input_blocks.{n}.0.op.weight" in known]
    layers = (halvings[0] if halvings else max(numbers, default=0) + 1) - 1
    first = [1 + level * (layers + 1) for level in range(len(halvings) + 1)]  # every level's first residual block
    widths = [known[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in first]
    attended = [f"input_blocks.{n}.1.proj_in.weight" in known for n in first]
    if any(width % HEAD_WIDTH for width in widths):
        raise InputError(f"'{source}': widths {widths} are no multiples of SVD's {HEAD_WIDTH} channels per head")
    config = {
        "in_channels": known["input_blocks.0.0.weight"][1],
        "out_channels": known["out.2.weight"][0],
        "down_block_types": [f"{'CrossAttn' * a}DownBlockSpatioTemporal" for a in attended],
        "up_block_types": [f"{'CrossAttn' * a}UpBlockSpatioTemporal" for a in reversed(attended)],
        "block_out_channels": widths,
        "addition_time_embed_dim": known["label_emb.0.0.weight"][1] // 3,
        "layers_per_block": layers,
        "cross_attention_dim": known["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "transformer_layers_per_block": len(
            [n for n in known if re.match(r"middle_block\.1\.time_stack\.\d+\.norm1\.w", n)]
        ),
        "num_attention_heads": [width // HEAD_WIDTH for width in widths],
    }
    taken = {unet_name(name, layers): SourceTensor(UNET + name) for name in known}
    if len(taken) != len(known):
        raise InputError(
            f"'{source}' does not have SVD's structure: {len(known) - len(taken)} of its keys share a place"
        )
    return config, taken


def unet_name(name: str, layers: int) -> str:
    """diffusers' name of an original UNet key without its prefix. layers: residual blocks per level going down.

    input_blocks holds conv_in, then per level `layers` blocks (0 resnet, 1 transformer) and a downsampler;
    output_blocks per level `layers` + 1 blocks, the last of them with an upsampler.
    """
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?(.+)", name)
    if found is None:
        return rename_key(name, _UNET_NAMES)
    group, number, index, rest = found[1], int(found[2]), int(found[3] or 0), found[4]
    if group == "middle_block":
        if number == 1:
            return f"mid_block.attentions.0.{_transformer(rest)}"
        return f"mid_block.resnets.{number // 2}.{_resnet(rest)}"
    if group == "input_blocks":
        if number == 0:
            return f"conv_in.{rest}"
        level, layer = divmod(number - 1, layers + 1)
        block, sampler = f"down_blocks.{level}", f"downsamplers.0.conv.{rest.removeprefix('op.')}"
        resamples = layer == layers
    else:
        level, layer = divmod(number, layers + 1)
        block, sampler = f"up_blocks.{level}", f"upsamplers.0.{rest}"
        resamples = index > 0 and rest.startswith("conv.")
    if resamples:
        return f"{block}.{sampler}"
    return f"{block}.attentions.{layer}.{_transformer(rest)}" if index else f"{block}.resnets.{layer}.{_resnet(rest)}"


def vae_layout(shapes: Mapping[str, Shape], source: str) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """The config of diffusers' AutoencoderKLTemporalDecoder, and diffusers name -> SourceTensor."""
    condition, first_stage = ShapesUnder(shapes, CONDITION, source), ShapesUnder(shapes, FIRST_STAGE, source)
    levels = len({name.split(".")[2] for name in condition if name.startswith("encoder.down.")})
    if not any(".time_stack." in name for name in first_stage):
        raise InputError(
            f"'{source}' holds the frame-wise image decoder: no '{FIRST_STAGE}decoder' key is temporal; "
            "take svd.safetensors or svd_xt.safetensors"
        )
    config = {
        "in_channels": condition["encoder.conv_in.weight"][1],
        "out_channels": first_stage["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "block_out_channels": [condition[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "layers_per_block": len(
            {name for name in condition if re.match(r"encoder\.down\.0\.block\.\d+\.conv1\.w", name)}
        ),
        "latent_channels": first_stage["decoder.conv_in.weight"][1],
    }
    places = [CONDITION + n for n in condition if n.startswith(("encoder.", "quant_conv."))]
    places += [FIRST_STAGE + n for n in first_stage if n.startswith("decoder.")]
    taken = {}
    for place in places:
        name = place.removeprefix(CONDITION).removeprefix(FIRST_STAGE)
        # The original's attention projections are convolutions of 1x1, diffusers' are linear.
        linear = re.search(r"\.attn_1\.\w+\.weight$", name) and ".norm." not in name
        taken[vae_name(name, levels)] = SourceTensor(place, _as_linear) if linear else SourceTensor(place)
    return config, taken


def vae_name(name: str, levels: int) -> str:
    """diffusers' name of an original autoencoder key without its prefix; the decoder counts its levels backwards."""
    side, _, rest = name.partition(".")
    resnet = _vae_temporal_resnet if side == "decoder" else _vae_resnet
    if found := re.fullmatch(r"(?:down|up)\.(\d+)\.block\.(\d+)\.(.+)", rest):
        level = int(found[1]) if side == "encoder" else levels - 1 - int(found[1])
        blocks = "down_blocks" if side == "encoder" else "up_blocks"
        return f"{side}.{blocks}.{level}.resnets.{found[2]}.{resnet(found[3])}"
    if found := re.fullmatch(r"down\.(\d+)\.downsample\.(.+)", rest):
        return f"{side}.down_blocks.{found[1]}.downsamplers.0.{found[2]}"
    if found := re.fullmatch(r"up\.(\d+)\.upsample\.(.+)", rest):
        return f"{side}.up_blocks.{levels - 1 - int(found[1])}.upsamplers.0.{found[2]}"
    if found := re.fullmatch(r"mid\.block_(\d+)\.(.+)", rest):
        return f"{side}.mid_block.resnets.{int(found[1]) - 1}.{resnet(found[2])}"
    if found := re.fullmatch(r"mid\.attn_1\.(.+)", rest):
        return f"{side}.mid_block.attentions.0.{rename_key(found[1], _VAE_ATTENTION_NAMES)}"
    return f"{side}.{rename_key(rest, {'norm_out': 'conv_norm_out', 'conv_out.time_mix_conv': 'time_conv_out'})}"


class ShapesUnder(dict[str, Shape]):
    """The shapes under a prefix, without it; a key that is asked for and lacks is an InputError."""

    def __init__(self, shapes: Mapping[str, Shape], prefix: str, source: str):
        super().__init__({n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)})
        self.prefix, self.source = prefix, source

    def __missing__(self, name: str) -> Shape:
        raise InputError(f"'{self.source}' does not hold all of SVD: it lacks '{self.prefix}{name}'")


def rename_key(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _resnet(rest: str) -> str:
    if rest.startswith("time_mixer."):
        return rest
    branch = "temporal_res_block" if rest.startswith("time_stack.") else "spatial_res_block"
    return f"{branch}.{rename_key(rest.removeprefix('time_stack.'), _RESNET_NAMES)}"


def _transformer(rest: str) -> str:
    return rename_key(rest, _TRANSFORMER_NAMES)


def _vae_resnet(rest: str) -> str:
    return rename_key(rest, {"nin_shortcut": "conv_shortcut"})


def _vae_temporal_resnet(rest: str) -> str:
    if rest == "mix_factor":
        return "time_mixer.mix_factor"
    return _resnet(rest) if rest.startswith("time_stack.") else f"spatial_res_block.{_vae_resnet(rest)}"


def _as_linear(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)
