"""Validation during training: fixed objects and seeds, numbers in validation.jsonl and a picture to look at."""

import json
import logging
from pathlib import Path

import torch

from nova3d import images
from nova3d.data.shards import ShardReader
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.config import TrainConfig
from nova3d.views import ViewSet

log = logging.getLogger(__name__)
SHOWN_VIEWS = 8


def validate(pipeline: Nova3DPipeline, config: TrainConfig, out: Path, step: int) -> dict[str, float]:
    """Generate `config.validation_objects` objects of the validation shards; returns and logs the mean numbers.

    psnr: RGB over all views but the input view, dB. normal_angle: degrees, mean over pixels where both have a
    surface. iou: of the masks. The picture validation/step-N.png shows, per object, truth and result of both tasks.
    """
    reader = ShardReader(config.data.validation)
    spread = torch.linspace(0, len(reader) - 1, min(config.validation_objects, len(reader))).round().int().tolist()
    shown = list(range(0, len(reader.cameras), max(1, len(reader.cameras) // SHOWN_VIEWS)))
    rows, sums = [], {"psnr": 0.0, "normal_angle": 0.0, "iou": 0.0}
    for row in spread:
        truth = reader.views(row)
        picture = torch.cat([truth.rgb[0], truth.mask[0][..., None]], dim=-1)
        result = pipeline(picture, seed=config.seed, framed=True).views
        assert isinstance(result, ViewSet)
        for key, value in compare(result, truth).items():
            sums[key] += value / len(spread)
        for views in (truth, result):
            rows += [views.rgb[shown], (views.normals[shown] + 1) / 2]
    folder = out / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    images.save_image(folder / f"step-{step:08d}.png", images.grid(torch.cat(rows), len(shown)))
    with (out / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **sums}) + "\n")
    log.info("validation at step %d: %s", step, {k: round(v, 3) for k, v in sums.items()})
    return sums


def compare(result: ViewSet, truth: ViewSet) -> dict[str, float]:
    """The numbers of one object, the input view left out."""
    mse = (result.rgb[1:] - truth.rgb[1:]).square().mean(dim=(1, 2, 3))
    a, b = result.mask[1:] > 0.5, truth.mask[1:] > 0.5
    both = a & b
    cosine = (result.normals[1:] * truth.normals[1:]).sum(dim=-1)[both].clamp(-1, 1)
    angle = torch.rad2deg(cosine.acos()).mean() if bool(both.any()) else torch.tensor(90.0)
    return {
        "psnr": float((-10 * mse.clamp_min(1e-10).log10()).mean()),
        "normal_angle": float(angle),
        "iou": float(both.sum() / (a | b).sum().clamp_min(1)),
    }
