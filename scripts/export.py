#!/usr/bin/env python
"""Write a trained model as it is shipped: fp16 safetensors and their checksums."""

from pathlib import Path

from nova3d import cli


def main() -> None:
    arguments = cli.parser(__doc__, "python scripts/export.py --model outputs/mini/model --out assets/nova3d-mini")
    arguments.add_argument("--model", type=Path, required=True, help="the model folder that training wrote")
    arguments.add_argument("--out", type=Path, required=True, help="the folder to ship")
    options = arguments.parse_args()
    from nova3d.pipeline.export import export_model

    size = export_model(options.model, options.out)
    print(f"{size / 1e6:.1f} MB of weights: {options.out.resolve()}")


if __name__ == "__main__":
    cli.run(main)
