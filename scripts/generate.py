#!/usr/bin/env python
"""One picture to 16 views, 16 normal maps, a textured mesh and a report."""

from nova3d import cli, config


def main() -> None:
    arguments = cli.parser(__doc__, "python scripts/generate.py --image photo.png --out outputs/photo sample.seed=1")
    cli.add_config(arguments, "configs/generate/mini.yaml")
    arguments.add_argument("--image", help="the picture (same as sample.image=)")
    arguments.add_argument("--model", help="a model folder (same as sample.model=)")
    arguments.add_argument("--out", help="the output folder (same as out=)")
    cli.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.generation import GenerateConfig, image_to_mesh

    named = {"sample.image": options.image, "sample.model": options.model, "out": options.out}
    flags = [f"{key}={value}" for key, value in named.items() if value is not None]
    settings = config.load(GenerateConfig, options.config, [*options.overrides, *flags])
    with cli.progress_bar("generating") as bar:
        made = image_to_mesh(settings, cli.pick_device(options.device), bar)
    print(f"views and normal maps: {made.views.resolve()}")
    print(f"textured mesh:         {made.mesh.resolve()}")
    print(f"record:                {made.record.resolve()}")
    print(f"report:                {made.report.resolve()}")


if __name__ == "__main__":
    cli.run(main)
