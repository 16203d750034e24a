#!/usr/bin/env python
"""Train NovaUNet on rendered views; running the same command again resumes."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path

from nova3d import cli, config

EXAMPLE = """python scripts/train.py --config configs/train/mini.yaml data.shards=data/shards steps=4000
  accelerate launch --config_file configs/accelerate/8gpu.yaml scripts/train.py --config configs/train/paper.yaml"""


def main() -> None:
    arguments = cli.parser(__doc__, EXAMPLE)
    cli.add_config(arguments, "configs/train/mini.yaml")
    arguments.add_argument(
        "--preset", action="append", default=[], metavar="FILE", help="a YAML of changes to --config"
    )
    cli.add_device(arguments)
    arguments.add_argument("--dry-run", action="store_true", help="print size, memory and time, try one step and stop")
    arguments.add_argument("--peak", type=float, default=0.0, help="the device's TFLOP/s, for --dry-run's estimate")
    arguments.add_argument(
        "--ema-profile",
        type=float,
        default=0.0,
        metavar="SIGMA_REL",
        help="write the finished model with another EMA length, from the snapshots of optim.ema_profiles, and stop",
    )
    options = arguments.parse_args()
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file it saves
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes one; errors are heard from all
    if not speaks:
        logging.disable(logging.WARNING)
    from nova3d.training.config import TrainConfig, changes

    overrides = [change for preset in options.preset for change in changes(preset)] + options.overrides
    settings = config.load(TrainConfig, options.config, overrides)
    if options.ema_profile:
        from nova3d.training.profiles import export_profile

        print(f"model: {export_profile(Path(settings.out), options.ema_profile).resolve()}")
        return
    device = cli.pick_device(options.device)
    if options.dry_run:
        from nova3d.training.plan import dry_run

        for line in dry_run(settings, device, options.peak):
            if speaks:
                print(line, flush=True)
        return
    from nova3d.training.signals import StopRequest
    from nova3d.training.trainer import train

    with StopRequest(Path(settings.out)) as stop, cli.progress_bar("training") if speaks else nullcontext() as bar:
        outcome = train(settings, device, bar, stop)
    if speaks:
        print(f"{'model' if outcome.finished else 'stopped; checkpoint'}: {outcome.path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
