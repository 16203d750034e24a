#!/usr/bin/env python
"""Render a folder of meshes into training shards."""

from pathlib import Path

from nova3d import cli, config


def main() -> None:
    arguments = cli.parser(
        __doc__, "python scripts/render.py --config configs/render/mini.yaml source=objects out=data/shards"
    )
    cli.add_config(arguments, "configs/render/mini.yaml")
    options = arguments.parse_args()
    from nova3d.data.render.job import RenderConfig, render_folder

    settings = config.load(RenderConfig, options.config, options.overrides)
    with cli.progress_bar("rendering") as bar:
        index = render_folder(settings, bar)
    print(f"shards: {Path(index).resolve().parent}")


if __name__ == "__main__":
    cli.run(main)
