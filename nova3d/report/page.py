"""One HTML file that shows a whole run: what went in, what came out, how long it took and how to repeat it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nova3d.errors import InputError
from nova3d.report.pictures import data_uri, normals_on_white, to_numpy
from nova3d.report.plots import loss_charts
from nova3d.report.style import CSS, JS

if TYPE_CHECKING:
    from nova3d.views import ViewSet

MAX_SIDE = 512  # pixels; larger pictures are made smaller, so that a report stays a few megabytes


def write_report(
    path: str | Path,
    *,
    title: str,
    input_image: Any,
    input_mask: Any,
    views: "ViewSet",
    mesh_path: str | Path | None = None,
    turntable: Any = None,
    history: Sequence[Mapping[str, Any]] = (),
    timings: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a self-contained HTML report to `path` and return it.

    Arrays may be numpy or torch, float [0,1] or uint8. input_image: [h,w,3] or, with straight alpha, [h,w,4].
    input_mask: [h,w]. views: v views with normals, of any rig. mesh_path: an existing GLB, linked relative to the
    report. turntable: [n,h,w,3] frames of the mesh over one full turn, camera azimuth growing. history: rows of
    losses (see `plots.loss_charts`). timings: stage -> seconds, in order. record: provenance, shown as it is. notes:
    sentences shown at the top. What is None or empty has no place on the page. Raises InputError where the mesh is
    missing, a picture has the wrong shape or `path` cannot be written.
    """
    path = Path(path)
    frames = [] if turntable is None else [data_uri(frame, MAX_SIDE) for frame in _frames(turntable)]
    sections = [
        _header(title, record or {}, notes),
        _hero(input_image, input_mask, frames),
        _download(mesh_path, path),
        _views(views),
        _section("Losses", f'<div class="charts">{charts}</div>' if (charts := loss_charts(history)) else ""),
        _section("Time", _timings(timings or {})),
        _section("Provenance", _provenance(record or {})),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{CSS}</style></head>\n'
        f"<body><main>\n{''.join(sections)}</main>\n<dialog><div></div><p></p></dialog>\n"
        f'<script type="application/json" id="frames">{json.dumps(frames)}</script>\n'
        f"<script>{JS}</script></body></html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report '{path}': {error.strerror or error}") from error
    return path


def _header(title: str, record: Mapping[str, Any], notes: Sequence[str]) -> str:
    made = [str(record[key]) for key in ("created", "nova3d", "commit") if record.get(key)]
    if record.get("nova3d"):
        made[made.index(str(record["nova3d"]))] = f"nova3d {record['nova3d']}"
    line = f'<p class="soft">{escape(" · ".join(made))}</p>' if made else ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<header><h1>{escape(title)}</h1>{line}{f'<ul>{items}</ul>' if items else ''}</header>\n"


def _hero(image: Any, mask: Any, frames: list[str]) -> str:
    pictures = _figure(data_uri(image, MAX_SIDE), "Input", "input picture") + _figure(
        data_uri(mask, MAX_SIDE), "Its mask", "mask of the input picture"
    )
    if not frames:
        return f'<h2>Input</h2><div class="hero still">{pictures}</div>\n'
    stage = (
        f'<figure class="stage"><canvas width="{MAX_SIDE}" height="{MAX_SIDE}" role="img" '
        'aria-label="turntable of the mesh; drag to turn"></canvas><div class="controls">'
        f'<button type="button">Play</button><input type="range" min="0" max="{len(frames) - 1}" value="0" '
        'aria-label="turn the mesh"></div><figcaption>Mesh: drag to turn</figcaption></figure>'
    )
    return f'<h2>Input and mesh</h2><div class="hero">{pictures}{stage}</div>\n'


def _figure(uri: str, caption: str, alt: str) -> str:
    return f'<figure><img src="{uri}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _download(mesh_path: str | Path | None, page: Path) -> str:
    if mesh_path is None:
        return ""
    mesh = Path(mesh_path)
    if not mesh.is_file():
        raise InputError(f"mesh '{mesh}' does not exist: write it before its report")
    link = quote(Path(os.path.relpath(mesh.resolve(), page.resolve().parent)).as_posix())
    kilobytes = mesh.stat().st_size / 1e3
    size = f"{kilobytes / 1e3:.1f} MB" if kilobytes >= 1e3 else f"{kilobytes:.0f} kB"
    return f'<a class="download" href="{link}" download>Download {escape(mesh.name)} ({size})</a>\n'


def _views(views: "ViewSet") -> str:
    rgb, normals = to_numpy(views.rgb), normals_on_white(views.normals, views.mask)
    cells = []
    for i, (azimuth, elevation) in enumerate(to_numpy(views.cameras.azimuth_elevation()).tolist()):
        degrees = math.degrees(azimuth)
        label = f"{0.0 if degrees > 359.95 else degrees:.4g}°"
        if abs(elevation) > math.radians(0.05):
            label += f", up {math.degrees(elevation):.3g}°"
        cells.append(
            f'<button type="button"><img src="{data_uri(rgb[i], MAX_SIDE)}" alt="colour at azimuth {label}" '
            f'loading="lazy"><img src="{data_uri(normals[i], MAX_SIDE)}" alt="normals at azimuth {label}" '
            f'loading="lazy"><span>{label}{" input" if i == 0 else ""}</span></button>'
        )
    legend = (
        '<p class="soft">By azimuth from the input view; normals in its frame: red right, green up, blue front.</p>'
    )
    return _section(f"{len(views)} views and normal maps", f'{legend}<div class="views">{"".join(cells)}</div>')


def _timings(timings: Mapping[str, float]) -> str:
    if not timings:
        return ""
    longest, total = max(*timings.values(), 1e-9), math.fsum(timings.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="seconds">{seconds:.1f} s</td>'
        f'<td class="share"><i style="width:{100 * seconds / longest:.1f}%"></i></td></tr>'
        for name, seconds in timings.items()
    )
    last = f'<tr><th scope="row">total</th><td class="seconds">{total:.1f} s</td><td></td></tr>'
    return f'<div class="sheet"><table>{rows}{last}</table></div>'


def _provenance(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    text = escape(json.dumps(record, indent=1, default=str, ensure_ascii=False))
    return f'<details class="sheet"><summary>The run record</summary><pre>{text}</pre></details>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>\n" if content else ""


def _frames(turntable: Any) -> Any:
    frames = to_numpy(turntable)
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise InputError(f"turntable must be [n,h,w,3] with n at least 1, got {list(frames.shape)}")
    return frames
