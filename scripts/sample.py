#!/usr/bin/env python
"""Generate 16 views and 16 normal maps of the object in a picture."""

from nova3d import cli, config


def main() -> None:
    arguments = cli.parser(
        __doc__, "python scripts/sample.py --config configs/sample/mini.yaml image=photo.png out=outputs/views seed=1"
    )
    cli.add_config(arguments, "configs/sample/mini.yaml")
    cli.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.generation import SampleConfig, sample_views

    settings = config.load(SampleConfig, options.config, options.overrides)
    with cli.progress_bar("sampling") as bar:
        folder, views, _ = sample_views(settings, cli.pick_device(options.device), bar)
    print(f"{len(views)} views and normal maps: {folder.resolve()}")


if __name__ == "__main__":
    cli.run(main)
