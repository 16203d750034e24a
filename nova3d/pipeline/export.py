"""Shipping a trained model: half-precision weights, checksums, provenance."""

import shutil
from pathlib import Path

import torch

from nova3d.errors import InputError
from nova3d.pipeline.folder import COMPONENTS
from nova3d.pipeline.pipeline import Nova3DPipeline
from nova3d.utils import hub, provenance
from nova3d.utils.files import read_json, write_json, write_text

CHECKSUMS = "SHA256SUMS"


def export_model(model: Path, out: Path) -> int:
    """Write a model in float16 under the variant "fp16", with SHA256SUMS.

    What else is in `out` stays, such as a model card.

    Args:
        model: a model folder.
        out: the folder to write.

    Returns:
        Bytes of the weights.

    Raises:
        InputError: where a weight does not survive float16.
    """
    pipeline = Nova3DPipeline.load(model)
    for name in COMPONENTS:
        network = getattr(pipeline, name)
        if network is None:
            continue
        part = network.half()
        if not all(bool(torch.isfinite(p).all()) for p in part.parameters()):
            raise InputError(f"a weight of '{name}' is too large for float16; keep this model in float32")
    pipeline.save_pretrained(out, safe_serialization=True, variant=hub.HALF_PRECISION)
    for path in out.rglob("*.json"):  # diffusers notes the folder it loaded from, which means nothing elsewhere
        content = read_json(path, dict)
        if content.pop("_name_or_path", None) is not None:
            write_json(path, content, indent=2)
    if (model / "record.json").is_file():
        shutil.copy(model / "record.json", out / "record.json")
    weights = sorted(out.rglob("*.safetensors"))
    lines = [f"{provenance.hash_file(path)}  {path.relative_to(out).as_posix()}\n" for path in weights]
    write_text(out / CHECKSUMS, "".join(lines))
    return sum(path.stat().st_size for path in weights)
