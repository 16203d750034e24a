"""A folder of views to a textured mesh, conflict maps, record and report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nova3d import layouts
from nova3d.fusion.output import check_output, maps_folder
from nova3d.notes import mesh_notes, mesh_warnings
from nova3d.settings import GenerateConfig
from nova3d.utils import provenance
from nova3d.utils.files import locked, readable, writable_folder
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.fusion import FusionConfig, FusionResult


@dataclass(frozen=True)
class Reconstructed:
    """What `reconstruct_folder` wrote."""

    mesh: Path
    """The mesh, in the frame that was asked for."""
    folder: Path
    """Conflict maps, refined cameras, record, preview, and what is named below."""
    report: Path
    """The report, one HTML file."""
    turntable: Path
    """A film of the mesh over one turn: turntable.mp4, or turntable.webp where PyAV is not installed."""
    moved: bool
    """Whether nova3d's frame is another than that of the views' files."""
    health: dict[str, Any]
    """The fusion's report."""
    notes: tuple[str, ...]
    """What a user should know of the result, in sentences; the report's."""


def reconstruct_folder(
    views: str | Path,
    out: str | Path,
    config: "FusionConfig",
    device: str = "cpu",
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    source_frame: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    on_views: Callable[[ViewSet], None] | None = None,
) -> Reconstructed:
    """Fuse a folder of views into a mesh with a report, as `nova3d reconstruct` does.

    Args:
        views: the folder, or a transforms.json file.
        out: the mesh to write: .glb, .obj, .ply or .stl. All else goes to the folder NAME_fusion beside it.
        config: the settings.
        device: where the fusion runs.
        layout: a name of `nova3d.layouts.LAYOUTS`, or "auto" to tell it from the files.
        assume: what the layout does not say.
        source_frame: write the mesh in the frame of the views' files. False: in nova3d's.
        resume: continue the fit that an interrupted run of the same settings has saved.
        progress: called with the percentage done, 100 and a line of text.
        on_views: called with the views before they are fused.

    Returns:
        The paths of what was written.

    Raises:
        InputError: for views that cannot be read or show no object, a file that cannot be written, and where another
            reconstruction writes to the same folder.
    """
    from nova3d.fusion import export, reconstruct

    out = check_output(out)
    loaded, detail = layouts.load_for_fusion(views, layout, assume)
    placement = loaded.placement
    if on_views:
        on_views(loaded.views)
    checkpoint = maps_folder(out) / "fit.pt"
    with locked(writable_folder(checkpoint.parent), "another reconstruction"):
        if not resume:
            checkpoint.unlink(missing_ok=True)
        result = reconstruct(loaded.views, config, device, progress, checkpoint, detail)
        entry = provenance.record(
            "fusion",
            config,
            views=Path(views).absolute().name,
            layout=loaded.layout,
            placement=placement.matrix.tolist(),
            frame="source" if source_frame else "nova3d",
            seed=config.optim.seed,
            device=device,
            timings=result.timings,
            report=result.report,
        )
        folder = export.write_maps(out, result.cameras, result.conflict)
        notes = [
            f"{len(loaded.views)} views were read as the layout {loaded.layout}.",
            *mesh_notes(result.report, None),
        ]
        if source_frame:
            export.write(out, placement.mesh_to_source(result.mesh), placement.mesh_to_source(result.solid), entry)
            notes.append(f"{out.name} is in the frame of the views' files; what the report shows is in nova3d's.")
        else:
            result.save(out, entry)
        shown = out  # by the report, which needs a GLB in nova3d's frame
        if source_frame or out.suffix.lower() != ".glb":
            shown = result.save(folder / f"{out.stem}.glb", entry | {"frame": "nova3d"})
        warnings = mesh_warnings(result.report, None)
        report, turntable = _write_report(shown, folder, loaded.views, result, entry, notes, warnings)
        provenance.write(folder, entry | {"history": result.history})
    return Reconstructed(out, folder, report, turntable, not placement.is_identity, result.report, (*notes, *warnings))


def _write_report(
    glb: Path,
    folder: Path,
    views: ViewSet,
    result: "FusionResult",
    record: dict[str, Any],
    notes: list[str],
    warnings: list[str],
) -> tuple[Path, Path]:
    """Write report.html, a turntable and preview.png; returns the first two."""
    from nova3d.rendering.turntable import write_preview, write_turntable
    from nova3d.report import write_report

    defaults = GenerateConfig()
    turntable = write_turntable(glb, folder, defaults.turntable_frames, defaults.turntable_size)
    report = write_report(
        folder / "report.html",
        title=readable(glb.stem).replace("_", " "),
        views=views,
        mesh_path=glb,
        preview=write_preview(glb, folder / "preview.png"),
        cameras=result.cameras,
        conflict=result.conflict,
        health=result.report,
        warnings=warnings,
        notes=notes,
        history=result.history,
        timings=result.timings,
        record=record,
    )
    return report, turntable
