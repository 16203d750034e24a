"""The Blender worker with the sampling settings of public Objaverse render scripts, for `benchmarks/render.py`.

Runs under the interpreter of `make blender` in place of the worker: same scenes, light, cameras and passes; only what
those scripts set for Cycles differs. PUBLIC_CYCLES names the settings. Facts from the scripts' text, not their code:
both limit bounces (diffuse and glossy 1, transparent and transmission 3), shrink the pixel filter to 0.01 and keep
Blender's default denoiser (accurate prefilter, high quality) and its default of no persistent data. "box" keeps the
worker's pixel filter, so that its noise can be compared and not its aliasing.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parents[1] / "nova3d/rendering/blender_worker"
SAMPLES = {"objaverse-xl": 128, "objaverse-xl box": 128, "objaverse-rendering": 32, "reference": 1024}


def main() -> None:
    sys.path.insert(0, str(WORKER))
    import bpy
    import render_setup

    ours, name = render_setup.reset, os.environ["PUBLIC_CYCLES"]

    def reset(settings: dict[str, Any]) -> None:
        ours(settings)
        scene = bpy.context.scene
        cycles = scene.cycles
        cycles.samples = SAMPLES[name]
        if name == "reference":
            cycles.use_denoising = cycles.use_adaptive_sampling = False
            return
        cycles.diffuse_bounces = cycles.glossy_bounces = 1
        cycles.transparent_max_bounces = cycles.transmission_bounces = 3
        if not name.endswith("box"):
            cycles.pixel_filter_type, cycles.filter_width = "BLACKMAN_HARRIS", 0.01
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.denoising_prefilter, cycles.denoising_quality = "ACCURATE", "HIGH"
        scene.render.use_persistent_data = False

    render_setup.reset = reset
    runpy.run_path(str(WORKER / "__main__.py"), run_name="__main__")


if __name__ == "__main__":
    main()
