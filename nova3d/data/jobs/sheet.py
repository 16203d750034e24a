"""Contact sheets of rendered objects, the most doubtful first."""

import tarfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from nova3d.data.filters import FilterConfig, worst_measure
from nova3d.data.shards import read_member, read_picture
from nova3d.errors import InputError
from nova3d.utils.files import parse_json, writable_folder
from nova3d.utils.progress import Progress
from nova3d.utils.provenance import stable_hash

_ROWS = 10  # objects per sheet
_VIEWS = 6  # of the object, as colours and as normals
_SIDE = 112  # pixels of a picture
_LABEL = 300  # pixels of the text beside it
_HEADER = 34
_GAP = 4
_BACKGROUND, _LINE, _INK, _FAINT, _ALARM = "#ffffff", "#e4e4e4", "#202020", "#6a6a6a", "#b3261e"


@dataclass(frozen=True)
class _Sample:
    uid: str
    tar: Path
    facts: dict[str, Any]
    severity: float  # of the worst measure: above 1 is past its threshold
    worst: str


def contact_sheets(
    folder: str | Path,
    out: str | Path,
    count: int = 40,
    progress: Progress | None = None,
    filters: FilterConfig | None = None,
) -> list[Path]:
    """Write `out`/sheet-00.png ... with one object a row: views as colours and as normals, uid, tags, worst measure.

    The first half are the objects nearest to a threshold, or past it. The rest is drawn at random, the same each time.

    Args:
        folder: of a job, or of shards.
        out: where the sheets go.
        count: objects to show.
        progress: called after every sheet.
        filters: the thresholds.

    Returns:
        The sheets.

    Raises:
        InputError: where there is no object or a tar is damaged.
    """
    folder = Path(folder)
    samples = sorted(_scan(folder, filters or FilterConfig()), key=lambda s: (-s.severity, s.uid))
    if not samples:
        raise InputError(f"no rendered objects (.tar) in '{folder}'")
    out = writable_folder(out)
    worst = samples[: (count + 1) // 2]
    rest = sorted(samples[len(worst) :], key=lambda s: stable_hash(s.uid))[: count - len(worst)]
    shown = [*worst, *rest]
    pages = [shown[i : i + _ROWS] for i in range(0, len(shown), _ROWS)]
    written = []
    for number, page in enumerate(pages):
        title = f"{folder.resolve().name}   sheet {number + 1} of {len(pages)}"
        title += f"   {len(worst)} most doubtful, then {len(rest)} random, of {len(samples):,} objects"
        path = out / f"sheet-{number:02d}.png"
        _draw_page(page, title, worst).save(path)
        written.append(path)
        if progress:
            progress(number + 1, len(pages), f"drawing, {path.name}")
    return written


def _scan(folder: Path, filters: FilterConfig) -> Iterator[_Sample]:
    objects = folder / "objects"
    for path in sorted((objects if objects.is_dir() else folder).rglob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                contents = {h.name: read_member(tar, h) for h in tar if h.name.endswith(".json")}
            yield from [_sample(path, name, content, filters) for name, content in contents.items()]
        except (tarfile.TarError, OSError, InputError, TypeError, AttributeError) as error:
            raise InputError(f"'{path}' is damaged: {error}; delete it and run again") from error


def _sample(tar: Path, name: str, content: bytes, filters: FilterConfig) -> _Sample:
    facts: dict[str, Any] = parse_json(content, dict, name[:80])
    if not isinstance(facts.get("tags", []), list):
        raise InputError(f"the tags of {name[:80]} are not a list")
    return _Sample(name.removesuffix(".json"), tar, facts, *worst_measure(facts.get("measures", {}), filters))


def _draw_page(samples: list[_Sample], title: str, worst: list[_Sample]) -> Image.Image:
    width = _LABEL + 2 * _VIEWS * (_SIDE + _GAP) + 3 * _GAP
    page = Image.new("RGB", (width, _HEADER + len(samples) * (_SIDE + 2 * _GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((2 * _GAP, 8), title, _INK, ImageFont.load_default(15))
    for row, sample in enumerate(samples):
        top = _HEADER + row * (_SIDE + 2 * _GAP)
        draw.line([(0, top), (width, top)], _LINE)
        _draw_label(draw, top + _GAP, sample, "doubtful" if sample in worst else "random")
        for strip, kind in enumerate(("rgb", "normal")):
            for column, picture in enumerate(_pictures(sample, kind)):
                left = _LABEL + (strip * _VIEWS + column) * (_SIDE + _GAP) + strip * 2 * _GAP
                page.paste(picture, (left, top + _GAP))
    return page


def _draw_label(draw: ImageDraw.ImageDraw, top: int, sample: _Sample, group: str) -> None:
    small = ImageFont.load_default(12)
    lines = [(line, _INK, ImageFont.load_default(14)) for line in textwrap.wrap(sample.uid, 36)[:2]]
    about = [sample.facts.get("category"), sample.facts.get("licence"), sample.facts.get("split"), group]
    lines.append((", ".join(str(word) for word in about if word), _FAINT, small))
    if sample.worst:
        lines.append((f"nearest limit: {sample.worst}", _ALARM if sample.severity > 1 else _FAINT, small))
    tags = ", ".join(map(str, sample.facts.get("tags", [])))
    lines += [(line, _ALARM, small) for line in textwrap.wrap(tags, 44)[:2]]
    for text, ink, font in lines:
        draw.text((2 * _GAP, top), text, ink, font)
        top += 17


def _pictures(sample: _Sample, kind: str) -> list[Image.Image]:
    """Up to _VIEWS thumbnails, evenly spaced in azimuth; transparent pixels are white."""
    with tarfile.open(sample.tar, "r:") as tar:
        prefix = f"{sample.uid}.{kind}."
        headers = sorted((h for h in tar if h.name.startswith(prefix)), key=lambda h: h.name)
        chosen = [headers[i * len(headers) // _VIEWS] for i in range(_VIEWS)] if len(headers) > _VIEWS else headers
        try:
            found = [read_picture(read_member(tar, header)).numpy() for header in chosen]
        except (tarfile.TarError, OSError, InputError) as error:
            raise InputError(f"'{sample.tar}' is damaged: {error}; delete it and run again") from error
    pictures = []
    for pixels in found:
        picture = Image.fromarray(pixels).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        flat = Image.alpha_composite(white, picture).convert("RGB")
        pictures.append(flat.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    return pictures
