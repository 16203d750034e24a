#!/usr/bin/env python
"""Compare the raster engine's silhouettes with the published GSO-30 renders: intersection over union per object."""

from pathlib import Path

from nova3d.cli import common


def main() -> None:
    arguments = common.parser(
        "Draw every GSO-30 mesh from the published cameras and compare its mask with the published alpha.",
        "python benchmarks/gso30_silhouettes.py data/gso30",
    )
    arguments.add_argument("folder", help="cameras.json and one folder per object: mesh.glb, 000.webp ... 015.webp")
    # The published alpha is one sample at each pixel's centre; an even number of samples here has none there.
    arguments.add_argument("--supersample", type=int, default=1, help="samples per pixel and axis (default: 1)")
    arguments.add_argument("--limit", type=int, default=0, help="first so many objects only (default: all)")
    common.add_device(arguments)
    options = arguments.parse_args()

    import numpy as np
    import torch
    from PIL import Image

    from nova3d.cameras import Cameras
    from nova3d.data import render_object
    from nova3d.errors import InputError
    from nova3d.utils.files import read_json

    root = Path(options.folder)
    if not (root / "cameras.json").is_file():
        raise InputError(f"'{root}' holds no cameras.json; give the GSO-30 folder")
    facts = read_json(root / "cameras.json", dict, "cameras")
    # The file's cameras look along +Z with y down (OpenCV), ours along -Z with y up.
    w2c = torch.eye(4, dtype=torch.float64).repeat(len(facts["w2c"]), 1, 1)
    w2c[:, :3] = torch.tensor(facts["w2c"], dtype=torch.float64)
    c2w = torch.linalg.inv(w2c) @ torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    k = facts["K"]
    width, height = facts["image_size"]
    intrinsics = torch.tensor([k[0][0], k[1][1], k[0][2], k[1][2]]).repeat(len(c2w), 1)
    cameras = Cameras(c2w.float(), intrinsics, width, height, "perspective")

    device = common.pick_device(options.device)
    objects = sorted(path.parent for path in root.glob("*/mesh.glb"))[: options.limit or None]
    if not objects:
        raise InputError(f"'{root}' holds no object folder with a mesh.glb")
    print(f"{'object':20}{'mean IoU':>10}{'min IoU':>10}{'worst view':>12}")
    means, minima = [], []
    for folder in objects:
        drawn = render_object(
            folder / "mesh.glb", cameras, supersample=options.supersample, normalise=False, device=device
        )
        alphas = [np.asarray(Image.open(folder / f"{i:03d}.webp").convert("RGBA"))[..., 3] for i in range(len(cameras))]
        published = torch.from_numpy(np.stack(alphas)) > 127
        ours = drawn.mask > 0.5
        iou = (ours & published).sum(dim=(1, 2)) / (ours | published).sum(dim=(1, 2))
        means.append(float(iou.mean()))
        minima.append(float(iou.min()))
        print(f"{folder.name:20}{means[-1]:10.4f}{minima[-1]:10.4f}{int(iou.argmin()):12d}", flush=True)
    print(f"{'all ' + str(len(objects)):20}{sum(means) / len(means):10.4f}{min(minima):10.4f}")


if __name__ == "__main__":
    common.run(main)
