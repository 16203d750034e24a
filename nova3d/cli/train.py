"""The verbs of training: train (NovaUNet), train_autoencoder and cache_latents."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.utils.progress import silent
from nova3d.utils.resources import find, names

if TYPE_CHECKING:
    from nova3d.training.config import TrainConfig

TRAIN_EXAMPLE = """nova3d train --config configs/train/mini.yaml data.shards=data/shards steps=4000
  accelerate launch --config_file configs/accelerate/8gpu.yaml -m nova3d train --config paper"""
CACHE_EXAMPLE = """nova3d cache-latents --config configs/train/paper.yaml data.cache=data/latents
  accelerate launch --config_file configs/accelerate/8gpu.yaml -m nova3d cache-latents data.shards=data/shards"""


def train_parser() -> common.Parser:
    """The arguments of `train`."""
    arguments = common.parser(
        "Train NovaUNet on rendered views; running the same command again resumes.", TRAIN_EXAMPLE
    )
    common.add_config(arguments, "mini", "nova3d.training.config:TrainConfig", "train")
    common.add_flag(arguments, "--out", "out", "the run's folder")
    arguments.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="FILE",
        help=f"changes to --config: a YAML file, or one of {', '.join(names('config', 'preset'))}",
    )
    common.add_device(arguments)
    arguments.add_argument("--dry-run", action="store_true", help="print size, memory and time, try one step and stop")
    arguments.add_argument("--peak", type=float, help="the device's TFLOP/s, for --dry-run's estimate")
    arguments.add_argument(
        "--ema-profile",
        type=float,
        metavar="SIGMA_REL",
        help="write the finished model with another EMA length, from the snapshots of optim.ema_profiles, and stop",
    )
    return arguments


def train(argv: Sequence[str] | None = None) -> None:
    """Train NovaUNet on rendered views; running the same command again resumes."""
    options = train_parser().parse(argv)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file it saves
    is_main = os.environ.get("RANK", "0") == "0"  # the one process that prints; errors of all are printed
    if not is_main:
        logging.disable(logging.WARNING)

    from nova3d.data.config import shard_folders
    from nova3d.training.config import TrainConfig, preset_overrides

    preset = [change for name in options.preset for change in preset_overrides(find(name, "config", "preset"))]
    options.overrides = [*preset, *options.overrides]
    settings = common.load_config(TrainConfig, "train", options)
    if options.ema_profile is not None:
        from nova3d.training.ema import export_posthoc_model

        print(f"model: {export_posthoc_model(Path(settings.out), options.ema_profile).resolve()}")
        return
    if not options.dry_run:  # its estimate needs no data
        _check_paths(settings)
        common.check_exists("data.cache", *shard_folders(settings.data.cache or ()))
    device = common.pick_device(options.device)
    if options.dry_run:
        from nova3d.training.plan import dry_run

        for line in dry_run(settings, device, options.peak):
            if is_main:
                print(line, flush=True)
        return

    from nova3d.training.trainer import StopRequest
    from nova3d.training.trainer import train as train_unet

    with (
        StopRequest(Path(settings.out)) as stop,
        common.progress_bar("training") if is_main else nullcontext(silent) as bar,
    ):
        outcome = train_unet(settings, device, bar, stop)
    if is_main:
        common.closing(
            {"model" if outcome.finished else "stopped; checkpoint": outcome.path, "run": settings.out},
            _last_losses(settings),
            f"nova3d generate photo.png --model {outcome.path}"
            if outcome.finished
            else "the same command resumes from the checkpoint",
        )


def _check_paths(settings: "TrainConfig") -> None:
    """Check that what a run reads exists, without importing what reads it."""
    from nova3d.data.config import shard_folders
    from nova3d.training.config import NO_ENCODER

    common.check_exists("data.shards", *shard_folders(settings.data.shards))
    common.check_exists("data.validation", *shard_folders(settings.data.validation or ()))
    common.check_exists("svd", settings.svd, model=True)
    common.check_exists("vae", settings.vae)
    common.check_exists("unet", settings.unet)
    common.check_exists("image_encoder", None if settings.image_encoder == NO_ENCODER else settings.image_encoder)


def _last_losses(settings: "TrainConfig") -> str:
    """The losses of the last entry of a run's log."""
    from nova3d.utils.files import read_json_lines

    rows = [row for row in read_json_lines(Path(settings.out) / "stats.jsonl", "log", cut=True) if "loss_rgb" in row]
    if not rows:
        return ""
    last = rows[-1]
    return f"loss {last['loss_rgb']:.4f} of colours and {last['loss_normal']:.4f} of normals at step {last['step']}"


def train_autoencoder_parser() -> common.Parser:
    """The arguments of `train-autoencoder`."""
    arguments = common.parser(
        "Train the autoencoder that turns views and normal maps into latents; running it again resumes.",
        "nova3d train-autoencoder --config configs/train/mini-autoencoder.yaml shards=data/shards",
    )
    schema = "nova3d.training.config:AutoencoderTrainConfig"
    common.add_config(arguments, "mini-autoencoder", schema, "train-autoencoder")
    common.add_flag(arguments, "--out", "out", "the run's folder")
    common.add_device(arguments)
    return arguments


def train_autoencoder(argv: Sequence[str] | None = None) -> None:
    """Train the autoencoder that turns views and normal maps into latents; running it again resumes."""
    options = train_autoencoder_parser().parse(argv)

    from nova3d.data.config import shard_folders
    from nova3d.training.config import AutoencoderTrainConfig

    settings = common.load_config(AutoencoderTrainConfig, "train-autoencoder", options)
    common.check_exists("shards", *shard_folders(settings.shards))
    common.check_exists("start", settings.start)
    common.check_exists("generator", settings.generator, model=True)

    from nova3d.training.autoencoder import train_autoencoder as train_vae

    with common.progress_bar("autoencoder") as bar:
        folder = train_vae(settings, common.pick_device(options.device), bar)
    common.closing({"autoencoder": folder}, "", f"nova3d cache-latents vae={folder} --out data/latents")


def cache_latents_parser() -> common.Parser:
    """The arguments of `cache-latents`."""
    arguments = common.parser(
        "Encode a training config's shards once, for training from data.cache; running it again resumes.",
        CACHE_EXAMPLE,
    )
    common.add_config(arguments, "paper", "nova3d.training.config:TrainConfig", "train")
    common.add_flag(arguments, "--out", "data.cache", "the folder to write")
    common.add_device(arguments)
    return arguments


def cache_latents(argv: Sequence[str] | None = None) -> None:
    """Encode a training config's shards once, for training from data.cache."""
    options = cache_latents_parser().parse(argv)

    from nova3d.training.config import TrainConfig

    settings = common.load_config(TrainConfig, "train", options)
    if not settings.data.cache:
        raise InputError("data.cache= must name the folder to write; so does --out")
    _check_paths(settings)

    from accelerate import PartialState

    from nova3d.data.multiview import MultiViewDataset
    from nova3d.training.devices import use_device
    from nova3d.training.latents import build_cache
    from nova3d.training.networks import frozen_networks
    from nova3d.training.precision import resolve

    device = common.pick_device(options.device)
    use_device(device)
    state = PartialState(cpu=device == "cpu")
    data = settings.data
    dataset = MultiViewDataset(data.shards, data.input_views, settings.seed, data.input_views_per_object)
    vae, image_encoder = frozen_networks(settings)
    vae.to(state.device)
    if image_encoder is not None:
        image_encoder.to(state.device)
    with common.progress_bar("latents") as bar:
        folder = build_cache(
            settings.data.cache,
            dataset,
            vae,
            image_encoder,
            part=(state.process_index, state.num_processes),
            on_corrupt=settings.data.on_corrupt,
            progress=bar if state.is_main_process else silent,
            condition=settings.pipeline.condition,
            precision=resolve(settings.mixed_precision, state.device.type),
            augment=data.augment,
        )
    state.wait_for_everyone()
    if state.is_main_process:
        common.closing({"latents": folder}, f"{len(dataset)} samples encoded", f"nova3d train data.cache={folder}")
