"""What a worker of the app does: the library's own functions, and the files that a visitor may download."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nova3d import images, layouts
from nova3d.fusion.config import FusionConfig
from nova3d.generation import Generated, generate
from nova3d.reconstruction import Reconstructed, reconstruct_folder
from nova3d.settings import GenerateConfig
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.pipeline import Nova3DPipeline


@dataclass(frozen=True)
class TaskResult:
    """What a task has made."""

    report: Path
    """The report, one HTML file that shows the mesh in 3D."""
    downloads: dict[str, Path]
    """Files by what the page calls them, in order."""
    notes: tuple[str, ...]
    """What a user should know of the result, in sentences."""


class AppTask(Protocol):
    """Work for a worker process. It is pickled."""

    @property
    def out(self) -> Path:
        """The folder of the results, which exists and is this task's own."""
        ...

    def run(
        self, device: str, pipeline: "Nova3DPipeline", progress: Progress, on_sheet: Callable[[Path], None]
    ) -> TaskResult:
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
    """The settings, with the picture and its mask."""
    out: Path
    """The folder of the results."""

    def run(
        self, device: str, pipeline: "Nova3DPipeline", progress: Progress, on_sheet: Callable[[Path], None]
    ) -> TaskResult:
        """As `AppTask.run`."""
        made = generate(
            out=self.out,
            config=self.config,
            device=device,
            progress=progress,
            pipeline=pipeline,
            on_views=lambda views: on_sheet(_write_sheet(self.out, views)),
        )
        return _with_downloads(made, made.views)


@dataclass(frozen=True)
class ViewsTask:
    """Views of any layout to a mesh: `nova3d.reconstruction.reconstruct_folder`."""

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
    ) -> TaskResult:
        """As `AppTask.run`."""
        made = reconstruct_folder(
            self.views,
            self.out / "mesh.glb",
            self.fusion,
            device,
            self.layout,
            self.assume,
            progress=progress,
            on_views=lambda views: on_sheet(_write_sheet(self.out, views)),
        )
        return _with_downloads(made, None)


def _write_sheet(folder: Path, views: ViewSet) -> Path:
    images.save_image(folder / "sheet.png", views.contact_sheet())
    return folder / "sheet.png"


def _with_downloads(made: Generated | Reconstructed, views: Path | None) -> TaskResult:
    """What was made, with the mesh in other formats and the views as one file."""
    import trimesh

    from nova3d.fusion import export

    folder = made.mesh.parent
    textured = trimesh.load_mesh(made.mesh, process=False)
    welded = trimesh.Trimesh(textured.vertices, textured.faces)  # vertices are doubled on the seams of the texture
    export.write(folder / "obj" / "mesh.obj", textured, welded)
    downloads = {
        "GLB mesh": made.mesh,
        "OBJ mesh (zip)": Path(shutil.make_archive(str(folder / "mesh-obj"), "zip", folder / "obj")),
        "STL mesh": export.write(folder / "mesh.stl", textured, welded),
    }
    if views is not None:
        downloads["Views (zip)"] = Path(shutil.make_archive(str(folder / "views"), "zip", views))
    downloads |= {"Report": made.report, "Turntable": made.turntable}
    return TaskResult(made.report, downloads, made.notes)
