"""Stable Video Diffusion's weights into a NovaUNet, with an account of every key."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.models.alignment import AlignmentAttention
from nova3d.models.blocks import SpatialBlock, TemporalBlock
from nova3d.models.unet import SVD_FPS_ID, SVD_MOTION_ID, NovaUNet
from nova3d.models.view_embedding import ViewEmbedding

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_IDS_WEIGHT, _IDS_BIAS = "add_embedding.linear_1.weight", "add_embedding.linear_1.bias"
_PASSED_ON = (
    "sample_size",
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "addition_time_embed_dim",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "num_attention_heads",
)


@dataclass
class LoadReport:
    """What became of every key. `copied`: as in the file. `new`: SVD does not have it. `reshaped`: cut to the ids that
    remain. `derived`: computed from several pretrained values. `unused`: in the file, but in no place of the model."""

    source: str
    copied: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    new_parameters: int = 0
    alignment_parameters: int = 0
    parameters: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, k))} {k}" for k in ("copied", "new", "reshaped", "derived", "unused"))
        return (
            f"{self.source}: {counts}; {self.parameters:,} parameters, {self.new_parameters:,} of them new "
            f"({self.alignment_parameters:,} in alignment units)"
        )


def load_svd(path_or_hub_id: str | Path, variant: str = "", **config: Any) -> tuple[NovaUNet, LoadReport]:
    """A NovaUNet that computes SVD's function at step 0, and the account of its keys.

    path_or_hub_id: a diffusers folder of SVD (with `unet/`), its UNet's folder, or a hub id. variant: "fp16" takes the
    half-precision file. config: NovaUNet's own arguments (alignment, alignment_init, id_mode, num_frames).

    id_mode "fold" keeps the noise-augmentation columns of the ids' first layer and moves what SVD's constant fps and
    motion ids contribute into its bias: exactly the same function at those ids. The model is built without storage
    and filled from the file, so that it is never in memory twice. Raises InputError where a key is missing, has
    another shape or is left over.
    """
    folder = _unet_folder(path_or_hub_id, variant)
    settings = _settings(folder) | config
    with torch.device("meta"):
        unet = NovaUNet(**settings)
    path = _weights_file(folder, variant)
    report = LoadReport(str(path))
    state = dict(_fresh(unet, report))
    expected = {name: tuple(value.shape) for name, value in unet.state_dict().items() if name not in state}
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            report.unused = sorted(present - expected.keys())
            missing = sorted(expected.keys() - present)
            if missing or report.unused:
                kind, name = ("lacks", missing[0]) if missing else ("has the unexpected key", report.unused[0])
                raise InputError(f"'{path}' does not fit SVD's UNet: it {kind} '{name}' ({len(missing)} missing)")
            for name, shape in expected.items():
                value = file.get_tensor(name).float()
                if unet.config.id_mode == "fold" and name == _IDS_WEIGHT:
                    value = value[:, -unet.config.addition_time_embed_dim :].contiguous()
                    report.reshaped.append(name)
                elif unet.config.id_mode == "fold" and name == _IDS_BIAS:
                    weight = file.get_tensor(_IDS_WEIGHT)
                    value = folded_bias(weight.float(), value, unet.config.addition_time_embed_dim)
                    report.derived.append(name)
                else:
                    report.copied.append(name)
                if tuple(value.shape) != shape:
                    raise InputError(f"'{path}': '{name}' is {tuple(value.shape)}, the model wants {shape}")
                state[name] = value
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is truncated or not a safetensors file: {error}") from error
    unet.load_state_dict(state, assign=True)
    _initialise_alignment(unet)
    report.parameters = sum(p.numel() for p in unet.parameters())
    report.new_parameters = sum(unet.get_parameter(name).numel() for name in report.new)
    report.alignment_parameters = sum(unet.get_parameter(n).numel() for n in report.new if ".alignment." in n)
    return unet, report


def folded_bias(weight: Tensor, bias: Tensor, id_width: int) -> Tensor:
    """b + W_fps e(fps) + W_motion e(motion) of the ids' first layer, weight [d, 3 id_width]; in float64."""
    embedded = torch.cat([_sinusoid(SVD_FPS_ID, id_width), _sinusoid(SVD_MOTION_ID, id_width)])
    return (bias.double() + weight[:, : 2 * id_width].double() @ embedded).float()


def _sinusoid(value: float, width: int) -> Tensor:
    """diffusers' Timesteps(width, flip_sin_to_cos=True, shift 0) of one value: cosines, then sines; float64."""
    half = width // 2
    angles = value * torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()])


def _fresh(unet: NovaUNet, report: LoadReport) -> Iterator[tuple[str, Tensor]]:
    """Real values for the modules that SVD does not have, constructed as they are from scratch."""
    for prefix, module in unet.named_modules():
        made: nn.Module
        if isinstance(module, AlignmentAttention):
            made = AlignmentAttention(module.attn.query_dim, module.attn.heads, module.fold)
        elif isinstance(module, ViewEmbedding):
            made = ViewEmbedding(module.mlp.linear_2.out_features)
        else:
            continue
        for name, value in made.state_dict().items():
            report.new.append(f"{prefix}.{name}")
            yield f"{prefix}.{name}", value


def _initialise_alignment(unet: NovaUNet) -> None:
    """Start every alignment unit from its block, now that the block holds pretrained values."""
    for module in unet.modules():
        if isinstance(module, SpatialBlock | TemporalBlock) and module.alignment is not None:
            module.alignment.initialise(unet.config.alignment_init, module.norm1, module.attn1)


def _unet_folder(path_or_hub_id: str | Path, variant: str) -> Path:
    local = Path(path_or_hub_id)
    if not local.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        name = WEIGHTS[1] if variant == "fp16" else WEIGHTS[0]
        try:
            allowed = ["unet/config.json", f"unet/{name}"]
            local = Path(snapshot_download(str(path_or_hub_id), allow_patterns=allowed))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"'{path_or_hub_id}' is neither a folder nor a model that the hub gives: {str(error).splitlines()[0]}"
            ) from error
    return local / "unet" if (local / "unet").is_dir() else local


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"'{folder}' is not an SVD UNet folder: it has no config.json")
    stored = json.loads(path.read_text())
    if stored.get("_class_name") != "UNetSpatioTemporalConditionModel":
        raise InputError(
            f"'{path}' describes a {stored.get('_class_name')}, not SVD's UNetSpatioTemporalConditionModel"
        )
    return {key: stored[key] for key in _PASSED_ON if key in stored}


def _weights_file(folder: Path, variant: str) -> Path:
    names = [WEIGHTS[1]] if variant == "fp16" else list(WEIGHTS)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"'{folder}' holds none of {', '.join(names)}")
