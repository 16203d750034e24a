"""One picture to a folder of views and normal maps."""

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nova3d import config as configs
from nova3d import images
from nova3d.cameras import Cameras
from nova3d.candidates import agreement
from nova3d.settings import SampleConfig, views_folder
from nova3d.utils import provenance
from nova3d.utils.files import filling, locked
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)

_DETAIL_PX = 1024  # of the object's longest side, at most, in the picture that fusion gets


def sample_views(
    config: SampleConfig,
    device: str,
    progress: Progress | None = None,
    pipeline: "Nova3DPipeline | None" = None,
) -> tuple[Path, ViewSet, ViewSet | None, images.CutOut]:
    """One picture to a view folder. The picture is read, and its mask written, before the model is loaded.

    Args:
        config: the settings.
        device: where the networks run.
        progress: called as (steps done, steps, "sampling").
        pipeline: the loaded model. None: it is loaded as `config` says.

    Returns:
        The view folder, the views, the detail view of `detail_view` and the picture with its object cut out. There is
        no detail view where view 0 is generated too.

    Raises:
        InputError: for settings outside their ranges, an unreadable picture, mask or model, an unwritable folder or
            one whose folders of the same names are no earlier result's, and where another process samples into it.
    """
    configs.validate(config)
    folder = views_folder(config)
    config = replace(config, out=str(folder), model=config.model if pipeline is None else pipeline.source)
    with locked(folder, "another sampling"), filling(folder, stale=("detail",)) as aside:
        views, detail, cut, _ = write_views(aside, config, device, progress, pipeline)
    return folder, views, detail, cut


def write_views(
    folder: Path,
    config: SampleConfig,
    device: str,
    progress: Progress | None,
    pipeline: "Nova3DPipeline | None",
) -> tuple[ViewSet, ViewSet | None, images.CutOut, dict[str, Any]]:
    """One picture to a view folder that no other process writes.

    Args:
        folder: the folder to write; it is made where it is missing.
        config: the settings, which are valid; `out` is not read. `model` names the model that is recorded.
        device: where the networks run.
        progress: called as (steps done, steps, "sampling").
        pipeline: the loaded model. None: it is loaded as `config` says.

    Returns:
        The views, the detail view and the picture with its object cut out, as `sample_views` gives them; and for
        records the `seed` that was taken, with `candidates`, seed -> agreement, where it was chosen among several.

    Raises:
        InputError: for an unreadable picture, mask or model, and a picture that cannot be framed as it is asked for.
    """
    cut = images.cut_out(
        config.image,
        config.cutout,
        config.mask,
        max_megapixels=config.max_megapixels,
        crop=not config.framed,
    )
    images.check_framing(cut.rgba, config.framed, config.framing_ratio, str(config.image))
    folder.mkdir(exist_ok=True)
    images.save_image(folder / "mask.png", cut.mask)
    pipeline = pipeline or load_pipeline(config, device)
    started = time.perf_counter()
    views, task_iou, chosen = _best_candidate(pipeline, cut.rgba, config, folder, progress)
    seconds = round(time.perf_counter() - started, 2)
    detail = None
    if config.keep_input:
        detail = detail_view(cut.rgba, views.cameras[0], config.framed, config.framing_ratio)
    record = run_record(
        "sample", config, config, device, task_iou=task_iou, seconds=seconds, cutout=cut.facts(), **chosen
    )
    views.save(folder, record, detail)
    images.save_image(folder / "contact_sheet.png", views.contact_sheet())
    return views, detail, cut, chosen


def _best_candidate(
    pipeline: "Nova3DPipeline", picture: Tensor, config: SampleConfig, folder: Path, progress: Progress | None
) -> tuple[ViewSet, list[float], dict[str, Any]]:
    """The views of the seed whose views agree best, their `task_iou`, and what `write_views` returns for records."""
    seeds = list(dict.fromkeys(config.seeds)) or [config.seed]
    if len(seeds) == 1:
        return *generate_views(pipeline, picture, replace(config, seed=seeds[0]), progress), {"seed": seeds[0]}
    made, scores = {}, {}
    for seed in seeds:
        made[seed] = generate_views(pipeline, picture, replace(config, seed=seed), progress)
        scores[seed] = round(agreement(*made[seed]), 4)
        if config.keep_candidates:
            made[seed][0].save(folder / "candidates" / f"seed{seed}", {"seed": seed, "agreement": scores[seed]})
    best = max(seeds, key=scores.__getitem__)
    log.info("of the seeds %s, %d is taken: its views agree best", scores, best)
    return *made[best], {"seed": best, "candidates": scores}


def detail_view(picture: Tensor, camera: Cameras, framed: bool = False, depth_ratio: float = 1.0) -> ViewSet:
    """The input picture at its own resolution, as view 0's camera sees it.

    Args:
        picture: float [h,w,4] in [0,1], straight alpha; some pixels are object.
        camera: view 0's camera, of any square size.
        framed: the picture is already what the camera sees.
        depth_ratio: see `Nova3DPipeline.__call__`.

    Returns:
        One trusted view without normals. Its object is as large as in the picture, but no longer than 1,024 px over
        `depth_ratio`, and the view is no smaller than the camera's.
    """
    rows, columns = torch.nonzero(picture[..., 3] > 0.5, as_tuple=True)
    longest = int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1
    ratio = images.FOREGROUND_RATIO / depth_ratio
    side = picture.shape[0] if framed else longest / ratio
    size = max(round(side * min(1.0, _DETAIL_PX / (longest * depth_ratio))), camera.width)
    rgba = images.resize(picture, size) if framed else images.frame_object(picture, size, ratio)
    return ViewSet.from_rgba(rgba[None], None, camera.resized(size, size), trusted=(True,))


def generate_views(
    pipeline: "Nova3DPipeline", picture: Tensor, config: SampleConfig, progress: Progress | None = None
) -> tuple[ViewSet, list[float]]:
    """The views of one picture, sampled as `config` says; the model decides what it leaves open.

    Args:
        pipeline: as `load_pipeline` gives it.
        picture: float [h,w,4] in [0,1], straight alpha.
        config: the settings; `image`, `model`, `out`, `dtype`, `low_memory` and `compile` are not read.
        progress: called as (steps done, steps, "sampling").

    Returns:
        The views, and for each of them how far its colours and normals show one outline (`nova3d.metrics.task_iou`).

    Raises:
        InputError: as the pipeline does.
    """
    options: dict[str, Any] = {}
    if progress:

        def report(
            pipeline: "Nova3DPipeline", step: int, timestep: Tensor, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            progress(step + 1, pipeline.num_timesteps, "sampling")
            return tensors

        options["callback_on_step_end"] = report
    own = pipeline.config
    output = pipeline(
        picture,
        num_inference_steps=config.steps,
        guidance_scale=(
            own.guidance_low if config.guidance_low is None else config.guidance_low,
            own.guidance_high if config.guidance_high is None else config.guidance_high,
        ),
        guidance_kind=config.guidance_kind,
        solver=config.solver,
        noise_aug_strength=config.noise_aug,
        seed=config.seed,
        keep_input=config.keep_input,
        keep_known=config.keep_known,
        framed=config.framed,
        depth_ratio=config.framing_ratio,
        **options,
    )
    return output.views[0], [round(value, 4) for value in output.task_iou[0].tolist()]


def load_pipeline(config: SampleConfig, device: str) -> "Nova3DPipeline":
    """The config's model with its memory modes, ready for many pictures; its progress bar is off.

    Args:
        config: the settings; `model`, `dtype`, `low_memory` and `compile` are read.
        device: where the networks run.

    Returns:
        The pipeline.

    Raises:
        InputError: where the model cannot be loaded.
    """
    from nova3d.pipeline import Nova3DPipeline
    from nova3d.pipeline.memory import LOW_MEMORY

    offload = config.low_memory and device != "cpu"
    pipeline = Nova3DPipeline.load(config.model, "cpu" if offload else device, config.dtype)
    pipeline.set_progress_bar_config(disable=True)  # the progress callback takes its place
    if config.low_memory:
        pipeline.set_memory(**asdict(LOW_MEMORY))
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
    if config.compile:
        pipeline.compile_unet()
    return pipeline


def run_record(stage: str, config: Any, sampling: SampleConfig, device: str, **facts: Any) -> dict[str, Any]:
    """Describe a run that samples views, for its record.json.

    Args:
        stage: "sample" or "generate".
        config: the stage's settings.
        sampling: the settings of the sampling in it.
        device: where the networks ran.
        **facts: further entries, the seed among them.

    Returns:
        The record, with the hashes of the picture and of the model's weights.
    """
    from nova3d.pipeline.folder import model_hashes

    return provenance.record(
        stage,
        config,
        image={"file": sampling.image, "sha256": provenance.hash_file(sampling.image)},
        model=model_hashes(sampling.model),
        device=device,
        **facts,
    )
