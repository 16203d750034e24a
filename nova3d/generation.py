"""One picture to views, a textured mesh and a report, each stage's folder on disk."""

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from nova3d import config as configs
from nova3d import images
from nova3d.cameras import Cameras
from nova3d.config import Sentinel
from nova3d.errors import InputError
from nova3d.fusion.config import FusionConfig
from nova3d.utils import provenance, resources
from nova3d.utils.files import filling, locked, readable, writable_folder
from nova3d.utils.progress import Progress
from nova3d.utils.resources import Shipped
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.evaluation.input_view import InputAgreement
    from nova3d.fusion import FusionResult
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)

# Below these a warning is given. True meshes of scans, measured the same way, reach 0.99 and 29 to 37 dB.
LEAST_INPUT_IOU = 0.93
LEAST_INPUT_PSNR = 20.0  # dB
MOST_CONFLICT = 0.1
MOST_ELEVATION_ERROR_DEG = 5.0
_DETAIL_PX = 1024  # of the object's longest side, at most, in the picture that fusion gets

_CUTOUT_WORDS = {
    "alpha": "cut out by the picture's own transparency",
    "plain": "cut out of its background of one colour",
    "model": "cut out by a network (U-2-Net)",
    "mask": "cut out by the mask that was given",
    "none": "not cut out",
}


@dataclass
class SampleConfig:
    """The keys of `scripts/sample.py`."""

    image: Annotated[str, Shipped("asset")] = "assets/images/horse.png"
    """The picture: a file. Its object is cut out as `cutout` says."""
    model: Annotated[str, Shipped("model")] = "assets/nova3d-mini"
    """A model folder, the name of a shipped model or a hub id."""
    out: str = "outputs/views"
    """The view folder to write."""
    steps: Annotated[int | None, Sentinel(0)] = None
    """Denoising steps; the pipeline calls them num_inference_steps. null: the model's own."""
    solver: str | None = None
    """euler or heun. null: the model's own."""
    guidance_low: Annotated[float | None, Sentinel(-1)] = None
    """Guidance scale at the input view (triangle) or at the first view (linear). null: the model's own."""
    guidance_high: Annotated[float | None, Sentinel(-1)] = None
    """Guidance scale behind the object (triangle), at the last view (linear) or everywhere (constant). null: the
    model's own. Low and high of 1 turn guidance off at half the time."""
    guidance_kind: str = "triangle"
    """triangle: over the azimuth. linear: over the views, as SVD. constant: guidance_high everywhere."""
    noise_aug: float = 0.02
    """Standard deviation of the noise on the condition picture, pixels in [-1,1]; the pipeline's noise_aug_strength."""
    keep_input: bool = True
    """View 0 shows the input picture itself."""
    framed: bool = False
    """The picture is already what view 0's camera sees."""
    cutout: str = "auto"
    """What cuts the object out. alpha: the picture's own. plain: a background of one colour. model: U-2-Net. none: the
    whole picture is the object. auto: alpha where it separates an object, else plain, else model."""
    mask: str | None = None
    """A picture of the same size whose white is the object, instead of `cutout`. null: none."""
    elevation_deg: float = 0.0
    """Degrees from which the picture looks down on the object. It is recorded and compared with the model's input view.
    A model for level pictures cannot use it: a warning says so."""
    max_megapixels: float = images.MAX_MEGAPIXELS
    """Millions of pixels above which a picture is refused before it is decoded."""
    seed: int = 0
    """Of all noise."""
    dtype: str = "float32"
    """Of the networks: float32, float16, bfloat16. The sampler's state is always float32."""
    low_memory: bool = False
    """The smallest pieces, and on an accelerator only the network that works: less memory, more time, the same
    result."""
    compile: bool = False
    """torch.compile of the UNet: pays only where many pictures follow one another."""


@dataclass
class GenerateConfig:
    """The keys of `scripts/generate.py`."""

    out: str = "outputs/demo"
    """The folder to write."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Picture to views; `sample.out` is OUT/views whatever it says."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Views to mesh."""
    turntable_frames: int = 36
    """Pictures of the film of one turn, turntable.mp4."""
    turntable_size: int = 320
    """Their side in pixels."""


@dataclass(frozen=True)
class Generated:
    """What `generate` wrote."""

    views: Path
    """The view folder."""
    mesh: Path
    """The textured mesh, mesh.glb."""
    report: Path
    """The report, one HTML file."""
    record: Path
    """The provenance record, record.json."""
    turntable: Path
    """A film of the mesh over one turn: turntable.mp4, or turntable.webp where PyAV is not installed."""
    preview: Path
    """A picture of the mesh, preview.png."""
    agreement: "InputAgreement"
    """How well the mesh agrees with the picture."""
    notes: tuple[str, ...]
    """What a user should know of the result, in sentences; the report's."""

    def moved(self, folder: Path) -> "Generated":
        """The same files in another folder.

        Args:
            folder: where they are now.

        Returns:
            A copy with the paths there.
        """
        return replace(
            self,
            views=folder / self.views.name,
            mesh=folder / self.mesh.name,
            report=folder / self.report.name,
            record=folder / self.record.name,
            turntable=folder / self.turntable.name,
            preview=folder / self.preview.name,
        )


def generate(
    image: str | Path | None = None,
    out: str | Path | None = None,
    config: GenerateConfig | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    pipeline: "Nova3DPipeline | None" = None,
    on_views: Callable[[ViewSet], None] | None = None,
) -> Generated:
    """One picture to views, normal maps, a textured mesh and a report, as `scripts/generate.py` makes them.

    Args:
        image: the picture's file. None: `config.sample.image`.
        out: the folder to write. None: `config.out`.
        config: the settings. None: `default_config()`.
        device: where the networks and the fusion run.
        progress: called as (done, total, stage) while it samples and fuses.
        pipeline: the loaded model, for many pictures in a row. None: it is loaded as `config.sample` says.
        on_views: called with the views as soon as they are sampled, before they are fused.

    Returns:
        The paths of what was written: `out`/views, `out`/mesh.glb, `out`/report.html, `out`/record.json,
        `out`/turntable.mp4 and `out`/preview.png.

    Raises:
        InputError: for an unreadable picture or model, an unwritable folder, views without an object, and where another
            generation is at work in `out`. A result that was there before stays whole.
    """
    config = config or default_config()
    folder = writable_folder(out or config.out)
    sampling = replace(config.sample, image=str(image or config.sample.image), out=str(folder / "views"))
    config = replace(config, out=str(folder), sample=sampling)
    with locked(folder, "another generation"), filling(folder, stale=("turntable.*",)) as aside:
        made = _generate_into(aside, config, device, progress, pipeline, on_views)
    return made.moved(folder)


def _generate_into(
    folder: Path,
    config: GenerateConfig,
    device: str,
    progress: Progress | None,
    pipeline: "Nova3DPipeline | None",
    on_views: Callable[[ViewSet], None] | None,
) -> Generated:
    """What `generate` does, in a folder that is not yet the user's."""
    from nova3d.evaluation.input_view import input_agreement
    from nova3d.fusion import reconstruct
    from nova3d.metrics import INPUT_SIZE
    from nova3d.pipeline.pipeline import prepare_image
    from nova3d.rendering.turntable import write_preview, write_turntable
    from nova3d.report import write_report

    sampling = config.sample
    timings: dict[str, float] = {}
    started = time.perf_counter()
    view_folder = folder / "views"
    views, detail, cut = _sample_into(view_folder, sampling, device, progress, pipeline)
    timings["views"] = time.perf_counter() - started
    if on_views:
        on_views(views)

    result = reconstruct(views, config.fusion, device, progress, detail=detail)
    timings |= {f"fusion: {name}": seconds for name, seconds in result.timings.items()}
    started = time.perf_counter()
    framed = prepare_image(cut.rgba, 0, INPUT_SIZE, sampling.framed)
    agreement = input_agreement(result.mesh, framed, views.cameras[0])
    timings["comparison with the picture"] = time.perf_counter() - started
    about_model, facts = model_note(sampling.model, views.cameras.width), notes(result.report, agreement)
    about_picture, warnings = picture_notes(cut, sampling.elevation_deg, views.cameras)
    facts += about_picture
    warnings += warnings_of(result.report, agreement)
    said = [about_model, *facts, *warnings]
    for warning in warnings:
        log.warning("%s", warning)
    entry = _record(
        "generate",
        config,
        sampling,
        device,
        health=result.report,
        agreement=asdict(agreement),
        notes=said,
        cutout=cut.facts(),
    )
    mesh = result.save(folder / "mesh.glb", entry)
    started = time.perf_counter()
    film = write_turntable(mesh, folder, config.turntable_frames, config.turntable_size)
    preview = write_preview(mesh, folder / "preview.png")
    timings["turntable and preview"] = time.perf_counter() - started
    record = provenance.write(folder, entry | {"timings": timings})
    report = write_report(
        folder / "report.html",
        title=readable(Path(sampling.image).stem).replace("_", " "),
        views=views,
        input_image=cut.rgba,
        input_mask=cut.mask,
        reference=framed,
        mesh_path=mesh,
        preview=preview,
        cameras=result.cameras,
        conflict=result.conflict,
        health=result.report | asdict(agreement),
        warnings=warnings,
        notes=facts,
        model=[about_model, *model_limits(sampling.model)],
        history=result.history,
        timings=timings,
        record=entry,
    )
    return Generated(view_folder, mesh, report, record, film, folder / "preview.png", agreement, tuple(said))


def write_fusion_report(
    mesh: Path, folder: Path, views: ViewSet, result: "FusionResult", record: dict[str, Any]
) -> Path:
    """Write report.html, a turntable and preview.png for a mesh that was fused from views.

    Args:
        mesh: the mesh that was written. Where it is no GLB, one is written to `folder` for the report.
        folder: where everything goes.
        views: what was fused, with the poses as given.
        result: the mesh and its health.
        record: provenance, shown in the report.

    Returns:
        The report.

    Raises:
        InputError: where a file cannot be written.
    """
    from nova3d.rendering.turntable import write_preview, write_turntable
    from nova3d.report import write_report

    glb = mesh if mesh.suffix.lower() == ".glb" else result.save(folder / f"{mesh.stem}.glb", record)
    defaults = GenerateConfig()
    write_turntable(glb, folder, defaults.turntable_frames, defaults.turntable_size)
    return write_report(
        folder / "report.html",
        title=readable(mesh.stem).replace("_", " "),
        views=views,
        mesh_path=glb,
        preview=write_preview(glb, folder / "preview.png"),
        cameras=result.cameras,
        conflict=result.conflict,
        health=result.report,
        warnings=warnings_of(result.report, None),
        notes=notes(result.report, None),
        history=result.history,
        timings=result.timings,
        record=record,
    )


def default_config() -> GenerateConfig:
    """The settings of the bundled model, those of `make demo` (configs/generate/mini.yaml)."""
    return configs.load(GenerateConfig, resources.find("mini", "config", "generate"))


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
        The view folder, the views, the input picture at its own resolution as view 0 sees it (None where view 0 is
        generated too), and the picture with its object cut out.

    Raises:
        InputError: for an unreadable picture, mask or model, an elevation outside [-90,90], an unwritable folder, and
            where another process samples into it.
    """
    folder = writable_folder(config.out)
    with locked(folder, "another sampling"), filling(folder, stale=("detail",)) as aside:
        views, detail, cut = _sample_into(aside, config, device, progress, pipeline)
    return folder, views, detail, cut


def _sample_into(
    folder: Path,
    config: SampleConfig,
    device: str,
    progress: Progress | None,
    pipeline: "Nova3DPipeline | None",
) -> tuple[ViewSet, ViewSet | None, images.CutOut]:
    """What `sample_views` does, in a folder that is not yet the user's."""
    if not -90 <= config.elevation_deg <= 90:
        raise InputError(f"elevation_deg {config.elevation_deg:g} is not within -90 and 90")
    cut = images.cut_out(
        config.image,
        config.cutout,  # type: ignore[arg-type]  # refused there otherwise
        config.mask,
        max_megapixels=config.max_megapixels,
        crop=not config.framed,
    )
    folder.mkdir(exist_ok=True)
    images.save_image(folder / "mask.png", cut.mask)
    pipeline = pipeline or load_pipeline(config, device)
    started = time.perf_counter()
    views, task_iou = generate_views(pipeline, cut.rgba, config, progress)
    seconds = round(time.perf_counter() - started, 2)
    detail = detail_view(cut.rgba, views.cameras[0], config.framed) if config.keep_input else None
    record = _record("sample", config, config, device, task_iou=task_iou, seconds=seconds, cutout=cut.facts())
    views.save(folder, record, detail)
    images.save_image(folder / "contact_sheet.png", views.contact_sheet())
    return views, detail, cut


def detail_view(picture: Tensor, camera: Cameras, framed: bool = False) -> ViewSet:
    """The input picture at its own resolution, as view 0's camera sees it.

    Args:
        picture: float [h,w,4] in [0,1], straight alpha; some pixels are object.
        camera: view 0's camera, of any square size.
        framed: the picture is already what the camera sees.

    Returns:
        One trusted view without normals. Its object is as large as in the picture, but no longer than 1,024 px, and
        the view is no smaller than the camera's.
    """
    rows, columns = torch.nonzero(picture[..., 3] > 0.5, as_tuple=True)
    longest = int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1
    side = picture.shape[0] if framed else longest / images.FOREGROUND_RATIO
    size = max(round(side * min(1.0, _DETAIL_PX / longest)), camera.width)
    rgba = images.resize(picture, size) if framed else images.frame_object(picture, size)
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
        guidance_kind=config.guidance_kind,  # type: ignore[arg-type]  # refused by the pipeline otherwise
        solver=config.solver,
        noise_aug_strength=config.noise_aug,
        seed=config.seed,
        keep_input=config.keep_input,
        framed=config.framed,
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
    from nova3d.pipeline.pipeline import LOW_MEMORY, Nova3DPipeline

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


def _record(stage: str, config: Any, sampling: SampleConfig, device: str, **facts: Any) -> dict[str, Any]:
    return provenance.record(
        stage,
        config,
        image={"file": sampling.image, "sha256": provenance.hash_file(sampling.image)},
        model=model_hashes(sampling.model),
        seed=sampling.seed,
        device=device,
        **facts,
    )


def model_note(name: str, size: int) -> str:
    """Which model made the views, and what it is, in a sentence; `size` is the pixels of its views."""
    if name in resources.names("model") or Path(name).resolve().parent == resources.root() / "assets":
        return (
            f"Views of {size} px by {Path(name).name}, the bundled model: a demonstration of the method, not of the "
            "quality of a large model."
        )
    return f"Views of {size} px by the model {name}."


def model_limits(name: str) -> list[str]:
    """What a model cannot do: the points of the section "Limits" of its card, as plain text; empty without one."""
    from nova3d.pipeline.pipeline import model_folder

    card = model_folder(name) / "README.md"
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    section = re.search(r"^## Limits\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    points = re.findall(r"^- (.+(?:\n {2}.+)*)", section[1], re.MULTILINE) if section else []
    return [" ".join(point.replace("**", "").split()) for point in points]


def notes(health: dict[str, Any], agreement: "InputAgreement | None") -> list[str]:
    """What a user should know of the result, in sentences.

    Args:
        health: the report of the fusion.
        agreement: of the mesh with the picture; None for views that no model made.

    Returns:
        The sentences.
    """
    lines = [
        f"{health['faces']} faces in {_counted(health['components'], 'part')}, "
        f"{'watertight' if health['watertight'] else 'not watertight'}; "
        f"{100 * health['unseen_share']:.0f} % of the texture was seen by no view and is a guess."
    ]
    if agreement is None:
        return lines
    return [
        f"From the camera of the picture, the mesh's outline has an IoU of {agreement.input_iou:.2f} with the "
        f"picture's, and its colours a PSNR of {agreement.input_psnr:.1f} dB on the object.",
        *lines,
        *_texture_notes(health),
        "All views are at elevation 0: top and underside of the object are guesses of the reconstruction.",
    ]


def picture_notes(cut: images.CutOut, elevation_deg: float, cameras: Cameras) -> tuple[list[str], list[str]]:
    """What was done to the picture and what is assumed of it, and what may be wrong with it.

    Args:
        cut: the picture.
        elevation_deg: the elevation that the user states.
        cameras: of the views; the first is the model's input view.

    Returns:
        Sentences, and warnings.
    """
    own = math.degrees(float(cameras.azimuth_elevation()[0, 1]))
    facts = [
        f"The object was {_CUTOUT_WORDS[cut.method]}; views/mask.png is the mask.",
        f"The picture is taken as orthographic and from {own:.0f} degrees above the object. In a photograph, near "
        "parts are larger.",
    ]
    warnings = list(cut.warnings)
    if abs(elevation_deg - own) > MOST_ELEVATION_ERROR_DEG:
        warnings.append(
            f"The picture is said to look down by {elevation_deg:g} degrees. The model takes every picture as taken "
            f"from {own:.0f} degrees and cannot use this: the object comes out tilted."
        )
    return facts, warnings


def _texture_notes(health: dict[str, Any]) -> list[str]:
    """Whose colours the texture has, where trusted views paint over others."""
    lines = []
    if "trusted_share" in health:
        lines.append(f"The picture paints {100 * health['trusted_share']:.0f} % of the texture, which it sees.")
    if health.get("mirrored_share", 0) > 0.005:
        lines.append(
            f"{100 * health['mirrored_share']:.0f} % has the picture's colours carried through to the sides and the "
            "back: there the model's own colours were measured to be further from the truth."
        )
    return lines


def warnings_of(health: dict[str, Any], agreement: "InputAgreement | None") -> list[str]:
    """What is wrong with a result, in sentences; empty where nothing is.

    Args:
        health: the report of the fusion.
        agreement: of the mesh with the picture; None where there is none.

    Returns:
        The sentences.
    """
    lines = []
    if agreement is not None and agreement.input_iou < LEAST_INPUT_IOU:
        lines.append(f"The mesh does not have the picture's outline (IoU {agreement.input_iou:.2f}).")
    if agreement is not None and not agreement.input_psnr >= LEAST_INPUT_PSNR:
        lines.append(f"The mesh does not have the picture's colours ({agreement.input_psnr:.1f} dB).")
    if agreement is not None and health["components"] > agreement.parts_of_picture:
        lines.append(
            f"The mesh is in {_counted(health['components'], 'part')} where the picture shows "
            f"{_counted(agreement.parts_of_picture, 'part')}."
        )
    if health["conflict_mean"] > MOST_CONFLICT:
        lines.append(f"The views contradict each other (mean conflict {health['conflict_mean']:.2f}).")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def model_hashes(name: str | Path) -> dict[str, str]:
    """SHA-256 of every weight file of a model, by its path inside the model folder."""
    from nova3d.pipeline.pipeline import model_folder

    root = model_folder(name)
    return {str(p.relative_to(root)): provenance.hash_file(p) for p in sorted(root.rglob("*.safetensors"))}
