#!/usr/bin/env python
"""One picture of the same objects' views from several folders: for every object and folder a row of colours and one of
normals. View 0, the input, is among them."""

from pathlib import Path

from nova3d.cli import common

SHOWN = 8  # views, spread over all


def main() -> None:
    arguments = common.parser(
        __doc__,
        "python benchmarks/compare_views.py --folders OUT/references OLD/views/seed0 OUT/views/seed0 --names Dino_3 "
        "--out pictures.png",
    )
    arguments.add_argument("--folders", type=Path, nargs="+", required=True, help="each holds OBJECT/ as views")
    arguments.add_argument("--names", nargs="+", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()
    import torch

    from nova3d import images
    from nova3d.views import ViewSet

    rows = []
    for name in options.names:
        for folder in options.folders:
            views = ViewSet.load(folder / name)
            shown = views[:: max(1, len(views) // SHOWN)]
            rows += [shown.rgb, (shown.normals + 1) / 2]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    images.save_image(options.out, images.grid(torch.cat(rows), len(rows[0])))
    print(options.out.resolve())


if __name__ == "__main__":
    common.run(main)
