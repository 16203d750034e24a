"""The folder of a trained model: found by its name, and checked before anything of it is imported or loaded."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nova3d.errors import InputError
from nova3d.utils import hub, provenance, resources
from nova3d.utils.files import read_json

if TYPE_CHECKING:  # torch is not needed to find and to check a folder
    from torch import nn

COMPONENTS = ("unet", "vae", "image_encoder")
PIPELINE_CLASS = "Nova3DPipeline"
CUSTOM_PIPELINE = "pipeline"  # the folder's own file by which DiffusionPipeline finds the class
# What a model_index.json may name for each. diffusers imports what stands there.
_CLASSES: dict[str, list[list[str | None]]] = {
    "unet": [["nova3d.models.unet", "NovaUNet"]],
    "vae": [["nova3d.models.autoencoder", "VideoAutoencoder"]],
    "image_encoder": [["transformers", "CLIPVisionModelWithProjection"], [None, None]],
}
_WIDTHS, _DEPTHS = ("block_out_channels",), ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")
_MOST_PIXELS, _MOST_STEPS = 4096, 10_000  # of a view's side, of one sampling


def model_folder(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: a folder, the name of a shipped model or a hub id.

    Returns:
        The folder. One that is not there is returned as it is.

    Raises:
        InputError: where a hub id cannot be fetched.
    """
    found = resources.locate(name, "model")
    if found is not None:
        return found
    return hub.download(str(name)) if hub.is_hub_id(name) else Path(name)


def check_model(name: str | Path) -> None:
    """Check that a model is there, in no time; `check_model_folder` looks at the whole of it.

    Args:
        name: a folder, the name of a shipped model or a hub id, which is not looked up.

    Raises:
        InputError: where it is no model folder.
    """
    found = resources.locate(name, "model")
    if found is not None or not hub.is_hub_id(name):
        _check_index(found or Path(name), str(name))


def _check_index(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise InputError(f"model '{name}' is neither a folder nor one of {', '.join(resources.names('model'))}")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"'{name}' is not a model folder: it has no model_index.json")


def check_model_folder(folder: Path, name: str) -> None:
    """Check that a folder holds a whole model of this project whose files are safe to open.

    Args:
        folder: as `model_folder` gives it.
        name: what the user called it, for messages.

    Raises:
        InputError: where model_index.json is missing or describes something else, where a file differs from its
            checksum, and where the weights are pickles.
    """
    _check_index(folder, name)
    if (folder / "SHA256SUMS").is_file() and (faults := provenance.verify_checksums(folder)):
        raise InputError(f"model '{name}' is damaged: {faults[0]}")
    index = read_json(folder / "model_index.json", dict, "model index")
    if index.get("_class_name") not in (PIPELINE_CLASS, [CUSTOM_PIPELINE, PIPELINE_CLASS]):
        raise InputError(
            f"model '{name}' is no {PIPELINE_CLASS}: its model_index.json names {str(index.get('_class_name'))[:80]!r}"
        )
    for part, known in _CLASSES.items():
        if index.get(part, [None, None]) not in known:
            raise InputError(f"model '{name}': {part} is {str(index.get(part))[:80]!r} and not {known[0][1]}")
    for key, most in (("size", _MOST_PIXELS), ("steps", _MOST_STEPS)):
        value = index.get(key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"model '{name}': {key} must be a whole number from 1 to {most}, not {str(value)[:40]}")
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.rglob("*.safetensors")):
        raise InputError(f"model '{name}' has {pickles[0]}, a pickle, which can run code when opened: get .safetensors")
    for part in COMPONENTS:
        if (folder / part / "config.json").is_file():
            _check_sizes(folder / part, name)


def _check_sizes(component: Path, name: str) -> None:
    """Refuse a config of wider or deeper networks than the weights beside it, before memory is taken for them."""
    from safetensors import SafetensorError

    config = read_json(component / "config.json", dict, "config")
    try:
        shapes = _stored_shapes(component).values()
    except (OSError, SafetensorError):  # loading says what is wrong with the file
        return
    widest = max((side for shape in shapes for side in shape), default=0)
    for keys, most in ((_WIDTHS, widest), (_DEPTHS, len(shapes))):
        for key in keys:
            value = config.get(key, 0)
            numbers = value if isinstance(value, list) else [value]
            if shapes and any(isinstance(number, int) and number > most for number in numbers):
                shown = f"{component.name}'s config has {key}={str(value)[:60]}"
                raise InputError(f"model '{name}': {shown}, which its weights have not")


def check_keys(network: "nn.Module", folder: Path, name: str, strict: bool = True) -> None:
    """Check that a network and the weight files that it was loaded from hold the same tensors.

    diffusers leaves a tensor that the files lack without storage, and ignores one that the network lacks: the network
    of an edited config then computes something else.

    Args:
        network: as `from_pretrained` gives it.
        folder: with its .safetensors files.
        name: what the user called it, for messages.
        strict: refuse tensors that the network lacks. CLIP's files of some years hold one that nobody reads.

    Raises:
        InputError: naming the first tensor that only one of them has.
    """
    stored, expected = set(_stored_shapes(folder)), set(network.state_dict())
    missing, unknown = sorted(expected - stored), sorted(stored - expected) if strict else []
    if not stored or not (missing or unknown):
        return
    fault = f"its weights lack '{missing[0]}'" if missing else f"its config has no place for the weight '{unknown[0]}'"
    more = len(missing) + len(unknown) - 1
    raise InputError(f"'{name}': config.json and weights do not fit: {fault}{f' and {more} more differ' * (more > 0)}")


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a folder's .safetensors files, from their headers."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as weights:
            shapes |= {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    return shapes


def model_hashes(name: str | Path) -> dict[str, str]:
    """SHA-256 of every weight file of a model, by its path inside the model folder.

    Args:
        name: a folder, the name of a shipped model or a hub id.

    Returns:
        The digests in hexadecimal, in the order of the paths.
    """
    folder = model_folder(name)
    return {str(p.relative_to(folder)): provenance.hash_file(p) for p in sorted(folder.rglob("*.safetensors"))}


def model_limits(name: str | Path) -> list[str]:
    """What a model cannot do: the points of the section "Limits" of its card.

    Args:
        name: a folder, the name of a shipped model or a hub id.

    Returns:
        The points as plain text; empty where there is no card, or no such section.
    """
    card = model_folder(name) / "README.md"
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    section = re.search(r"^## Limits\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    points = re.findall(r"^- (.+(?:\n {2}.+)*)", section[1], re.MULTILINE) if section else []
    return [" ".join(point.replace("**", "").split()) for point in points]
