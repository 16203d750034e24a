#!/usr/bin/env python
"""Pictures to meshes: how well each mesh agrees with its picture, in how many parts it is, and how long it took."""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nova3d.cli import common

COLUMNS = {
    "input IoU": ("input_iou", 3),
    "input PSNR, dB": ("input_psnr", 2),
    "parts of the mesh": ("parts", 0),
    "parts seen": ("parts_seen", 0),
    "parts of the picture": ("parts_of_picture", 0),
    "conflict": ("conflict_mean", 2),
    "CPU seconds": ("cpu_seconds", 0),
    "seconds": ("seconds", 0),
}
SIDES_DEG = (0, 45, 90, 180, 270)
"""Azimuths in degrees from which a sheet shows a mesh."""
SHEET_PX, SHEET_SPAN = 224, 1.2  # pixels of a picture in a sheet, and the world units that it spans


def main() -> None:
    arguments = common.parser(
        "Run `generate` on every picture of a folder and table how well the meshes agree with the pictures. Rows are "
        "kept in OUT; the same command goes on where it stopped.",
        "python benchmarks/pictures.py --pictures assets/images --out outputs/pictures",
    )
    arguments.add_argument("--pictures", required=True, type=Path, metavar="FOLDER", help="a folder of pictures")
    arguments.add_argument("--names", nargs="+", help="the pictures to take, without suffix (default: all)")
    arguments.add_argument("--out", type=Path, default=Path("outputs/pictures"), help="(default: %(default)s)")
    common.add_device(arguments)
    common.add_config(arguments, "configs/generate/mini.yaml", "nova3d.generation:GenerateConfig")
    options = arguments.parse_args()

    from nova3d import images
    from nova3d.errors import InputError
    from nova3d.generation import GenerateConfig
    from nova3d.utils.files import read_json, write_json, write_text

    config = common.load_config(GenerateConfig, "generate", options)
    found = {path.stem: path for path in sorted(options.pictures.glob("*")) if path.suffix in images.IMAGE_SUFFIXES}
    names = options.names or list(found)
    if missing := [name for name in names if name not in found]:
        raise InputError(f"'{options.pictures}' has no picture '{missing[0]}'")
    if not names:
        raise InputError(f"'{options.pictures}' has no pictures ({', '.join(sorted(images.IMAGE_SUFFIXES))})")
    device = common.pick_device(options.device)
    rows = {}
    for name in names:
        folder = options.out / name
        if not (folder / "row.json").is_file():
            row = measure(found[name], replace(config, out=str(folder)), device)
            write_json(folder / "row.json", row)
        rows[name] = read_json(folder / "row.json", dict, "row")
        print(name, *(f"{label} {rows[name][key]:.{digits}f}" for label, (key, digits) in COLUMNS.items()), flush=True)
    for number, part in enumerate(rows_of_sheet(names)):
        images.save_image(options.out / f"sheet{number}.png", sheet({options.out / name: found[name] for name in part}))
    text = table(rows)
    write_text(options.out / "table.md", text)
    print(text)
    print((options.out / "table.md").resolve())


def measure(picture: Path, config: Any, device: str) -> dict[str, Any]:
    """Generate one picture's mesh; the row of the table."""
    from nova3d.generation import generate
    from nova3d.utils.files import read_json

    wall, cpu = time.perf_counter(), _cpu_seconds()
    made = generate(picture, config=config, device=device)
    row = read_json(made.record, dict, "record")
    return {
        **row["agreement"],
        "parts": row["health"]["components"],
        "conflict_mean": row["health"]["conflict_mean"],
        "faces": row["health"]["faces"],
        "cpu_seconds": _cpu_seconds() - cpu,
        "seconds": time.perf_counter() - wall,
        "timings": row["timings"],
        "commit": row["commit"],
    }


def _cpu_seconds() -> float:
    """CPU seconds of this process and of the programs that it ran."""
    return sum(os.times()[:4])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows, their median and the worst value of each column, in Markdown."""
    lines = ["| picture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]

    def line(label: str, values: dict[str, float]) -> str:
        return f"| {label} | " + " | ".join(f"{values[key]:.{digits}f}" for key, digits in COLUMNS.values()) + " |"

    lines += [line(name, row) for name, row in rows.items()]
    columns = {key: [row[key] for row in rows.values()] for key, _ in COLUMNS.values()}
    lines.append(line("**median**", {key: statistics.median(values) for key, values in columns.items()}))
    higher = {"input_iou", "input_psnr"}
    worst = {key: (min if key in higher else max)(values) for key, values in columns.items()}
    lines.append(line("**worst**", worst))
    wrong = sum(row["parts"] != row["parts_of_picture"] for row in rows.values())
    commits = ", ".join(sorted({str(row["commit"]) for row in rows.values()}))
    return (
        "\n".join(lines)
        + f"\n\n{wrong} of {len(rows)} meshes have not as many parts as the picture. Commit {commits}.\n"
    )


def rows_of_sheet(names: list[str], at_once: int = 10) -> Iterator[list[str]]:
    """The names in groups, one per sheet."""
    for start in range(0, len(names), at_once):
        yield names[start : start + at_once]


def sheet(pictures: dict[Path, Path]) -> Any:
    """[h,w,3] a row per output folder of `generate`: its picture, then its mesh from SIDES_DEG."""
    import torch

    from nova3d import images
    from nova3d.cameras import orbit
    from nova3d.data import render_object

    shown = []
    for folder, file in pictures.items():
        picture = images.frame_object(images.read_rgba(file), SHEET_PX, 1 / SHEET_SPAN)
        cameras = orbit(360 // 45, size=SHEET_PX, span=SHEET_SPAN)[[angle // 45 for angle in SIDES_DEG]]
        drawn = render_object(folder / "mesh.glb", cameras, supersample=2, light="flat", normalise=False)
        shaded = render_object(folder / "mesh.glb", cameras[[1]], supersample=2, normalise=False)
        normals = (shaded.normals + 1) / 2 * shaded.mask[..., None] + (1 - shaded.mask[..., None])
        shown += [images.composite(picture)[None], drawn.rgb, normals]
    return images.grid(torch.cat(shown), len(SIDES_DEG) + 2)


if __name__ == "__main__":
    common.run(main)
