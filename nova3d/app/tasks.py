"""What a worker of the app does: the library's own functions, and the files that a visitor may download."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nova3d import images, layouts
from nova3d.fusion.config import FusionConfig
from nova3d.generation import generate, write_fusion_report
from nova3d.notes import mesh_notes, mesh_warnings
from nova3d.settings import GenerateConfig
from nova3d.utils import provenance
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.pipeline import Nova3DPipeline


@dataclass(frozen=True)
class Result:
    """What a task has made."""

    report: Path
    """The report, one HTML file that shows the mesh in 3D."""
    downloads: dict[str, Path]
    """Files by what the page calls them, in order."""
    notes: tuple[str, ...]
    """What a user should know of the result, in sentences."""


class Task(Protocol):
    """Work for a worker process. It is pickled."""

    @property
    def out(self) -> Path:
        """The folder of the results, which exists and is this task's own."""
        ...

    def run(
        self, device: str, pipeline: "Nova3DPipeline", progress: Progress, on_sheet: Callable[[Path], None]
    ) -> Result:
        """Do the work.

        Args:
            device: where the networks and the fusion run.
            pipeline: the loaded model.
            progress: called as the library's functions call it; what it raises ends the work.
            on_sheet: called with a picture of all views as soon as they are there.

        Returns:
            The files that were written.

        Raises:
            InputError: where the visitor's files or settings do not allow it.
        """
        ...


@dataclass(frozen=True)
class PictureTask:
    """One picture to views and a mesh: `nova3d.generation.generate`."""

    config: GenerateConfig
    """The settings, with the picture, its mask and the folder to write."""

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return Path(self.config.out)

    def run(
        self, device: str, pipeline: "Nova3DPipeline", progress: Progress, on_sheet: Callable[[Path], None]
    ) -> Result:
        """As `Task.run`."""
        made = generate(
            config=self.config,
            device=device,
            progress=progress,
            pipeline=pipeline,
            on_views=lambda views: on_sheet(_write_sheet(self.out, views)),
        )
        return _with_downloads(made.mesh, made.views, made.notes)


@dataclass(frozen=True)
class ViewsTask:
    """Views of any layout to a mesh: `nova3d.fusion.reconstruct`."""

    views: Path
    """The folder of the views."""
    out: Path
    """The folder of the results."""
    fusion: FusionConfig
    """The settings."""
    layout: str = "auto"
    """A name of `nova3d.layouts.LAYOUTS`, or auto."""
    assume: layouts.Assume = field(default_factory=layouts.Assume)
    """What the layout does not say."""

    def run(
        self, device: str, pipeline: "Nova3DPipeline", progress: Progress, on_sheet: Callable[[Path], None]
    ) -> Result:
        """As `Task.run`."""
        from nova3d.fusion import reconstruct

        loaded, detail = layouts.load_for_fusion(self.views, self.layout, self.assume)
        views = loaded.views
        on_sheet(_write_sheet(self.out, views))
        result = reconstruct(views, self.fusion, device, progress, detail=detail)
        entry = provenance.record(
            "fusion",
            self.fusion,
            layout=loaded.layout,
            placement=loaded.placement.matrix.tolist(),
            seed=self.fusion.optim.seed,
            device=device,
            timings=result.timings,
            report=result.report,
        )
        mesh = result.save(self.out / "mesh.glb", entry)
        write_fusion_report(mesh, self.out, views, result, entry)
        provenance.write(self.out, entry)
        said = [f"{len(views)} views were read as the layout {loaded.layout}.", *mesh_notes(result.report, None)]
        return _with_downloads(mesh, None, [*said, *mesh_warnings(result.report, None)])


def _write_sheet(folder: Path, views: ViewSet) -> Path:
    images.save_image(folder / "sheet.png", views.contact_sheet())
    return folder / "sheet.png"


def _with_downloads(mesh: Path, views: Path | None, said: Sequence[str]) -> Result:
    """The result in `mesh`'s folder, with the mesh in other formats and the views as one file."""
    import trimesh

    from nova3d.fusion import export

    folder = mesh.parent
    textured = trimesh.load_mesh(mesh, process=False)
    welded = trimesh.Trimesh(textured.vertices, textured.faces)  # vertices are doubled on the seams of the texture
    export.write(folder / "obj" / "mesh.obj", textured, welded)
    downloads = {
        "GLB mesh": mesh,
        "OBJ mesh (zip)": Path(shutil.make_archive(str(folder / "mesh-obj"), "zip", folder / "obj")),
        "STL mesh": export.write(folder / "mesh.stl", textured, welded),
    }
    if views is not None:
        downloads["Views (zip)"] = Path(shutil.make_archive(str(folder / "views"), "zip", views))
    downloads["Report"] = folder / "report.html"
    downloads["Turntable"] = next(folder.glob("turntable.*"))
    return Result(downloads["Report"], downloads, tuple(said))
