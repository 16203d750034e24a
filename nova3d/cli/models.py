"""The verbs for model files: export (as it is shipped), calibrate (its views) and inspect (SVD's)."""

from collections.abc import Sequence
from pathlib import Path

from nova3d.cli import common
from nova3d.utils.resources import find


def export_parser() -> common.Parser:
    """The arguments of `export`."""
    arguments = common.parser(
        "Write a trained model as the Hugging Face Hub takes it: fp16 safetensors, their checksums, a card with the "
        "facts of the training, and sample pictures. A README.md that is there stays.",
        "nova3d export --model outputs/mini/model --out outputs/my-model",
    )
    arguments.add_argument("--model", required=True, help="the model folder that training wrote, or a shipped model")
    arguments.add_argument("--out", type=Path, required=True, help="the folder to upload")
    arguments.add_argument("--name", default="", help="of the model, for the card (default: the folder's name)")
    arguments.add_argument(
        "--licence", help="an identifier of the Hub's (default: apache-2.0; other where it started from SVD)"
    )
    arguments.add_argument(
        "--image",
        nargs="*",
        type=Path,
        metavar="PICTURE",
        help="sample pictures to show on the card (default: one of the bundled ones; without a value: none)",
    )
    return arguments


def export(argv: Sequence[str] | None = None) -> None:
    """Write a trained model as the Hugging Face Hub takes it: weights, checksums, card, sample pictures."""
    options = export_parser().parse(argv)
    common.check_exists("--model", options.model, model=True)

    from nova3d.pipeline.export import export_model
    from nova3d.pipeline.folder import model_folder

    pictures = [find("assets/images/horse.png", "asset")] if options.image is None else options.image
    size = export_model(model_folder(options.model), options.out, options.name, options.licence, pictures)
    common.closing(
        {"model": options.out, "card": options.out / "README.md"},
        f"{size / 1e6:.1f} MB of weights in float16",
        f"read the card, then: hf upload OWNER/NAME {options.out}",
    )


def calibrate_parser() -> common.Parser:
    """The arguments of `calibrate`."""
    arguments = common.parser(
        "Measure how reliable a model's views are, on objects with known views that it was not trained on. "
        "calibration.json in the model's folder then tells the fusion how the views' masks count.",
        "nova3d calibrate --model outputs/mini/model --shards JOB/val --objects 40",
    )
    arguments.add_argument("--model", required=True, help="a model folder")
    arguments.add_argument("--shards", nargs="+", required=True, help="folders of held-out shards of the training data")
    arguments.add_argument("--objects", type=int, default=40, help="of each folder, at most (default: %(default)s)")
    common.add_device(arguments)
    return arguments


def calibrate(argv: Sequence[str] | None = None) -> None:
    """Measure how reliable a model's views are, and keep that in the model's folder for the fusion."""
    options = calibrate_parser().parse(argv)
    common.check_exists("--model", options.model, model=True)
    common.check_exists("--shards", *options.shards)

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
    arguments.add_argument("--variant", help="e.g. fp16: the files of that name in a folder")
    arguments.add_argument("--unet-only", action="store_true", help="leave out the autoencoder and the image encoder")
    arguments.add_argument("--alignment", default="gta", help="the arm to load into (default: %(default)s)")
    arguments.add_argument("--id-mode", default="fold", choices=["fold", "constant"])
    arguments.add_argument("--keys", action="store_true", help="list every key that is not simply copied")
    arguments.add_argument("--json", metavar="FILE", help="write the whole report to FILE")
    return arguments


def inspect(argv: Sequence[str] | None = None) -> None:
    """Print what loading SVD does with every key, from the files' headers alone."""
    options = inspect_parser().parse(argv)
    common.check_exists("source", options.source, model=True)

    from nova3d.models.svd import inspect_svd, inspect_svd_parts
    from nova3d.models.unet import NovaUNet

    inspection = inspect_svd if options.unet_only else inspect_svd_parts
    settings = {"alignment": options.alignment, "id_mode": options.id_mode}
    report = inspection(NovaUNet, options.source, options.variant, **settings)
    print(report)
    if options.keys:
        for kind in ("new", "reshaped", "derived", "unused"):
            for name in getattr(report, kind):
                print(f"{kind:9} {name}")
    if options.json:
        report.save(options.json)
