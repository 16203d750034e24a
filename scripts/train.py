#!/usr/bin/env python
"""Train NovaUNet on rendered views; running the same command again resumes."""

from nova3d import cli, config


def main() -> None:
    arguments = cli.parser(
        __doc__, "python scripts/train.py --config configs/train/mini.yaml data.shards=data/shards steps=4000"
    )
    cli.add_config(arguments, "configs/train/mini.yaml")
    cli.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.training.config import TrainConfig

    settings = config.load(TrainConfig, options.config, options.overrides)
    from nova3d.training.trainer import train

    with cli.progress_bar("training") as bar:
        folder = train(settings, cli.pick_device(options.device), bar)
    print(f"model: {folder.resolve()}")


if __name__ == "__main__":
    cli.run(main)
