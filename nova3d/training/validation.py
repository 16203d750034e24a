"""Validation during training: fixed objects and seeds, raw and averaged weights, the best average kept."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from nova3d import images
from nova3d.data.shards import ShardReader
from nova3d.metrics import foreground_psnr, mask_iou, normal_angle, psnr
from nova3d.models.image_encoder import empty_image_encoder
from nova3d.models.unet import NovaUNet
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.ema import EMA, full_state_dict
from nova3d.training.logs import truncate_after
from nova3d.training.setup import Run, run_record
from nova3d.utils import provenance
from nova3d.utils.files import append_json_lines, replacing, writing
from nova3d.views import ViewSet

log = logging.getLogger(__name__)
SHOWN_VIEWS = 8
VALIDATION = "validation.jsonl"
METRICS = ("psnr", "foreground_psnr", "normal_angle", "mask_iou")


class Validation:
    """Samples fixed objects with the raw and the averaged weights, and keeps the best model.

    The objects are spread evenly over the validation shards and shared out over the processes.

    Args:
        run: whose networks are validated.
        shards: of the validation objects.
        start: finished steps of the run that is resumed.
    """

    def __init__(self, run: Run, shards: str, start: int):
        self.run = run
        self.reader = ShardReader(shards)
        count = min(run.config.validation_objects, len(self.reader))
        self.rows = torch.linspace(0, len(self.reader) - 1, count).round().int().tolist()
        past = truncate_after(run.out / VALIDATION, start) if run.accelerator.is_main_process else []
        best = max((line["psnr"] for line in past if line["weights"] == "ema"), default=-math.inf)
        (self.best,) = broadcast_object_list([best])  # one process reads it, and all must have the same

    def __call__(self, step: int) -> None:
        """Write two lines to validation.jsonl, one for each kind of weights, and a picture per object.

        Where the average's PSNR is the best yet, model-best/ is written.

        Args:
            step: finished steps. Every process must call this.
        """
        accelerator, config = self.run.accelerator, self.run.config
        means = {}
        for weights, average in (("raw", None), ("ema", self.run.ema)):
            with sampling_pipeline(self.run, average) as pipeline:
                means[weights] = self._score(pipeline, step, weights)
            log.info("validation at step %d, %s weights: %s", step, weights, _round(means[weights]))
        if accelerator.is_main_process:
            lines = [{"step": step, "weights": weights, **values} for weights, values in means.items()]
            with writing(f"'{self.run.out / VALIDATION}'"):
                append_json_lines(self.run.out / VALIDATION, lines)
        if config.trackers:
            flat = {f"validation/{k}_{weights}": v for weights, values in means.items() for k, v in values.items()}
            accelerator.log(flat, step=step)
        if means["ema"]["psnr"] > self.best:
            self.best = means["ema"]["psnr"]
            save_model(self.run, self.run.out / "model-best", step)

    def _score(self, pipeline: Nova3DPipeline, step: int, weights: str) -> dict[str, float]:
        run, folder = self.run, self.run.out / "validation" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        rank, processes = run.accelerator.process_index, run.accelerator.num_processes
        sums = torch.zeros(len(METRICS), 2, dtype=torch.float64)  # sums and counts
        for row in self.rows[rank::processes]:
            truth = self.reader.views(row)
            with run.accelerator.autocast():
                result = pipeline(truth.straight_alpha(0), seed=run.config.seed, keep_input=False, framed=True).views[0]
            values = torch.tensor(list(compare(result, truth).values()), dtype=torch.float64)
            sums += torch.stack([values.nan_to_num(), values.isfinite().double()], dim=1)
            _picture(folder / f"{weights}-{self.reader.samples[row]['uid']}.png", truth, result)
        total = run.accelerator.reduce(sums.float().to(run.accelerator.device), "sum").cpu()
        return {name: float(total[i, 0] / total[i, 1]) for i, name in enumerate(METRICS)}


def compare(result: ViewSet, truth: ViewSet) -> dict[str, float]:
    """METRICS of one object, without the input view.

    Args:
        result: v generated views.
        truth: v rendered views of the same object.

    Returns:
        PSNR over pictures and over the object, dB; mean normal angle over pixels where both have a surface, degrees;
        intersection over union of the masks.
    """
    generated, true = result[slice(1, None)], truth[slice(1, None)]
    return {
        "psnr": float(psnr(generated.rgb, true.rgb).mean()),
        "foreground_psnr": float(foreground_psnr(generated.rgb, true.rgb, true.mask).nanmean()),
        "normal_angle": normal_angle(generated.normals, true.normals, true.mask)["mean"],
        "mask_iou": float(mask_iou(generated.mask, true.mask).mean()),
    }


@contextmanager
def sampling_pipeline(run: Run, average: EMA | None) -> Iterator[Nova3DPipeline]:
    """The run's networks as a pipeline, for the block.

    One process alone cannot sample from sharded weights, so there the pipeline has full copies of the networks.

    Args:
        run: whose networks are used.
        average: replaces the weights inside the block; None samples with the weights as they are.

    Yields:
        The pipeline.
    """
    if run.ema.sharded:
        yield pipeline_of(run, full_state_dict(run.model, average, run.accelerator.device))
        return
    with average.applied(run.model) if average else nullcontext():
        yield pipeline_of(run)


def pipeline_of(run: Run, state: dict[str, Tensor] | None = None) -> Nova3DPipeline:
    """The networks of a run as a pipeline.

    Args:
        run: whose networks are used.
        state: full weights of a TrainingModule; new networks are made that hold them. None uses the run's own.

    Returns:
        The pipeline.
    """
    unet, encoder = run.model.unet, run.model.image_encoder
    if state is not None:
        with torch.device("meta"):
            unet = NovaUNet.from_config(unet.config)
        unet.load_state_dict(_strip_prefix(state, "unet."), assign=True)
        if (encoder := run.model.trained_encoder) is not None:
            encoder = empty_image_encoder(**encoder.config.to_dict())
            encoder.load_state_dict(_strip_prefix(state, "trained_encoder."), assign=True)
            encoder.to(next(iter(state.values())).device)  # its buffers are in no state
        else:
            encoder = run.model.image_encoder
    size = run.dataset.reader.cameras.width
    pipeline = Nova3DPipeline(unet, run.model.vae, encoder, size=size, **vars(run.config.pipeline))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_model(run: Run, folder: Path, step: int) -> None:
    """Write the averaged weights as a diffusers folder, all or nothing.

    Args:
        run: whose average is saved. Every process must call this.
        folder: of the model.
        step: finished steps, for the record.

    Raises:
        InputError: where it cannot be written.
    """
    main = run.accelerator.is_main_process
    if main or run.ema.sharded:  # the others would copy all weights for nothing
        state = full_state_dict(run.model, run.ema)
        if main:
            write_model(run, folder, state, step)
    run.accelerator.wait_for_everyone()


def write_model(run: Run, folder: Path, state: dict[str, Tensor], step: int) -> None:
    """A diffusers folder of a TrainingModule's full weights and the frozen networks, with its record."""
    pipeline = pipeline_of(run, state)
    with writing(f"the model '{folder}'"), replacing(folder) as aside:
        pipeline.save_pretrained(aside, safe_serialization=True)
        provenance.write(aside, run_record(run) | {"step": step})


def _strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _picture(path: Path, truth: ViewSet, result: ViewSet) -> None:
    """Rows: true views, true normals, generated views, generated normals."""
    shown = list(range(0, len(truth), max(1, len(truth) // SHOWN_VIEWS)))
    rows = [part[shown] for views in (truth, result) for part in (views.rgb, (views.normals + 1) / 2)]
    images.save_image(path, images.grid(torch.cat(rows), len(shown)))


def _round(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
