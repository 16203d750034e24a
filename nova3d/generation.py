"""One picture to views, a textured mesh and a report, each stage's folder on disk."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nova3d import config as configs
from nova3d.notes import mesh_notes, mesh_warnings, model_note, picture_notes, picture_warnings
from nova3d.sampling import run_record, write_views
from nova3d.settings import GenerateConfig, results_folder
from nova3d.utils import provenance, resources
from nova3d.utils.files import filling, locked, readable
from nova3d.utils.progress import Progress, silent
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.evaluation.input_view import InputAgreement
    from nova3d.fusion import FusionConfig
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)

_NO_FRONT = (
    "sample.depth_ratio does not reach the mesh: none of the views is the picture itself, seen level and from the "
    "front (sample.keep_input=true keeps it)."
)


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
    """One picture to views, normal maps, a textured mesh and a report, as `nova3d generate` makes them.

    Args:
        image: the picture's file. None: `config.sample.image`.
        out: the folder to write. None: `config.out`, and where that is None too outputs/NAME, NAME being the picture's.
        config: the settings. None: `default_config()`.
        device: where the networks and the fusion run.
        progress: called as (done, total, stage) while it samples and fuses.
        pipeline: the loaded model, for many pictures in a row. None: it is loaded as `config.sample` says.
        on_views: called with the views as soon as they are sampled, before they are fused.

    Returns:
        The paths of what was written: `out`/views, `out`/mesh.glb, `out`/report.html, `out`/record.json,
        `out`/turntable.mp4 and `out`/preview.png.

    Raises:
        InputError: for settings outside their ranges, an unreadable picture or model, an unwritable folder, a folder
            `views` in it that is no earlier result's, views without an object, and where another generation is at work
            in `out`. A result that was there before stays whole.
    """
    config = config or default_config()
    model = config.sample.model if pipeline is None else pipeline.source
    sampling = replace(config.sample, image=str(image or config.sample.image), model=model)
    config = replace(config, out=str(out) if out else config.out, sample=sampling)
    configs.validate(config)
    folder = results_folder(config)
    config = replace(config, out=str(folder), sample=replace(sampling, out=str(folder / "views")))
    with locked(folder, "another generation"), filling(folder, stale=("turntable.*",)) as aside:
        generated = _generate_into(aside, config, device, progress, pipeline, on_views)
    return generated.moved(folder)


def _generate_into(
    folder: Path,
    config: GenerateConfig,
    device: str,
    progress: Progress | None,
    pipeline: "Nova3DPipeline | None",
    on_views: Callable[[ViewSet], None] | None,
) -> Generated:
    """Generate into an empty folder, which takes its place when it is complete."""
    from nova3d.evaluation.input_view import input_agreement
    from nova3d.fusion import reconstruct
    from nova3d.metrics import INPUT_SIZE
    from nova3d.pipeline.folder import model_limits
    from nova3d.pipeline.pipeline import prepare_image
    from nova3d.rendering.turntable import write_preview, write_turntable
    from nova3d.report import write_report

    sampling = config.sample
    timings: dict[str, float] = {}
    started = time.perf_counter()
    view_folder = folder / "views"
    views, detail, cut, chosen = write_views(view_folder, sampling, device, progress, pipeline)
    timings["views"] = time.perf_counter() - started
    if on_views:
        on_views(views)

    fusion, unused = _with_depth(config, views)
    result = reconstruct(views, fusion, device, progress, detail=detail)
    timings |= {f"fusion: {name}": seconds for name, seconds in result.timings.items()}
    started = time.perf_counter()
    framed = prepare_image(cut.rgba, 0, INPUT_SIZE, sampling.framed, depth_ratio=sampling.framing_ratio)
    agreement = input_agreement(result.mesh, framed, views.cameras[0])
    timings["comparison with the picture"] = time.perf_counter() - started
    about_model = model_note(sampling.model, views.cameras.width)
    facts = mesh_notes(result.report, agreement) + picture_notes(cut, views.cameras)
    warnings = picture_warnings(cut, sampling.elevation_deg, views.cameras) + unused
    warnings += mesh_warnings(result.report, agreement)
    for warning in warnings:
        log.warning("%s", warning)
    notes = [about_model, *facts, *warnings]
    entry = run_record(
        "generate",
        config,
        sampling,
        device,
        health=result.report,
        agreement=asdict(agreement),
        notes=notes,
        cutout=cut.facts(),
        **chosen,
    )
    progress = progress or silent
    progress(0, 2, "drawing the turntable")
    mesh = result.save(folder / "mesh.glb", entry)
    started = time.perf_counter()
    film = write_turntable(mesh, folder, config.turntable_frames, config.turntable_size)
    preview = write_preview(mesh, folder / "preview.png")
    timings["turntable and preview"] = time.perf_counter() - started
    record = provenance.write(folder, entry | {"timings": timings})
    progress(1, 2, "writing the report")
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
    progress(2, 2, "done")
    return Generated(view_folder, mesh, report, record, film, folder / "preview.png", agreement, tuple(notes))


def _with_depth(config: GenerateConfig, views: ViewSet) -> "tuple[FusionConfig, list[str]]":
    """The settings of the fusion with the known depth of `sample.depth_ratio`, and a warning where it has no use."""
    from nova3d.fusion.outline import front_view

    fusion, sample = config.fusion, config.sample
    if sample.depth_ratio is None or fusion.extract.depth_ratio is not None:
        return fusion, []
    if front_view(views) is None:
        return fusion, [_NO_FRONT]
    return replace(fusion, extract=replace(fusion.extract, depth_ratio=sample.depth_ratio)), []


def default_config() -> GenerateConfig:
    """The settings of the bundled model, those of `make demo` (configs/generate/mini.yaml)."""
    return configs.load(GenerateConfig, resources.find("mini", "config", "generate"))
