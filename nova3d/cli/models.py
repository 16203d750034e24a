"""The verbs for model files: export (as it is shipped), calibrate (its views) and inspect (SVD's)."""

from collections.abc import Sequence
from pathlib import Path

from nova3d.cli import common


def export_parser() -> common.Parser:
    """The arguments of `export`."""
    arguments = common.parser(
        "Write a trained model as it is shipped: fp16 safetensors and their checksums.",
        "nova3d export --model outputs/mini/model --out assets/nova3d-mini",
    )
    arguments.add_argument("--model", type=Path, required=True, help="the model folder that training wrote")
    arguments.add_argument("--out", type=Path, required=True, help="the folder to ship")
    return arguments


def export(argv: Sequence[str] | None = None) -> None:
    """Write a trained model as it is shipped: fp16 safetensors and their checksums."""
    options = export_parser().parse(argv)

    from nova3d.pipeline.export import export_model

    size = export_model(options.model, options.out)
    print(f"{size / 1e6:.1f} MB of weights: {options.out.resolve()}")


def calibrate_parser() -> common.Parser:
    """The arguments of `calibrate`."""
    arguments = common.parser(
        "Measure how far a model's views can be believed, on objects with known views that it was not trained on. "
        "calibration.json in the model's folder then tells the fusion how the views' masks count.",
        "nova3d calibrate --model outputs/mini/model --shards JOB/val --objects 40",
    )
    arguments.add_argument("--model", required=True, help="a model folder")
    arguments.add_argument("--shards", nargs="+", required=True, help="folders of held-out shards of the training data")
    arguments.add_argument("--objects", type=int, default=40, help="of each folder, at most (default: %(default)s)")
    common.add_device(arguments)
    return arguments


def calibrate(argv: Sequence[str] | None = None) -> None:
    """Measure how far a model's views can be believed, and keep that in the model's folder for the fusion."""
    options = calibrate_parser().parse(argv)

    from nova3d.experiments.calibration import calibrate_model

    device = common.pick_device(options.device)
    with common.progress_bar("calibrating") as bar:
        calibration, path = calibrate_model(options.model, options.shards, options.objects, device, bar)
    for name, value in calibration.facts.items():
        print(f"{name}: {value}")
    common.closing({"written": path}, "", f"nova3d generate photo.png --model {options.model}")


def inspect_parser() -> common.Parser:
    """The arguments of `inspect`."""
    arguments = common.parser(
        "Print what loading SVD does with every key, from the files' headers alone: no GPU, no weights in memory.",
        "nova3d inspect svd_xt.safetensors --keys --json report.json",
    )
    arguments.add_argument("source", help="SVD's original file, a diffusers folder, one network's folder, or a hub id")
    arguments.add_argument("--variant", default="", help="e.g. fp16: the files of that name in a folder")
    arguments.add_argument("--unet-only", action="store_true", help="leave out the autoencoder and the image encoder")
    arguments.add_argument("--alignment", default="gta", help="the arm to load into (default: %(default)s)")
    arguments.add_argument("--id-mode", default="fold", choices=["fold", "constant"])
    arguments.add_argument("--keys", action="store_true", help="list every key that is not simply copied")
    arguments.add_argument("--json", metavar="FILE", help="write the whole report to FILE")
    return arguments


def inspect(argv: Sequence[str] | None = None) -> None:
    """Print what loading SVD does with every key, from the files' headers alone."""
    options = inspect_parser().parse(argv)

    from nova3d.models.svd import inspect_svd, inspect_svd_parts
    from nova3d.models.unet import NovaUNet

    account = inspect_svd if options.unet_only else inspect_svd_parts
    settings = {"alignment": options.alignment, "id_mode": options.id_mode}
    report = account(NovaUNet, options.source, options.variant, **settings)
    print(report)
    if options.keys:
        for kind in ("new", "reshaped", "derived", "unused"):
            for name in getattr(report, kind):
                print(f"{kind:9} {name}")
    if options.json:
        report.save(options.json)
