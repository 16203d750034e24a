"""Shipping a trained model: half-precision weights, checksums, provenance."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from nova3d import images
from nova3d.errors import InputError
from nova3d.pipeline.card import model_card
from nova3d.pipeline.folder import COMPONENTS
from nova3d.pipeline.pipeline import Nova3DPipeline
from nova3d.utils import hub, provenance
from nova3d.utils.files import read_json, write_json, write_text

CHECKSUMS = "SHA256SUMS"


def export_model(
    model: Path, out: Path, name: str = "", licence: str | None = None, pictures: Sequence[Path] = ()
) -> int:
    """Write a model as the Hugging Face Hub takes it: float16 weights of the variant "fp16", SHA256SUMS and a card.

    What else is in `out` stays. So does a README.md that is there: a card that was written by hand.

    Args:
        model: a model folder.
        out: the folder to write.
        name: of the model, for the card. "": the name of `out`.
        licence: an identifier of the Hub's; None: see `nova3d.pipeline.card.model_card`.
        pictures: files whose views the model makes, to `out`/samples and the card.

    Returns:
        Bytes of the weights.

    Raises:
        InputError: where a weight does not survive float16.
    """
    pipeline = Nova3DPipeline.load(model)
    pipeline.set_progress_bar_config(disable=True)
    samples: list[Path] = []
    for picture in pictures:
        sheet = pipeline(images.cut_out(picture).rgba, seed=0).views[0].contact_sheet()
        samples.append(out / "samples" / f"{picture.stem}.png")
        samples[-1].parent.mkdir(parents=True, exist_ok=True)
        images.save_image(samples[-1], sheet)
    for part_name in COMPONENTS:
        network = getattr(pipeline, part_name)
        if network is None:
            continue
        part = network.half()
        if not all(bool(torch.isfinite(p).all()) for p in part.parameters()):
            raise InputError(f"a weight of '{part_name}' is too large for float16; keep this model in float32")
    pipeline.save_pretrained(out, safe_serialization=True, variant=hub.HALF_PRECISION)
    configs = [out / "model_index.json", *(path for name in COMPONENTS for path in (out / name).glob("*.json"))]
    for path in configs:  # diffusers notes the folder it loaded from, which means nothing elsewhere
        content = read_json(path, dict)
        if content.pop("_name_or_path", None) is not None:
            write_json(path, content, indent=2)
    if (model / "record.json").is_file():
        shutil.copy(model / "record.json", out / "record.json")
    if not (out / "README.md").exists():
        record = read_json(model / "record.json", dict, "record") if (model / "record.json").is_file() else {}
        shown = [path.relative_to(out).as_posix() for path in samples]
        write_text(out / "README.md", model_card(pipeline, record, name or out.resolve().name, licence, shown))
    weights = sorted(path for name in COMPONENTS for path in (out / name).glob("*.safetensors"))
    lines = [f"{provenance.hash_file(path)}  {path.relative_to(out).as_posix()}\n" for path in weights]
    write_text(out / CHECKSUMS, "".join(lines))
    return sum(path.stat().st_size for path in weights)
