"""Where SVD's weights come from: a diffusers folder (one file or shards, any variant), a hub id, the original file.

Whatever the source, a network comes as a `Component`: its config, the shape and type of every tensor as the files'
headers state them, and a function that reads one tensor. Names are diffusers' (transformers' for the image encoder).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nova3d.errors import InputError
from nova3d.models import svd_original
from nova3d.models.image_encoder import clip_layout
from nova3d.models.svd_original import Shape, SourceTensor
from nova3d.utils import hub
from nova3d.utils.files import check_component, read_json

Part = Literal["unet", "vae", "image_encoder"]
PARTS: tuple[Part, ...] = ("unet", "vae", "image_encoder")
_CLASSES = {
    "unet": "UNetSpatioTemporalConditionModel",
    "vae": "AutoencoderKLTemporalDecoder",
    "image_encoder": "CLIPVisionModelWithProjection",
}
# The keys of a config.json that are sizes of the network; the rest is bookkeeping or is this project's own choice.
_SIZES: dict[Part, tuple[str, ...]] = {
    "unet": (
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
    ),
    "vae": (
        "in_channels",
        "out_channels",
        "down_block_types",
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "sample_size",
        "scaling_factor",
        "force_upcast",
    ),
    "image_encoder": (
        "hidden_size",
        "intermediate_size",
        "projection_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
    ),
}
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
_PICKLES = (".ckpt", ".bin", ".pt", ".pth")


class Stored(NamedTuple):
    """What a header states of a tensor: its shape and safetensors' name of its type ("F16", "BF16", "F32", ...)."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Component:
    """One network's weights. source: the file to name in messages; config: the sizes that the network's constructor
    takes; unused: keys of the source that belong to no network of SVD."""

    source: str
    config: dict[str, Any]
    stored: Mapping[str, Stored]
    read: Callable[[str], Tensor]
    unused: tuple[str, ...] = ()


def open_component(path_or_hub_id: str | Path, part: Part, variant: str | None = None) -> Component:
    """Open one network of SVD; headers are read, tensors are not.

    path_or_hub_id: the original .safetensors file; a diffusers folder with `unet/`, `vae/` and `image_encoder/`; the
    folder of one network; a hub id, of which only this network's files are fetched. variant: "fp16" takes the files
    of that name in a folder. Raises InputError, one line, for whatever is not SVD or not whole.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        return _original(path, part)
    if not path.exists():
        path = _download(str(path_or_hub_id), part, variant)
    folder = path / part if (path / part).is_dir() else path
    return _diffusers(folder, part, variant)


class TensorFiles:
    """The tensors of one or several safetensors files: headers at once, data on demand."""

    def __init__(self, paths: list[Path]):
        self.stored: dict[str, Stored] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            _check_content(path)
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  not a dict
                        view = file.get_slice(name)
                        self.stored[name] = Stored(tuple(view.get_shape()), view.get_dtype())
                        self._paths[name] = path
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"'{path}' is truncated or not a safetensors file ({error}): download it again"
                ) from error

    def read(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU; it may be a view of the mapped file."""
        path = self._paths[name]
        try:
            # Opened anew for each: the pages of a mapping stay in memory for as long as it is open.
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"'{path}': '{name}' cannot be read ({error}): download it again") from error


def _original(path: Path, part: Part) -> Component:
    files = TensorFiles([path])
    shapes = {name: stored.shape for name, stored in files.stored.items()}
    svd_original.check(shapes, str(path))
    if part == "unet":
        config, taken = svd_original.unet_layout(shapes, str(path))
    elif part == "vae":
        config, taken = svd_original.vae_layout(shapes, str(path))
    else:
        config, taken = clip_layout(shapes, str(path), svd_original.VISUAL)

    def read(name: str) -> Tensor:
        return taken[name].cut(files.read(taken[name].name))

    stored = {name: _cut_header(files.stored[place.name], place) for name, place in taken.items()}
    return Component(str(path), config, stored, read, tuple(svd_original.unused(shapes)))


def _cut_header(whole: Stored, place: SourceTensor) -> Stored:
    return Stored(tuple(place.cut(torch.empty(whole.shape, device="meta")).shape), whole.dtype)


def _diffusers(folder: Path, part: Part, variant: str | None) -> Component:
    config = _config(folder, part)
    path = _weights(folder, part, variant)
    files = TensorFiles(_shards(path) if path.suffix == ".json" else [path])
    return Component(str(path), config, files.stored, files.read)


def _config(folder: Path, part: Part) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"'{folder}' holds no {part} of SVD: it has neither {part}/ nor config.json; "
            "name a diffusers folder of SVD or its original .safetensors file"
        )
    config = read_json(path, dict, "config of a network")
    named = config.get("_class_name") or ", ".join(map(str, config.get("architectures") or [])) or "nothing"
    if named != _CLASSES[part]:
        raise InputError(f"'{path}' describes {named}, expected SVD's {_CLASSES[part]}: name SVD's own folder")
    return {name: config[name] for name in _SIZES[part] if name in config}


def _names(part: Part, variant: str | None) -> tuple[str, str]:
    """The names of the single file and of the index of shards."""
    infix = f".{variant}" if variant else ""
    return f"{_STEMS[part]}{infix}.safetensors", f"{_STEMS[part]}.safetensors.index{infix}.json"


def _weights(folder: Path, part: Part, variant: str | None) -> Path:
    single, index = _names(part, variant)
    for name in (single, index):
        if (folder / name).is_file():
            return folder / name
    others = sorted(p.name for p in folder.glob("*.safetensors*"))
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if others:
        hint = f"it has {', '.join(others[:3])}: name that variant"
    elif pickles:
        hint = f"it has only {pickles[0]}, a pickle, which can run code when opened: get the .safetensors file"
    else:
        hint = "download it"
    raise InputError(f"'{folder}' lacks {single}; {hint}")


def _shards(index: Path) -> list[Path]:
    try:
        named = read_json(index, dict, "index of shards").get("weight_map")
    except InputError as error:
        raise InputError(f"'{index}' is no index of shards: {error}: download it again") from error
    if not isinstance(named, dict) or not named:
        raise InputError(f"'{index}' is no index of shards (no weight_map): download it again")
    names = sorted({check_component(name, f"shard of '{index}'", most=255) for name in named.values()})
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"'{index.parent}' lacks the shard {name} that {index.name} names: download it")
    return [index.parent / name for name in names]


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull` or download the file")
    if path.suffix in _PICKLES or start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise InputError(f"'{path}' is a pickle, which can run code when opened: get the .safetensors file")


def _download(name: str, part: Part, variant: str | None) -> Path:
    if not hub.is_hub_id(name):
        raise InputError(
            f"'{name}' does not exist: name a diffusers folder, SVD's original file or a hub id (owner/name)"
        )
    single, index = _names(part, variant)
    wanted = ["config.json", single, index, single.replace(".safetensors", "-*-of-*.safetensors")]
    return hub.download(name, [f"{part}/{file}" for file in wanted])
