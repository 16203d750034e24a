"""Credits: who made the objects and under which licence, as CSV and as Markdown."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nova3d.data.sources.licences import licence_url
from nova3d.utils.files import readable, writable_folder, write_text, writing
from nova3d.utils.text import csv_cell, markdown

_COLUMNS = ("uid", "title", "attribution", "licence", "licence_url", "url", "source", "sha256", "split")


def write_attribution(rows: Iterable[Mapping[str, Any]], out: str | Path) -> Path:
    """Write `out`/attribution.csv and `out`/ATTRIBUTION.md.

    CC-BY requires the credit, the licence with its address, and what was changed.

    Args:
        rows: of a plan, manifest or journal. Those whose state is neither "done" nor "planned" are left out; rows
            without a state are kept.
        out: the folder.

    Returns:
        The path of ATTRIBUTION.md.

    Raises:
        InputError: where the folder cannot be written.
    """
    folder = writable_folder(out)
    kept = {row["uid"]: row for row in rows if row.get("state", "done") in ("done", "planned")}
    credits = [_credit(kept[uid]) for uid in sorted(kept)]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, _COLUMNS)
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in credit.items()} for credit in credits)
    with writing(f"the attribution to '{folder}'"):
        write_text(folder / "attribution.csv", table.getvalue())
        return write_text(folder / "ATTRIBUTION.md", _page(credits))


def _credit(row: Mapping[str, Any]) -> dict[str, str]:
    said = {key: readable(str(row.get(key, ""))) for key in _COLUMNS}
    return said | {"licence_url": licence_url(said["licence"])}


def _page(credits: list[dict[str, str]]) -> str:
    by_licence: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for credit in credits:
        by_licence[credit["licence"]].append(credit)
    lines = [
        "# Attribution",
        "",
        f"Pictures of {len(credits)} objects. Changes: each object was centred, scaled and rendered from several sides "
        "as colours and normals.",
    ]
    for licence in sorted(by_licence):
        url = licence_url(licence)
        name = markdown(licence) or "No licence named by the source"
        lines += ["", f"## {f'[{name}]({url})' if url else name}: {len(by_licence[licence])} objects", ""]
        lines += [_line(credit) for credit in by_licence[licence]]
    return "\n".join(lines) + "\n"


def _line(credit: Mapping[str, str]) -> str:
    """Format one object's credit; a title or address that the attribution has already is not repeated."""
    attribution = credit["attribution"]
    parts = [credit["title"] or credit["uid"], attribution, credit["url"]]
    fresh = [part for i, part in enumerate(parts) if part and (i == 1 or part not in attribution)]
    uid = credit["uid"]
    shown = f"`{uid}`" if re.fullmatch(r"[\w .-]+", uid) else markdown(uid)
    return f"- {markdown(' - '.join(fresh))} ({shown})"
