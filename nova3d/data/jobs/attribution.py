"""Credits: who made the objects, and on what terms; as a table for programs and as a page for people."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nova3d.data.sources.licences import licence_url
from nova3d.utils.files import writable_folder, write_text

_COLUMNS = ("uid", "title", "attribution", "licence", "licence_url", "url", "source", "sha256", "split")


def write_attribution(rows: Iterable[Mapping[str, Any]], out: str | Path) -> Path:
    """Write `out`/attribution.csv and `out`/ATTRIBUTION.md.

    CC-BY asks for the credit, the licence with its address, and what was changed.

    Args:
        rows: of a plan, manifest or journal. Those whose state is neither "done" nor "planned" are left out; rows
            without a state are kept.
        out: the folder.

    Returns:
        The path of ATTRIBUTION.md.
    """
    folder = writable_folder(out)
    kept = {row["uid"]: row for row in rows if row.get("state", "done") in ("done", "planned")}
    credits = [_credit(kept[uid]) for uid in sorted(kept)]
    with (folder / "attribution.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(credits)
    return write_text(folder / "ATTRIBUTION.md", _page(credits))


def _credit(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row.get(key, "")) for key in _COLUMNS} | {"licence_url": licence_url(str(row.get("licence", "")))}


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
        name = licence or "No licence named by the source"
        lines += ["", f"## {f'[{name}]({url})' if url else name}: {len(by_licence[licence])} objects", ""]
        lines += [_line(credit) for credit in by_licence[licence]]
    return "\n".join(lines) + "\n"


def _line(credit: Mapping[str, str]) -> str:
    """Format one object's credit; a title or address that the attribution has already is not repeated."""
    attribution = credit["attribution"]
    parts = [credit["title"] or credit["uid"], attribution, credit["url"]]
    fresh = [part for i, part in enumerate(parts) if part and (i == 1 or part not in attribution)]
    return "- " + _escaped(" - ".join(fresh)) + f" (`{credit['uid']}`)"


def _escaped(text: str) -> str:
    """Return foreign text on one line, with nothing that Markdown would read as markup."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in text)
