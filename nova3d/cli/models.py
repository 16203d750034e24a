#!/usr/bin/env python
"""Say what loading SVD would do with every key, from the files' headers alone: no GPU, no weights in memory."""

from nova3d import cli


def main() -> None:
    arguments = cli.parser(
        __doc__ or "", "python scripts/inspect_weights.py svd_xt.safetensors --keys --json report.json"
    )
    arguments.add_argument("source", help="SVD's original file, a diffusers folder, one network's folder, or a hub id")
    arguments.add_argument("--variant", default="", help="e.g. fp16: the files of that name in a folder")
    arguments.add_argument("--unet-only", action="store_true", help="leave out the autoencoder and the image encoder")
    arguments.add_argument("--alignment", default="gta", help="the arm to load into (default: %(default)s)")
    arguments.add_argument("--id-mode", default="fold", choices=["fold", "constant"])
    arguments.add_argument("--keys", action="store_true", help="list every key that is not simply copied")
    arguments.add_argument("--json", metavar="FILE", help="write the whole account to FILE")
    options = arguments.parse_args()
    from nova3d.models.svd import inspect_svd, inspect_svd_parts

    inspect = inspect_svd if options.unet_only else inspect_svd_parts
    report = inspect(options.source, options.variant, alignment=options.alignment, id_mode=options.id_mode)
    print(report)
    if options.keys:
        for kind in ("new", "reshaped", "derived", "unused"):
            for name in getattr(report, kind):
                print(f"{kind:9} {name}")
    if options.json:
        report.save(options.json)


if __name__ == "__main__":
    cli.run(main)
