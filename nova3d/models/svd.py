"""Stable Video Diffusion's weights into this project's networks, with a report on every key.

Everything that can be wrong with keys, shapes and types is found in the files' headers, on models without storage,
before a tensor is read; tensors are then read one at a time into the model, which is never in memory twice.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from nova3d.errors import InputError
from nova3d.models.alignment import AlignmentAttention
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.models.blocks import SpatialBlock, TemporalBlock, ViewEmbedding
from nova3d.models.image_encoder import empty_image_encoder
from nova3d.models.row_attention import RowAttention
from nova3d.models.svd_files import PARTS, Component, Part, open_component
from nova3d.models.svd_original import Shape
from nova3d.utils.files import write_json

if TYPE_CHECKING:
    from nova3d.models.unet import NovaUNet

SVD_FPS_ID, SVD_MOTION_ID = 6.0, 127.0  # what SVD's pipeline feeds: fps 7 minus 1, motion bucket 127

_IDS_WEIGHT, _IDS_BIAS = "add_embedding.linear_1.weight", "add_embedding.linear_1.bias"
_STORED_TYPES = ("F16", "BF16", "F32")
# transformers once stored this constant; it is no weight.
_IGNORED = {"vision_model.embeddings.position_ids"}


@dataclass
class LoadReport:
    """What became of every key of pretrained weights.

    Attributes:
        source: the file, folder or hub id.
        copied: keys that are as in the file.
        new: keys that SVD does not have.
        reshaped: keys that are cut to the ids that remain.
        derived: keys that are computed from several pretrained values.
        unused: keys that are in the file, but in no network of SVD.
        stored: number of tensors by the type they are stored in.
        new_parameters: numbers in `new`.
        alignment_parameters: those of them in alignment units.
        parameters: of the whole network.
        parts: the reports on networks that were loaded beside it.
    """

    source: str
    copied: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)
    new_parameters: int = 0
    alignment_parameters: int = 0
    parameters: int = 0
    parts: dict[str, "LoadReport"] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, k))} {k}" for k in ("copied", "new", "reshaped", "derived", "unused"))
        types = ", ".join(self.stored)
        line = f"{self.source}: {counts}; {self.parameters:,} parameters, stored as {types}"
        if self.new:
            line += f"; {self.new_parameters:,} are new ({self.alignment_parameters:,} in alignment units)"
        return "\n".join([line, *(f"{name}: {part}" for name, part in self.parts.items())])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON.

        Args:
            path: the file.
        """
        write_json(path, self.to_dict())


def load_svd(
    unet_class: "type[NovaUNet]",
    path_or_hub_id: str | Path,
    variant: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> "tuple[NovaUNet, LoadReport]":
    """A UNet that computes SVD's function at step 0.

    id_mode "fold" keeps the noise-augmentation columns of the ids' first layer and moves what SVD's constant fps and
    motion ids contribute into its bias: exactly the same function at those ids.

    Args:
        unet_class: NovaUNet or a subclass.
        path_or_hub_id: see `svd_files.open_component`.
        variant: see `svd_files.open_component`.
        dtype: of the network, whichever of float16, bfloat16 and float32 the file has.
        **config: NovaUNet's own arguments (alignment, alignment_init, id_mode), or an override of what the source says
            of SVD (num_attention_heads).

    Returns:
        The network in eval mode on the CPU, and the report on every key.

    Raises:
        InputError: where a key is missing, left over, of another shape or type, or holds NaN or infinite values.
    """
    component = open_component(path_or_hub_id, "unet", variant)
    unet, report = _plan_unet(unet_class, component, config)
    return _fill_unet(unet, report, component, dtype), report


def load_svd_autoencoder(
    path_or_hub_id: str | Path, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> VideoAutoencoder:
    """SVD's autoencoder from the same sources; in eval mode, on the CPU. Raises InputError as `load_svd`."""
    component = open_component(path_or_hub_id, "vae", variant)
    vae, report = _plan_vae(component)
    return _fill(vae, report, component, dtype)


def load_svd_image_encoder(
    path_or_hub_id: str | Path, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> CLIPVisionModelWithProjection:
    """SVD's CLIP image encoder from the same sources; in eval mode, on the CPU. Raises InputError as `load_svd`."""
    component = open_component(path_or_hub_id, "image_encoder", variant)
    encoder, report = _plan_image_encoder(component)
    return _fill(encoder, report, component, dtype)


def load_svd_parts(
    unet_class: "type[NovaUNet]",
    path_or_hub_id: str | Path,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    **unet_config: Any,
) -> "tuple[NovaUNet, VideoAutoencoder, CLIPVisionModelWithProjection, LoadReport]":
    """All of SVD: the UNet as `load_svd`, the autoencoder, the image encoder, and the UNet's report with the others'
    in its `parts`. All three are checked before the first tensor is read."""
    components = _open_all(path_or_hub_id, variant)
    (unet, vae, encoder), report = _plan_all(unet_class, components, unet_config)
    return (
        _fill_unet(unet, report, components["unet"], dtype),
        _fill(vae, report.parts["vae"], components["vae"], dtype),
        _fill(encoder, report.parts["image_encoder"], components["image_encoder"], dtype),
        report,
    )


def inspect_svd(
    unet_class: "type[NovaUNet]", path_or_hub_id: str | Path, variant: str | None = None, **config: Any
) -> LoadReport:
    """The report that `load_svd` would give, and its errors, from the files' headers alone: no tensor is read."""
    return _plan_unet(unet_class, open_component(path_or_hub_id, "unet", variant), config)[1]


def inspect_svd_parts(
    unet_class: "type[NovaUNet]", path_or_hub_id: str | Path, variant: str | None = None, **unet_config: Any
) -> LoadReport:
    """The report that `load_svd_parts` would give, from the files' headers alone."""
    return _plan_all(unet_class, _open_all(path_or_hub_id, variant), unet_config)[1]


def folded_bias(weight: Tensor, bias: Tensor, id_width: int) -> Tensor:
    """b + W_fps e(fps) + W_motion e(motion) of the ids' first layer, weight [d, 3 id_width]; in float64."""
    embedded = torch.cat([_sinusoid(SVD_FPS_ID, id_width), _sinusoid(SVD_MOTION_ID, id_width)])
    return bias.double() + weight[:, : 2 * id_width].double() @ embedded


def _sinusoid(value: float, width: int) -> Tensor:
    """diffusers' Timesteps(width, flip_sin_to_cos=True, shift 0) of one value: cosines, then sines; float64."""
    half = width // 2
    angles = value * torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()])


def _open_all(path_or_hub_id: str | Path, variant: str | None) -> dict[Part, Component]:
    return {part: open_component(path_or_hub_id, part, variant) for part in PARTS}


def _plan_all(
    unet_class: "type[NovaUNet]", components: Mapping[Part, Component], unet_config: dict[str, Any]
) -> "tuple[tuple[NovaUNet, VideoAutoencoder, CLIPVisionModelWithProjection], LoadReport]":
    unet, report = _plan_unet(unet_class, components["unet"], unet_config)
    vae, report.parts["vae"] = _plan_vae(components["vae"])
    encoder, report.parts["image_encoder"] = _plan_image_encoder(components["image_encoder"])
    return (unet, vae, encoder), report


def _plan_unet(
    unet_class: "type[NovaUNet]", component: Component, config: dict[str, Any]
) -> "tuple[NovaUNet, LoadReport]":
    """The model without storage, and the report on how the component's tensors fit it."""
    unet = _build(unet_class, component, config)
    new = set(unet.new_parameter_names)
    expected = {name: shape for name, shape in _shapes(unet).items() if name not in new}
    folds = unet.config.id_mode == "fold"
    if folds:
        expected[_IDS_WEIGHT] = (expected[_IDS_WEIGHT][0], 3 * unet.config.addition_time_embed_dim)
    report = _check_keys(unet, expected, component)
    if folds:
        report.copied = [name for name in report.copied if name not in (_IDS_WEIGHT, _IDS_BIAS)]
        report.reshaped, report.derived = [_IDS_WEIGHT], [_IDS_BIAS]
    report.new = sorted(new)
    report.new_parameters = sum(unet.get_parameter(name).numel() for name in report.new)
    report.alignment_parameters = sum(unet.get_parameter(n).numel() for n in report.new if ".alignment." in n)
    return unet, report


def _plan_vae(component: Component) -> tuple[VideoAutoencoder, LoadReport]:
    vae = _build(VideoAutoencoder, component, {})
    return vae, _check_keys(vae, _shapes(vae), component)


def _plan_image_encoder(component: Component) -> tuple[CLIPVisionModelWithProjection, LoadReport]:
    encoder = _build(empty_image_encoder, component, {})
    return encoder, _check_keys(encoder, _shapes(encoder), component)


def _build(make: Callable[..., Any], component: Component, config: dict[str, Any]) -> Any:
    """The model without storage, as the source's config and then `config` want it."""
    try:
        with torch.device("meta"):
            return make(**component.config | config)
    except (TypeError, ValueError) as error:
        raise InputError(f"'{component.source}': no model can be built with these settings: {error}") from error


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _check_keys(model: nn.Module, expected: Mapping[str, Shape], component: Component) -> LoadReport:
    """Everything copied; raises InputError where keys, shapes or types do not fit."""
    source, stored = component.source, component.stored
    ignored = sorted(_IGNORED & stored.keys())
    missing = sorted(expected.keys() - stored.keys())
    surplus = sorted(stored.keys() - expected.keys() - _IGNORED)
    if missing or surplus:
        kind, name = ("lacks", missing[0]) if missing else ("has the unexpected key", surplus[0])
        raise InputError(
            f"'{source}' does not fit SVD: it {kind} '{name}' ({len(missing)} missing, {len(surplus)} unexpected); "
            "its config or its weights are another model's"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise InputError(
                f"'{source}' does not fit SVD: '{name}' has the shape {stored[name].shape}, expected {shape}; "
                "its config or its weights are another model's"
            )
        if stored[name].dtype not in _STORED_TYPES:
            raise InputError(
                f"'{source}': '{name}' is stored as {stored[name].dtype}, expected one of {', '.join(_STORED_TYPES)}; "
                "take weights that are not quantised"
            )
    return LoadReport(
        source=source,
        copied=list(expected),
        unused=[*component.unused, *ignored],
        stored=dict(sorted(Counter(stored[name].dtype for name in expected).items())),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _fill_unet(unet: "NovaUNet", report: LoadReport, component: Component, dtype: torch.dtype) -> "NovaUNet":
    width = unet.config.addition_time_embed_dim

    def read(name: str) -> Tensor:
        if name in report.reshaped:
            return component.read(name)[:, -width:]
        if name in report.derived:
            return folded_bias(component.read(_IDS_WEIGHT), component.read(name), width)
        return component.read(name)

    for module in unet.modules():
        if isinstance(module, AlignmentAttention | RowAttention | ViewEmbedding):
            _construct_anew(module, dtype)
    _fill(unet, report, component, dtype, read)
    for module in unet.modules():
        if isinstance(module, SpatialBlock | TemporalBlock) and module.alignment is not None:
            module.alignment.initialise(unet.config.alignment_init, module.norm1, module.attn1)
    return unet


def _construct_anew(module: AlignmentAttention | RowAttention | ViewEmbedding, dtype: torch.dtype) -> None:
    """Give a module without storage the values that its constructor gives."""
    module.to_empty(device="cpu")
    for leaf in module.modules():
        if isinstance(leaf, nn.Linear | nn.LayerNorm):
            leaf.reset_parameters()
    if isinstance(module, RowAttention | ViewEmbedding):
        module.initialise()
    module.to(dtype)


def _fill(
    model: Any,
    report: LoadReport,
    component: Component,
    dtype: torch.dtype,
    read: Callable[[str], Tensor] | None = None,
) -> Any:
    """Read every tensor of the report into the model, one at a time."""
    read = read or component.read
    state: dict[str, Tensor] = {name: model.get_parameter(name) for name in report.new}
    for name in (*report.copied, *report.reshaped, *report.derived):
        value = read(name)
        # A copy: what was read may be a view of the mapped file.
        state[name] = torch.empty(value.shape, dtype=dtype).copy_(value)
        if not state[name].isfinite().all():
            reason = "does not fit into " + str(dtype) if value.isfinite().all() else "holds NaN or infinite values"
            raise InputError(f"'{component.source}': '{name}' {reason}; download it again or take another dtype")
    model.load_state_dict(state, assign=True)
    return model.eval()
