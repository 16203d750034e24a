#!/usr/bin/env python
"""Encode a training config's shards once, for training from data.cache; running it again goes on where it stopped."""

from nova3d import cli, config
from nova3d.errors import InputError

EXAMPLE = """python scripts/cache_latents.py --config configs/train/paper.yaml data.cache=data/latents
  accelerate launch --config_file configs/accelerate/8gpu.yaml scripts/cache_latents.py data.shards=data/shards"""


def main() -> None:
    arguments = cli.parser(__doc__, EXAMPLE)
    cli.add_config(arguments, "configs/train/paper.yaml")
    cli.add_device(arguments)
    options = arguments.parse_args()
    from nova3d.training.config import TrainConfig

    settings = config.load(TrainConfig, options.config, options.overrides)
    if not settings.data.cache:
        raise InputError("data.cache= must name the folder to write")
    from accelerate import PartialState

    from nova3d.data.multiview import MultiViewDataset
    from nova3d.training.latent_cache import build_cache
    from nova3d.training.module import frozen_networks

    state = PartialState(cpu=cli.pick_device(options.device) == "cpu")
    dataset = MultiViewDataset(settings.data.shards, settings.data.input_views, settings.seed)
    vae, image_encoder = frozen_networks(settings)
    vae.to(state.device)
    if image_encoder is not None:
        image_encoder.to(state.device)
    with cli.progress_bar("latents") as bar:
        folder = build_cache(
            settings.data.cache,
            dataset,
            vae,
            image_encoder,
            part=(state.process_index, state.num_processes),
            on_corrupt=settings.data.on_corrupt,
            progress=bar if state.is_main_process else None,
        )
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"latents: {folder.resolve()}")


if __name__ == "__main__":
    cli.run(main)
