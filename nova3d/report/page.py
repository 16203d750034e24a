"""An HTML report of a run: the mesh in 3D, the views, measures of the result's quality and how to repeat it."""

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from nova3d.errors import InputError, system_reason
from nova3d.report.pictures import conflict_colours, data_uri, normal_colours, to_numpy
from nova3d.report.plots import bar_chart, loss_charts
from nova3d.utils.files import write_text, writing

if TYPE_CHECKING:
    from nova3d.cameras import Cameras
    from nova3d.views import ViewSet

MAX_SIDE = 512  # pixels; larger pictures are made smaller, so that a report stays a few megabytes
MAX_GLB = 64_000_000  # bytes; a larger mesh is linked, since browsers are slow with pages of that size
_STILL_DEGREES, _STILL_UNITS = 0.005, 5e-4  # smaller motions of a pose round to zero on the page
_HERE = Path(__file__).parent
_MODES = {"texture": "Texture", "normals": "Normals", "clay": "Clay", "wireframe": "Wireframe"}

# Labels of the measures of a mesh on the page, and their formats.
_HEALTH = {
    "faces": ("Faces", "{:,}"),
    "vertices": ("Vertices", "{:,}"),
    "components": ("Pieces", "{:,}"),
    "watertight": ("Watertight", "{}"),
    "boundary_edges": ("Open edges", "{:,}"),
    "non_manifold_edges": ("Edges of more than two faces", "{:,}"),
    "genus": ("Handles", "{:,}"),
    "area": ("Area", "{:.3f}"),
    "volume": ("Volume", "{:.3f}"),
    "unseen_share": ("Texture that no view saw", "{:.1%}"),
    "input_iou": ("Outline in common with the input (IoU)", "{:.3f}"),
    "input_psnr": ("Colours beside the input (PSNR)", "{:.1f} dB"),
    "conflict_mean": ("Mean conflict of the views (0 to 1)", "{:.3f}"),
    "residual_mean": ("Mean colour residual", "{:.3f}"),
}


@dataclass(frozen=True)
class _View:
    """One view as the page shows it; pictures are data URIs by kind ("rgb", "normal", "conflict")."""

    short: str  # below its pictures in the strip
    label: str
    about: str
    pictures: dict[str, str]


def write_report(
    path: str | Path,
    *,
    title: str,
    views: "ViewSet",
    input_image: Any = None,
    input_mask: Any = None,
    reference: Any = None,
    mesh_path: str | Path | None = None,
    preview: Any = None,
    cameras: "Cameras | None" = None,
    conflict: Any = None,
    health: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    model: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] = (),
    timings: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write a self-contained HTML report. Arguments that are None or empty are left out.

    Arrays may be numpy or torch, float in [0,1] or uint8.

    Args:
        path: the file to write.
        title: the page's headline.
        views: v views of any rig.
        input_image: [h,w,3] or, with straight alpha, [h,w,4]: the input picture. View 0 is then called the input.
        input_mask: [h,w], what was taken as the object in the input picture.
        reference: [h,w,3] or [h,w,4], the input picture as the camera of view 0 sees it; it is laid over the mesh.
            Default: view 0.
        mesh_path: an existing GLB in the world frame of `views`. The report holds a copy of it; above MAX_GLB bytes
            it only has a link relative to its own folder.
        preview: [h,w,3] or [h,w,4], a picture of the mesh, shown without a 3D view or until it is loaded.
        cameras: the v refined cameras, which draw the mesh; default: those of the views.
        conflict: [v,h,w] float in [0,1], the conflict maps.
        health: what `FusionResult.report` and `InputAgreement` hold; other keys are left out.
        warnings: sentences on faults of the result, shown at the top.
        notes: sentences on the result.
        model: sentences on the model and its limits.
        history: rows of losses (see `plots.loss_charts`).
        timings: stage -> seconds, in order.
        record: provenance, shown as it is.

    Returns:
        The path.

    Raises:
        InputError: where the mesh is missing, a picture has the wrong shape or `path` cannot be written.
    """
    path, refined = Path(path), cameras or views.cameras
    shown = _views(views, refined, conflict, input_image is not None)
    glb = _read_mesh(mesh_path)
    embedded = glb if glb is not None and len(glb) <= MAX_GLB else None
    run = {
        "rig": _rig(refined),
        "reference": None if reference is None else data_uri(reference, MAX_SIDE),
        "has_input": input_image is not None,
    }
    wide, aspect = "" if embedded else " flat", views.cameras.width / views.cameras.height
    parts = [
        _header(title, record or {}, _download(mesh_path, path, glb)),
        _facts(health or {}),
        _warnings(warnings),
        f'<div class="bench{wide}" style="--aspect: {aspect:.6g}">',
        _stage(preview) if embedded else "",
        _tiles(input_image, input_mask, shown),
        _strip(shown),
        "</div>\n",
        _notes_lists(notes, model),
        '<div class="cards">',
        _card("Mesh", _health(health or {})),
        "<div>",
        _card("Refined poses", _poses(views.cameras, refined) if cameras is not None else ""),
        _card("Time", _timings(timings or {})),
        "</div></div>\n",
        _details_card("Losses of the fit", f'<div class="charts">{loss_charts(history)}</div>') if history else "",
        _details_card("The run record", f"<pre>{escape(_json(record))}</pre>") if record else "",
    ]
    text = _document(title, "".join(parts), run, embedded)
    with writing(f"the report '{path}'"):
        return write_text(path, text)


def _document(title: str, content: str, run: Mapping[str, Any], glb: bytes | None) -> str:
    """The page. Its content security policy allows the embedded scripts alone, and no network access."""
    sources = ["vendor/three.min.js", "viewer.js"] if glb else []
    scripts = [(_HERE / name).read_text(encoding="utf-8") for name in [*sources, "page.js"]]
    hashes = " ".join(f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; connect-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = _json(run, indent=None).replace("<", "\\u003c")
    mesh = f'<script type="text/plain" id="glb">{_base64(glb)}</script>\n' if glb else ""
    code = "\n".join(f"<script>{script}</script>" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)} · nova3d</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{(_HERE / 'page.css').read_text(encoding='utf-8')}</style></head>\n<body><main>\n{content}</main>\n"
        '<dialog><img alt="the picture, larger"><p></p></dialog>\n'
        f'<script type="application/json" id="run">{data}</script>\n{mesh}{code}\n</body></html>\n'
    )


def _header(title: str, record: Mapping[str, Any], download: str) -> str:
    made = [str(record["created"])[:16].replace("T", " ")] if record.get("created") else []
    made += [f"nova3d {record['nova3d']}"] if record.get("nova3d") else []
    made += [str(record["commit"])[:12]] if record.get("commit") not in (None, "", "unknown") else []
    line = f'<p class="soft">{escape(" · ".join(made))}</p>' if made else ""
    return f"<header><div><h1>{escape(title)}</h1>{line}</div>{download}</header>\n"


def _read_mesh(mesh_path: str | Path | None) -> bytes | None:
    if mesh_path is None:
        return None
    try:
        return Path(mesh_path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"mesh '{mesh_path}' does not exist: write it before its report") from None
    except OSError as error:
        raise InputError(f"cannot read the mesh '{mesh_path}': {system_reason(error)}") from error


def _download(mesh_path: str | Path | None, page: Path, glb: bytes | None) -> str:
    if mesh_path is None or glb is None:
        return ""
    name = Path(mesh_path).name
    size = f"{len(glb) / 1e6:.1f} MB" if len(glb) >= 1e6 else f"{len(glb) / 1e3:.0f} kB"
    words = f"Download {escape(name)} <small>{size}</small>"
    if len(glb) <= MAX_GLB:  # the script gives it the embedded bytes
        return f'<a class="main button" id="download" download="{escape(name)}" hidden>{words}</a>'
    link = quote(Path(os.path.relpath(Path(mesh_path).resolve(), page.resolve().parent)).as_posix())
    return f'<a class="main button" href="{link}" download>{words}</a>'


def _warnings(warnings: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    return f'<ul class="warnings" aria-label="warnings">{lines}</ul>\n' if lines else ""


def _facts(health: Mapping[str, Any]) -> str:
    """The main measures of the result's quality."""
    facts = {
        "input_iou": ("{:.2f}", "outline IoU"),
        "input_psnr": ("{:.1f} dB", "colour PSNR"),
        "faces": ("{:,}", "faces"),
        "watertight": ("{}", "watertight"),
        "components": ("{:,}", "piece" if health.get("components") == 1 else "pieces"),
        "unseen_share": ("{:.0%}", "texture guessed"),
        "conflict_mean": ("{:.2f}", "conflict"),
    }
    items = "".join(
        f"<li><b>{_figure(form, health[key])}</b><span>{name}</span></li>"
        for key, (form, name) in facts.items()
        if key in health
    )
    return f'<ul class="facts">{items}</ul>\n' if items else ""


def _figure(form: str, value: Any) -> str:
    return escape(("yes" if value else "no") if isinstance(value, bool) else form.format(value))


def _stage(preview: Any) -> str:
    poster = "" if preview is None else f'<img class="poster" src="{data_uri(preview, MAX_SIDE)}" alt="the mesh">'
    modes = "".join(
        f'<label><input type="radio" name="mode" value="{mode}"{" checked" if mode == "texture" else ""} disabled>'
        f"<span>{name}</span></label>"
        for mode, name in _MODES.items()
    )
    return (
        '<section class="view3d"><div class="stage" tabindex="0" role="application" '
        'aria-label="the mesh in 3D: arrow keys turn it, plus and minus zoom, 0 resets, 1 to 4 choose what is drawn, '
        f'c compares it with the view, space spins it" aria-describedby="where">{poster}<canvas></canvas>'
        '<div class="over" hidden><img alt="the view, laid over the mesh"></div><i class="line" hidden></i>'
        '<input class="wipe" type="range" min="0" max="1" step="0.01" value="0.5" hidden '
        'aria-label="wipe between the view and the mesh"><span class="side" id="left" hidden>view</span>'
        '<span class="side" id="right" hidden>mesh</span><span id="where"></span>'
        '<p id="status"><noscript>The 3D view needs JavaScript.</noscript></p></div>'
        f'<div class="tools"><fieldset class="segments"><legend>What is drawn</legend>{modes}</fieldset>'
        '<div class="buttons"><button type="button" id="compare" aria-pressed="false" disabled '
        'title="lay the selected view over the mesh, from the same camera">Compare</button>'
        '<button type="button" id="spin" aria-pressed="false" disabled>Spin</button>'
        '<button type="button" id="reset" disabled>Reset</button><span class="zoom">'
        '<button type="button" id="further" aria-label="zoom out" disabled>&minus;</button>'
        '<button type="button" id="closer" aria-label="zoom in" disabled>+</button></span></div></div>'
        '<p class="hint"><span class="fine">Drag to turn. Click, then wheel, to zoom. Right-drag to move.</span>'
        '<span class="coarse">One finger turns. Two fingers zoom and move.</span></p></section>\n'
    )


def _tiles(image: Any, mask: Any, shown: Sequence[_View]) -> str:
    names = {"rgb": "Colour", "normal": "Normals", "conflict": "Conflict"}
    inputs = ((image, "cut", "the input picture, cut out", "Input, cut out"), (mask, "", "its mask", "Its mask"))
    given = "".join(
        f'<figure class="tile {style}"><button type="button"><img src="{data_uri(picture, MAX_SIDE)}" alt="{alt}">'
        f"</button><figcaption>{caption}</figcaption></figure>"
        for picture, style, alt, caption in inputs
        if picture is not None
    )
    tiles = "".join(
        f'<figure class="tile" data-kind="{kind}"><button type="button"><img alt="{name.lower()} of the selected view">'
        f"</button><figcaption>{name}</figcaption></figure>"
        for kind, name in names.items()
        if kind in shown[0].pictures
    )
    return (
        '<section class="panel"><h2>View <span id="number">0</span> '
        f'<span class="soft" id="label">{escape(shown[0].label)}</span></h2>'
        f'<p class="soft" id="about">{escape(shown[0].about)}</p><div class="tiles">{tiles}{given}</div></section>\n'
    )


def _strip(shown: Sequence[_View]) -> str:
    cells = []
    for view in shown:
        pictures = "".join(
            f'<img data-kind="{kind}" src="{uri}" alt="{kind} at {escape(view.label)}">'
            for kind, uri in view.pictures.items()
        )
        cells.append(
            f'<button type="button" data-label="{escape(view.label)}" data-about="{escape(view.about)}">{pictures}'
            f"<span>{escape(view.short)}</span></button>"
        )
    legend = "Azimuth from the input view."
    if "normal" in shown[0].pictures:
        legend += " Normals are in its frame: red right, green up, blue front; grey where unknown."
    if "conflict" in shown[0].pictures:
        legend += " Conflict: red where a view contradicts the others."
    return (
        f'<section class="film"><div class="filmhead"><h2>{len(shown)} views</h2><input type="range" id="view" min="0" '
        f'max="{len(shown) - 1}" value="0" aria-label="select a view"></div>'
        f'<div class="strip" style="--n: {len(shown)}">{"".join(cells)}</div><p class="hint">{legend}</p></section>\n'
    )


def _views(views: "ViewSet", refined: "Cameras", conflict: Any, has_input: bool) -> list[_View]:
    mask = to_numpy(views.mask)
    coverage, maps = mask > 0.5, None if conflict is None else to_numpy(conflict)
    turned, moved = _motions(views.cameras, refined)
    shown = []
    for i, (azimuth, elevation) in enumerate(to_numpy(views.cameras.azimuth_elevation()).tolist()):
        degrees = math.degrees(azimuth)
        short = label = f"{0.0 if degrees > 359.95 else degrees:.4g}°"
        if abs(elevation) > math.radians(0.05):
            label += f", {'up' if elevation > 0 else 'down'} {abs(math.degrees(elevation)):.3g}°"
        if i == 0 and has_input:
            short, label = f"{short} · input", f"{label} · input"
        about = []
        if turned[i] >= _STILL_DEGREES or moved[i] >= _STILL_UNITS:
            about.append(f"Pose moved by {turned[i]:.2f}° and {moved[i]:.3f}.")
        colour = to_numpy(views.straight_alpha(i))
        pictures = {"rgb": data_uri(colour, MAX_SIDE)}
        if views.has_normals:
            pictures["normal"] = data_uri(normal_colours(views.normals[i], mask[i]), MAX_SIDE)
        if maps is not None:
            pictures["conflict"] = data_uri(conflict_colours(maps[i], colour), MAX_SIDE)
            if coverage[i].any():
                about.append(f"Mean conflict {maps[i][coverage[i]].mean():.3f}.")
        shown.append(_View(short, label, " ".join(about) or "Its pose is as given.", pictures))
    return shown


def _rig(cameras: "Cameras") -> dict[str, Any]:
    poses, intrinsics = to_numpy(cameras.c2w).reshape(-1, 16), to_numpy(cameras.intrinsics)
    views = [
        {"c2w": [round(float(x), 6) for x in pose], "intrinsics": [round(float(x), 4) for x in row]}
        for pose, row in zip(poses, intrinsics, strict=True)
    ]
    return {"model": cameras.model, "width": cameras.width, "height": cameras.height, "views": views}


def _motions(given: "Cameras", refined: "Cameras") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each of v cameras moved: [v] degrees and [v] world units, of the motion M in c2w' = M c2w."""
    motion = to_numpy(refined.c2w).astype(np.float64) @ np.linalg.inv(to_numpy(given.c2w).astype(np.float64))
    # From the antisymmetric part: the arc cosine of the trace loses small angles.
    sine = np.linalg.norm(motion[:, :3, :3] - motion[:, :3, :3].transpose(0, 2, 1), axis=(1, 2)) / math.sqrt(8)
    cosine = (motion[:, :3, :3].trace(axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arctan2(sine, cosine)), np.linalg.norm(motion[:, :3, 3], axis=1)


def _poses(given: "Cameras", refined: "Cameras") -> str:
    turned, moved = _motions(given, refined)
    if turned.max() < _STILL_DEGREES and moved.max() < _STILL_UNITS:  # they were not refined
        return ""
    chart = bar_chart([f"view {i}" for i in range(len(turned))], turned.tolist(), "°")
    return (
        f'{chart}<p class="soft ends"><span>view 0</span><span>view {len(turned) - 1}</span></p>'
        f'<p class="soft">Turn of each view from its pose as given: {turned.mean():.2f}° in the mean, '
        f"{turned.max():.2f}° at most. Shifts are up to {moved.max():.4f} of the object's length. View 0 stays.</p>"
    )


def _notes_lists(notes: Sequence[str], model: Sequence[str]) -> str:
    lists = [
        f"<section><h2>{name}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul></section>"
        for name, lines in (("The result", notes), ("The model and its limits", model))
        if lines
    ]
    return f'<div class="know">{"".join(lists)}</div>\n' if lists else ""


def _health(health: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{_figure(form, health[key])}</td></tr>'
        for key, (name, form) in _HEALTH.items()
        if key in health
    )
    return f"<table>{rows}</table>" if rows else ""


def _timings(timings: Mapping[str, float]) -> str:
    if not timings:
        return ""
    longest, total = max(*timings.values(), 1e-9), math.fsum(timings.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="share"><i style="width:{100 * seconds / longest:.1f}%"></i>'
        f"</td><td>{seconds:.1f} s</td></tr>"
        for name, seconds in timings.items()
    )
    return f'<table>{rows}<tr class="total"><th scope="row">total</th><td></td><td>{total:.1f} s</td></tr></table>'


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{content}</section>' if content else ""


def _details_card(title: str, content: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{content}</details>\n'


def _json(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, default=str, ensure_ascii=False)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
