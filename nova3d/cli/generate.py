#!/usr/bin/env python
"""Fuse a folder of views into a textured mesh."""

from pathlib import Path

from nova3d import cli


def main() -> None:
    arguments = cli.parser(
        "Fuse the views of one object into a textured mesh. The folder may be ours (rgb/, normal/, transforms.json), a "
        "transforms.json of any tool, or the output of a published method: docs/layouts.md lists them.",
        "python scripts/reconstruct.py --views outputs/mug --out outputs/mug.glb --config configs/fusion/cpu.yaml",
    )
    arguments.add_argument("--views", required=True, metavar="FOLDER", help="a view folder")
    arguments.add_argument("--layout", default="auto", help="the folder's layout (default: told from its files)")
    arguments.add_argument(
        "--assume", nargs="+", default=[], metavar="KEY=VALUE", help="what a layout does not say: elevation_deg=30, ..."
    )
    arguments.add_argument("--out", required=True, metavar="FILE", help="the mesh to write: .glb, .obj or .ply")
    arguments.add_argument(
        "--time-budget", type=float, metavar="S", help="seconds, which the schedule is hurried to meet"
    )
    arguments.add_argument("--resume", action="store_true", help="continue the fit an interrupted run has saved")
    cli.add_device(arguments)
    cli.add_config(arguments, "configs/fusion/cpu.yaml")
    options = arguments.parse_args()

    from nova3d import config as configs
    from nova3d import layouts
    from nova3d.fusion import FusionConfig, reconstruct
    from nova3d.fusion.export import check_output, maps_folder, write_maps
    from nova3d.utils import provenance

    out = check_output(options.out)
    config = configs.load(FusionConfig, options.config, options.overrides)
    config.optim.time_budget = options.time_budget or config.optim.time_budget
    assume = configs.load(layouts.Assume, overrides=options.assume)
    loaded = layouts.load(options.views, options.layout, assume=assume)
    views, placement = loaded.views, loaded.placement
    if loaded.layout != "nova3d":  # ours are in their place, even where a generated object is a little off
        views, moved = layouts.normalise(views)
        placement = moved @ placement
    device = cli.pick_device(options.device)
    checkpoint = maps_folder(out) / "fit.pt"
    if not options.resume:
        checkpoint.unlink(missing_ok=True)
    with cli.progress_bar("fusing") as bar:
        result = reconstruct(
            views, config, device, lambda share, message: bar(round(100 * share), 100, message), checkpoint
        )
    entry = provenance.record(
        "fusion",
        configs.to_dict(config),
        views=str(Path(options.views).absolute()),
        layout=loaded.layout,
        placement=placement.matrix.tolist(),
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
    if not placement.is_identity:
        print(f"the mesh is in nova3d's frame; record.json's `placement` leads there from that of '{options.views}'")
    print(f"conflict maps, refined cameras and record: {folder}")
    print(out)


if __name__ == "__main__":
    cli.run(main)
