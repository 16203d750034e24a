#!/usr/bin/env python
"""The README's picture: input, generated views and normal maps, and the mesh, from what nova3d generate wrote."""

from pathlib import Path

from nova3d.cli import common

SHOWN = (0, 2, 4, 6, 8, 10, 12, 14)


def main() -> None:
    arguments = common.parser(__doc__, "python benchmarks/figure.py --run outputs/demo --out docs/images/demo.png")
    arguments.add_argument("--run", type=Path, required=True, help="a folder that nova3d generate wrote")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--size", type=int, default=128)
    options = arguments.parse_args()
    import torch

    from nova3d import images
    from nova3d.cameras import orbit
    from nova3d.data import render_object
    from nova3d.utils.files import read_json
    from nova3d.views import ViewSet

    views = ViewSet.load(options.run / "views")
    picture = images.read_rgba(read_json(options.run / "record.json", dict, "record")["image"]["file"])
    rig = orbit(16, elevation_deg=10.0, size=options.size)
    turn = render_object(options.run / "mesh.glb", rig, light="flat", normalise=False)
    source = images.composite(images.frame_object(picture, options.size, 0.9))
    blank = torch.ones_like(source)
    shown = list(SHOWN)
    frames = [views.rgb[shown], (views.normals[shown] + 1) / 2, turn.rgb[shown]]
    rows = [torch.cat([first[None], row]) for first, row in zip((source, blank, blank), frames, strict=True)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    images.save_image(options.out, images.grid(torch.cat(rows), len(shown) + 1))
    print(options.out.resolve())


if __name__ == "__main__":
    common.run(main)
