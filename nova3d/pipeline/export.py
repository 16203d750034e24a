"""Shipping a trained model: half-precision weights, checksums, provenance."""

import json
import shutil
from pathlib import Path

import torch

from nova3d.errors import InputError
from nova3d.pipeline import Nova3DPipeline
from nova3d.utils import provenance

CHECKSUMS = "SHA256SUMS"


def export_model(model: Path, out: Path) -> int:
    """Write `model` to `out` in float16 with SHA256SUMS; returns the weights' bytes.

    Keeps what else is in `out` (a model card). Raises InputError where a weight does not survive float16.
    """
    pipeline = Nova3DPipeline.load(model)
    for name in ("unet", "vae", "image_encoder"):
        part = getattr(pipeline, name).half()
        if not all(bool(torch.isfinite(p).all()) for p in part.parameters()):
            raise InputError(f"a weight of '{name}' is too large for float16; keep this model in float32")
    pipeline.save_pretrained(out, safe_serialization=True)
    for path in out.rglob("*.json"):  # diffusers notes the folder it loaded from, which means nothing elsewhere
        content = json.loads(path.read_text())
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    if (model / "record.json").is_file():
        shutil.copy(model / "record.json", out / "record.json")
    weights = sorted(out.rglob("*.safetensors"))
    lines = [f"{provenance.hash_file(path)}  {path.relative_to(out)}\n" for path in weights]
    (out / CHECKSUMS).write_text("".join(lines))
    return sum(path.stat().st_size for path in weights)
