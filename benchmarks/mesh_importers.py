"""Compare how nova3d and Blender read the mesh files of a folder: coverage and base colour of four views.

    python benchmarks/mesh_importers.py FOLDER --out table.md

Needs `make blender`, or NOVA3D_BLENDER_PYTHON. Each file is read once by `nova3d.rendering.load_mesh` and once by
Blender's own importer, and both are drawn at 256 px from four sides in their base colour, at the same scale and place.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nova3d import images
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig
from nova3d.rendering.mesh_files import MESH_SUFFIXES
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.transforms import cameras_to_transforms
from nova3d.utils.files import write_text

SOFT_IOU, PSNR = 0.99, 30.0
SIZE, VIEWS, ELEVATION, AZIMUTH = 256, 4, 15.0, 20.0  # a flat object is in no view edge-on
# Samples per pixel and axis of nova3d, per pixel of Blender: few at first, more where the two differ.
SAMPLING = ((2, 8), (8, 128))
HOPELESS = 0.9  # soft IoU that more samples do not mend
SURELY = 0.99  # coverage of a pixel that counts as the object's


class Blender:
    """Blender's importers in a process of their own, which is started again when an importer crashes it."""

    def __init__(self, python: str, folder: Path):
        self.command = [python, "-I", str(Path(__file__).with_name("mesh_importers_blender.py")), str(folder)]
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def draw(
        self, path: Path, scale: float, centre: list[float], cameras: dict[str, Any], samples: int
    ) -> torch.Tensor:
        """Straight-alpha sRGB [v,h,w,4] of a file; raises RuntimeError where the importer does not read it."""
        if self.process is None or self.process.poll() is not None:
            log = (self.folder / "log").open("w")
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdin and self.process.stdout
        request = {"path": str(path.resolve()), "scale": scale, "centre": centre, "cameras": cameras}
        request["samples"] = samples
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("Blender ended")
        fault = json.loads(answer).get("fault")
        if fault:
            raise RuntimeError(fault)
        rgba = torch.from_numpy(np.load(self.folder / "rgba.npy"))
        alpha = rgba[..., 3:].clamp(0, 1)
        return torch.cat([images.linear_to_srgb((rgba[..., :3] / alpha.clamp_min(1e-6)).clamp(0, 1)), alpha], dim=-1)


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """The least soft IoU of the coverage over the views, and the PSNR of the colours where both cover a pixel."""
    a, b = ours[..., 3], theirs[..., 3]
    overlap = torch.minimum(a, b).sum(dim=(1, 2)) / torch.maximum(a, b).sum(dim=(1, 2)).clamp_min(1e-9)
    both = (a > SURELY) & (b > SURELY)
    if not bool(both.any()):
        return float(overlap.min()), float("nan")
    error = (ours[..., :3] - theirs[..., :3])[both].square().mean()
    return float(overlap.min()), min(99.0, float(-10 * torch.log10(error.clamp_min(1e-12))))


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="searched with its subfolders")
    parser.add_argument("--out", type=Path, help="the table, in Markdown; default: the terminal")
    parser.add_argument("--pictures", type=Path, help="a folder for both pictures of every file that differs")
    parser.add_argument("--only", nargs="+", default=[""], help="files whose path holds one of these texts")
    options = parser.parse_args()
    python = os.environ.get("NOVA3D_BLENDER_PYTHON") or EngineConfig.python
    if not Path(python).is_file():
        sys.exit(f"error: no Blender interpreter at '{python}': run `make blender`, or set NOVA3D_BLENDER_PYTHON")
    torch.set_num_threads(1)
    rig = orbit(VIEWS, ELEVATION, SIZE, start_azimuth_deg=AZIMUTH)
    cameras = cameras_to_transforms(rig)
    rows, counts = [], dict.fromkeys(("agree", "differ", "refused", "no reference"), 0)
    files = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in MESH_SUFFIXES and p.is_file())
    with tempfile.TemporaryDirectory() as scratch:
        blender = Blender(python, Path(scratch))
        for path in [p for p in files if any(text in str(p) for text in options.only)]:
            name, began = path.relative_to(options.folder).as_posix(), time.process_time()
            try:
                mesh = load_mesh(path)
                scale, centre = mesh.normalisation()
                placed = mesh.placed(scale, centre)
            except InputError as error:
                verdict, row = "refused", ["", "", str(error).replace(str(path), path.name)]
            else:
                note = "; ".join(mesh.file.missing_textures)
                try:
                    for supersample, samples in SAMPLING:
                        ours = rasterize(placed, rig, supersample, "flat").rgba
                        theirs = blender.draw(path, scale, centre.tolist(), cameras, samples)
                        overlap, psnr = compare(ours, theirs)
                        verdict = "agree" if overlap >= SOFT_IOU and not psnr < PSNR else "differ"
                        if verdict == "agree" or overlap < HOPELESS:
                            break
                except (RuntimeError, InputError) as error:
                    verdict, row = "no reference", ["", "", str(error)]
                else:
                    row = [f"{overlap:.4f}", f"{psnr:.1f}", note and f"missing_texture: {note}"]
                    if verdict == "differ" and options.pictures:
                        _save(options.pictures, name, ours, theirs)
            counts[verdict] += 1
            rows.append(f"| {name} | {verdict} | {' | '.join(row)} |")
            print(f"{rows[-1]} {time.process_time() - began:.1f} CPU s", flush=True)
    head = ["| file | verdict | soft IoU | PSNR | note |", "|---|---|---|---|---|"]
    text = "\n".join([*head, *rows, "", ", ".join(f"{count} {name}" for name, count in counts.items())]) + "\n"
    if options.out:
        write_text(options.out, text)
    else:
        print(text)


def _save(folder: Path, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = images.composite(torch.cat([ours, theirs]), background=0.5)
    images.save_image(folder / f"{name.replace('/', '__')}.png", images.grid(rows, VIEWS))


if __name__ == "__main__":
    main()
