#!/usr/bin/env python
"""Train the autoencoder that turns views and normal maps into latents; running it again resumes."""

from nova3d import cli, config


def main() -> None:
    arguments = cli.parser(
        __doc__, "python scripts/train_autoencoder.py --config configs/train/mini-autoencoder.yaml shards=data/shards"
    )
    cli.add_config(arguments, "configs/train/mini-autoencoder.yaml")
    cli.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.training.autoencoder import AutoencoderTrainConfig, train_autoencoder

    settings = config.load(AutoencoderTrainConfig, options.config, options.overrides)
    with cli.progress_bar("autoencoder") as bar:
        folder = train_autoencoder(settings, cli.pick_device(options.device), bar)
    print(f"autoencoder: {folder.resolve()}")


if __name__ == "__main__":
    cli.run(main)
