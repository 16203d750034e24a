#!/usr/bin/env python
"""Fuse a folder of views into a textured mesh."""

from pathlib import Path

from nova3d import cli


def main() -> None:
    arguments = cli.parser(
        "Fuse the views of one object (rgb/, normal/, transforms.json) into a textured mesh.",
        "python scripts/reconstruct.py --views outputs/mug --out outputs/mug.glb --config configs/fusion/cpu.yaml",
    )
    arguments.add_argument("--views", required=True, metavar="FOLDER", help="a view folder")
    arguments.add_argument("--out", required=True, metavar="FILE", help="the mesh to write: .glb, .obj or .ply")
    cli.add_device(arguments)
    cli.add_config(arguments, "configs/fusion/cpu.yaml")
    options = arguments.parse_args()

    from nova3d import config as configs
    from nova3d import provenance
    from nova3d.fusion import FusionConfig, reconstruct
    from nova3d.fusion.export import check_output, write_maps
    from nova3d.views import ViewSet

    out = check_output(options.out)
    config = configs.load(FusionConfig, options.config, options.overrides)
    views = ViewSet.load(options.views)
    device = cli.pick_device(options.device)
    with cli.progress_bar("fusing") as bar:
        result = reconstruct(views, config, device, lambda share, message: bar(round(100 * share), 100, message))
    entry = provenance.record(
        "fusion",
        configs.to_dict(config),
        views=str(Path(options.views).absolute()),
        seed=config.optim.seed,
        device=device,
        timings=result.timings,
        report=result.report,
    )
    result.save(out, entry)
    folder = write_maps(out, result.cameras, result.conflict)
    provenance.write(folder, entry | {"history": result.history})
    report = result.report
    print(
        f"{report['faces']} faces, {report['components']} component(s), "
        f"{'watertight' if report['watertight'] else 'NOT watertight'}, "
        f"{100 * report['unseen_share']:.1f} % of the texture unseen, mean conflict {report['conflict_mean']:.3f}, "
        f"poses moved {report['rotation_deg_mean']:.2f} degrees, {report['seconds']:.0f} s"
    )
    print(f"conflict maps, refined cameras and record: {folder}")
    print(out)


if __name__ == "__main__":
    cli.run(main)
