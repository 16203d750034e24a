#!/usr/bin/env python
"""Load SVD's UNet into NovaUNet on the CPU and print what became of every key."""

from nova3d import cli


def main() -> None:
    arguments = cli.parser(
        __doc__, "python scripts/inspect_weights.py stable-video-diffusion-img2vid-xt --alignment gta"
    )
    arguments.add_argument("source", help="a diffusers folder of SVD, its UNet's folder, or a hub id")
    arguments.add_argument("--variant", default="", choices=["", "fp16"])
    arguments.add_argument("--alignment", default="gta")
    arguments.add_argument("--id-mode", default="fold", choices=["fold", "constant"])
    arguments.add_argument("--keys", action="store_true", help="list every key that was not simply copied")
    options = arguments.parse_args()
    from nova3d.errors import InputError
    from nova3d.models.svd import load_svd

    try:
        _, report = load_svd(options.source, options.variant, alignment=options.alignment, id_mode=options.id_mode)
    except ValueError as error:  # an unknown arm
        raise InputError(str(error)) from error
    print(report)
    if options.keys:
        for kind in ("new", "reshaped", "derived", "unused"):
            for name in getattr(report, kind):
                print(f"{kind:9} {name}")


if __name__ == "__main__":
    cli.run(main)
