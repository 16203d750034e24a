#!/usr/bin/env python
"""Fuse true views of real objects and measure the meshes, beside what one would use instead of a fit."""

from pathlib import Path

from nova3d.cli import common
from nova3d.cli.studies import OBJECTS


def main() -> None:
    arguments = common.parser(
        "Render every mesh of a folder from the default rig at 256 px, fuse the views, and compare with the mesh they "
        "came from: seconds, Chamfer distance, normals, texture. Rows are kept; the same command goes on.",
        "python benchmarks/fusion.py --objects data/gso --out outputs/fusion --arms full carving",
    )
    arguments.add_argument("--objects", required=True, type=Path, metavar="FOLDER", help=OBJECTS)
    arguments.add_argument("--limit", type=int, default=0, help="how many of them, by name (default: all)")
    arguments.add_argument("--out", type=Path, default=Path("outputs/benchmark-fusion"), help="(default: %(default)s)")
    arguments.add_argument(
        "--arms", nargs="+", default=["full", "carving", "poisson"], help="full, carving, poisson (default: all three)"
    )
    arguments.add_argument(
        "--workers", type=int, default=1, help="processes of one thread each (default: 1, all threads)"
    )
    common.add_device(arguments)
    common.add_config(arguments, "configs/fusion/cpu.yaml", "nova3d.fusion:FusionConfig")
    options = arguments.parse_args()

    from nova3d.experiments.fusion import BENCHMARK, per_object, report, run
    from nova3d.experiments.objects import object_names
    from nova3d.fusion import FusionConfig
    from nova3d.utils.files import write_text

    config = common.load_config(FusionConfig, "fusion", options)
    names = object_names(options.objects, meshes_only=True)[: options.limit or None]
    cases = [case for case in BENCHMARK if case.arm in options.arms]
    device = common.pick_device(options.device)
    with common.progress_bar("objects") as bar:
        rows = run(options.objects, names, cases, options.out, config, device, options.workers, bar)
    text = "\n".join(part for part in (report(rows), per_object(rows)) if part)
    print(text)
    print(write_text(options.out / "report.md", text))


if __name__ == "__main__":
    common.run(main)
