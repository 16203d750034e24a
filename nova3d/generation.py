"""The whole way: one picture to views, a textured mesh and a report, each stage's folder on disk."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nova3d import config as configs
from nova3d import images, provenance
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.folders import writable_folder
from nova3d.fusion.config import FusionConfig
from nova3d.views import ViewSet

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


@dataclass
class SampleConfig:
    """What `scripts/sample.py` reads. steps 0, solver "" and guidance -1 mean the model's own values; keep_input: view
    0 shows the input picture itself; framed: the picture is already what view 0's camera sees."""

    image: str = "assets/images/horse.png"
    model: str = "assets/nova3d-mini"
    out: str = "outputs/views"
    steps: int = 0
    solver: str = ""
    guidance_low: float = -1.0
    guidance_high: float = -1.0
    guidance_kind: str = "triangle"
    noise_aug: float = 0.02
    keep_input: bool = True
    framed: bool = False
    seed: int = 0


@dataclass
class GenerateConfig:
    """What `scripts/generate.py` reads; `sample.out` is overruled by OUT/views."""

    out: str = "outputs/demo"
    sample: SampleConfig = field(default_factory=SampleConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    turntable_frames: int = 24
    turntable_size: int = 320


@dataclass(frozen=True)
class Generated:
    """Where everything of one run is."""

    views: Path
    mesh: Path
    report: Path
    record: Path


def sample_views(config: SampleConfig, device: str, progress: Progress | None = None) -> tuple[Path, ViewSet, Tensor]:
    """Picture to view folder; returns the folder, the views and the picture [h,w,4] as read.

    The output folder is made and the picture checked before the model is loaded.
    """
    from nova3d.pipeline import Nova3DPipeline

    folder = writable_folder(config.out)
    picture = images.read_rgba(config.image)
    pipeline = Nova3DPipeline.load(config.model, device)
    started = time.perf_counter()
    low = config.guidance_low if config.guidance_low >= 0 else pipeline.config.guidance_low
    high = config.guidance_high if config.guidance_high >= 0 else pipeline.config.guidance_high
    try:
        views = pipeline(
            picture,
            steps=config.steps or None,
            solver=config.solver or None,
            guidance=(low, high),
            guidance_kind=config.guidance_kind,  # type: ignore[arg-type]  # refused by view_scales otherwise
            noise_aug=config.noise_aug,
            keep_input=config.keep_input,
            framed=config.framed,
            seed=config.seed,
            progress=progress,
        ).views
    except ValueError as error:  # an unknown solver or guidance kind
        raise InputError(str(error)) from error
    assert isinstance(views, ViewSet)
    entry = provenance.record(
        "sample",
        configs.to_dict(config),
        image={"file": config.image, "sha256": provenance.hash_file(config.image)},
        model=model_hashes(config.model),
        seed=config.seed,
        device=device,
        seconds=round(time.perf_counter() - started, 2),
    )
    return views.save(folder, entry), views, picture


def image_to_mesh(config: GenerateConfig, device: str, progress: Progress | None = None) -> Generated:
    """Picture to `out`/views, `out`/mesh.glb, `out`/report.html and `out`/record.json."""
    from nova3d.fusion import reconstruct
    from nova3d.report import write_report

    out = writable_folder(config.out)
    timings: dict[str, float] = {}
    started = time.perf_counter()
    config.sample.out = str(out / "views")
    folder, views, picture = sample_views(config.sample, device, progress)
    timings["views"] = time.perf_counter() - started

    def fusing(share: float, message: str) -> None:
        if progress:
            progress(round(100 * share), 100, message)

    result = reconstruct(views, config.fusion, device, fusing)
    timings |= {f"fusion: {name}": seconds for name, seconds in result.timings.items()}
    entry = provenance.record(
        "generate",
        configs.to_dict(config),
        image={"file": config.sample.image, "sha256": provenance.hash_file(config.sample.image)},
        model=model_hashes(config.sample.model),
        seed=config.sample.seed,
        device=device,
        health=result.report,
    )
    mesh = result.save(out / "mesh.glb", entry)
    started = time.perf_counter()
    frames = turntable(mesh, config.turntable_frames, config.turntable_size)
    timings["turntable"] = time.perf_counter() - started
    record = provenance.write(out, entry | {"timings": timings})
    report = write_report(
        out / "report.html",
        title=Path(config.sample.image).stem.replace("_", " "),
        input_image=picture,
        input_mask=picture[..., 3],
        views=views,
        mesh_path=mesh,
        turntable=frames,
        history=result.history,
        timings=timings,
        record=entry,
        notes=notes(result.report),
    )
    return Generated(folder, mesh, report, record)


def turntable(mesh: Path, frames: int, size: int) -> Tensor:
    """[n,h,w,3] pictures of a mesh file over one full turn, slightly from above, on white."""
    from nova3d.data import render_object

    cameras = orbit(frames, elevation_deg=10.0, size=size)
    # flat: the generated views' light is already in the texture
    return render_object(mesh, cameras, supersample=2, light="flat", normalise=False).rgb


def notes(health: dict[str, Any]) -> list[str]:
    """What a user should know of the result, in sentences."""
    lines = [
        f"{health['faces']} faces, {'watertight' if health['watertight'] else 'not watertight'}; "
        f"{100 * health['unseen_share']:.0f} % of the texture was seen by no view and is a guess.",
        "All views are at elevation 0: top and underside of the object are guesses of the reconstruction.",
    ]
    if health["conflict_mean"] > 0.1:
        lines.append(f"The views contradict each other (mean conflict {health['conflict_mean']:.2f}).")
    return lines


def model_hashes(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every weights file of a model folder, by its path inside."""
    root = Path(folder)
    return {str(p.relative_to(root)): provenance.hash_file(p) for p in sorted(root.rglob("*.safetensors"))}
