"""The whole way: one picture to views, a textured mesh and a report, each stage's folder on disk."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nova3d import config as configs
from nova3d import images
from nova3d.cameras import orbit
from nova3d.fusion.config import FusionConfig
from nova3d.utils import provenance
from nova3d.utils.files import writable_folder
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from nova3d.pipeline import Nova3DPipeline

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


@dataclass
class SampleConfig:
    """What `scripts/sample.py` reads. steps 0, solver "" and guidance -1 mean the model's own values."""

    image: str = "assets/images/horse.png"
    model: str = "assets/nova3d-mini"
    out: str = "outputs/views"
    steps: int = 0
    solver: str = ""  # euler, heun
    guidance_low: float = -1.0  # scale at the input view (triangle) or at the first view (linear)
    guidance_high: float = -1.0  # scale behind the object, at the last view (linear) or everywhere (constant)
    guidance_kind: str = "triangle"  # triangle, linear, constant; low = high = 1: no guidance, half the time
    noise_aug: float = 0.02  # deviation of the noise on the condition picture, pixels in [-1,1]
    keep_input: bool = True  # view 0 shows the input picture itself
    framed: bool = False  # the picture is already what view 0's camera sees
    seed: int = 0
    dtype: str = "float32"  # of the networks: float32, float16, bfloat16; the sampler's state is always float32
    # The smallest pieces, and on an accelerator only the network that works: less memory, more time, the same result.
    low_memory: bool = False
    compile: bool = False  # torch.compile of the UNet: pays only where many pictures follow one another


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
    folder = writable_folder(config.out)
    picture = images.read_rgba(config.image)
    pipeline = load_pipeline(config, device)
    started = time.perf_counter()
    views, task_iou = generate_views(pipeline, picture, config, progress)
    entry = provenance.record(
        "sample",
        configs.to_dict(config),
        image={"file": config.image, "sha256": provenance.hash_file(config.image)},
        model=model_hashes(config.model),
        seed=config.seed,
        device=device,
        task_iou=task_iou,
        seconds=round(time.perf_counter() - started, 2),
    )
    return views.save(folder, entry), views, picture


def generate_views(
    pipeline: "Nova3DPipeline", picture: Tensor, config: SampleConfig, progress: Progress | None = None
) -> tuple[ViewSet, list[float]]:
    """The views of one picture [h,w,4], sampled as `config` says; what it leaves open the model decides.

    And of each view, how far its colours and normals show one outline (`nova3d.metrics.task_iou`).
    """
    low = config.guidance_low if config.guidance_low >= 0 else pipeline.config.guidance_low
    high = config.guidance_high if config.guidance_high >= 0 else pipeline.config.guidance_high
    output = pipeline(
        picture,
        steps=config.steps or None,
        solver=config.solver or None,
        guidance=(low, high),
        guidance_kind=config.guidance_kind,  # type: ignore[arg-type]  # refused by the pipeline otherwise
        noise_aug=config.noise_aug,
        keep_input=config.keep_input,
        framed=config.framed,
        seed=config.seed,
        progress=progress,
    )
    assert isinstance(output.views, ViewSet) and isinstance(output.task_iou, Tensor)
    return output.views, [round(value, 4) for value in output.task_iou.tolist()]


def load_pipeline(config: SampleConfig, device: str) -> "Nova3DPipeline":
    """The config's model on `device`, with its memory modes, ready for many pictures."""
    from nova3d.pipeline import Nova3DPipeline
    from nova3d.pipeline.memory import LOW_MEMORY

    offload = config.low_memory and device != "cpu"
    pipeline = Nova3DPipeline.load(config.model, "cpu" if offload else device, config.dtype)
    if config.low_memory:
        pipeline.set_memory(**asdict(LOW_MEMORY))
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
    if config.compile:
        pipeline.compile_unet()
    return pipeline


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
