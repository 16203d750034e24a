#!/usr/bin/env python
"""Cost and quality of the render engines beside the settings of public Objaverse render scripts."""

import os
import time
from pathlib import Path
from typing import Any

from nova3d.cli import common

REFERENCE_VIEWS = 2  # 1024 samples are slow; the others render all views


def main() -> None:
    arguments = common.parser(
        "Render a few objects with the raster engine, with Cycles as nova3d sets it, and with the Cycles settings of "
        "public scripts (one process per object); print CPU seconds per object and PSNR to 1024 samples per pixel.",
        "python benchmarks/render.py assets/objects/pm_burger.glb assets/gso30-sample/mesh.glb",
    )
    arguments.add_argument("meshes", nargs="+", help="mesh files")
    arguments.add_argument("--views", type=int, default=16, help="views on the circle (default: %(default)s)")
    arguments.add_argument("--size", type=int, default=256, help="pixels (default: %(default)s)")
    arguments.add_argument("--light", default="flat", help="studio or flat (default: %(default)s)")
    arguments.add_argument("--only", default="", help="only the rows whose name contains this (default: all)")
    options = arguments.parse_args()

    import torch

    from nova3d.cameras import Cameras, preset
    from nova3d.rendering import blender
    from nova3d.rendering.engine import EngineConfig, Rendered, make_engine

    torch.set_num_threads(1)
    paths = [Path(mesh) for mesh in options.meshes]
    rig = preset(f"ortho{options.views}", options.size)
    worker, public = blender.WORKER, Path(__file__).with_name("public_cycles.py")

    def run(cameras: Cameras, together: bool, settings: str = "", **engine: Any) -> tuple[list[Rendered], float, float]:
        """Pictures of every object, CPU and wall seconds per object, processes and imports included."""
        blender.WORKER = public if settings else worker
        os.environ["PUBLIC_CYCLES"] = settings
        config = EngineConfig(light=options.light, threads=1, **engine)
        started, spent, pictures = time.monotonic(), cpu(), []
        for group in [paths] if together else [[path] for path in paths]:
            made = make_engine(config)
            pictures += [made.render(path, cameras, lambda done: None) for path in group]
            made.close()
        return pictures, (cpu() - spent) / len(paths), (time.monotonic() - started) / len(paths)

    def row(title: str, cameras: Cameras, together: bool, settings: str = "", **engine: Any) -> None:
        if options.only not in title:
            return
        pictures, seconds, wall = run(cameras, together, settings, **engine)
        quality = [psnr(a.rgba[:REFERENCE_VIEWS], b.rgba) for a, b in zip(pictures, reference, strict=True)]
        shown = "-" if engine["name"] == "raster" else f"{sum(quality) / len(quality):.1f}"
        print(f"| {title} | {seconds:.2f} | {wall:.2f} | {3600 / seconds:.0f} | {shown} |", flush=True)

    reference = run(rig[list(range(REFERENCE_VIEWS))], True, "reference", name="blender")[0]
    print(f"{len(paths)} objects, {options.views} views of {options.size} pixels, light {options.light}\n")
    print(
        "| engine | CPU s / object | wall s / object | objects / core-hour | PSNR to 1024 spp |\n|---|---|---|---|---|"
    )
    row("raster (2x2 samples)", rig, True, name="raster")
    for samples, denoise in ((16, True), (32, True), (32, False), (64, False)):
        title = f"Cycles, nova3d, {samples} spp{', OIDN fast' if denoise else ''}"
        row(title, rig, True, name="blender", samples=samples, denoise=denoise)
    row("Cycles, objaverse-rendering (32 spp)", rig, False, "objaverse-rendering", name="blender")
    row("Cycles, objaverse-xl (128 spp)", rig, False, "objaverse-xl", name="blender")
    row("Cycles, objaverse-xl, box filter", rig, False, "objaverse-xl box", name="blender")
    print(
        "\nPSNR of the pixels that the object covers, on white, to nova3d's own settings without denoising; raster has"
    )
    print("another model of light and none.")


def cpu() -> float:
    """CPU seconds of this process and its ended children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def psnr(ours: Any, reference: Any) -> float:
    from nova3d.images import composite

    covered = reference[..., 3] > 0.5
    error = (composite(ours) - composite(reference))[covered].square().mean()
    return float(-10 * error.log10())


if __name__ == "__main__":
    common.run(main)
