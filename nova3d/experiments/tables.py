"""A study's scores, and beside them what the paper prints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nova3d.errors import InputError
from nova3d.evaluation import Table
from nova3d.evaluation.formats import Grid, Line, arrow, decimals_for, number, style
from nova3d.evaluation.published import Source
from nova3d.evaluation.statistics import Interval
from nova3d.evaluation.tables import interval_text

NOT_PRINTED = "not printed in our copy of the paper"
WARNING = (
    "a verdict says on which side of the interval (95 %, bootstrap over objects) the paper's printed mean lies; the "
    "paper's objects, lens, light and LPIPS network are not stated, so neither agreement nor difference is proven"
)


@dataclass(frozen=True)
class Beside:
    """One quantity of one method: ours with its interval, the paper's mean (nan: not printed), and the verdict."""

    method: str
    quantity: str
    metric: str
    ours: Interval
    paper: float
    verdict: str


def beside(
    method: str, table: Table, columns: Mapping[str, Sequence[str]], source: Source | None, row: str
) -> list[Beside]:
    """Ours beside the paper's.

    columns: the paper's quantity -> our metrics of that kind (several where the paper leaves open which it is).
    source, row: the paper's table and the method's row in it; None and "" where our copy of the paper has none.
    """
    printed = dict(zip(source.metrics, source.rows[row], strict=True)) if source and row else {}
    intervals, means = table.intervals(), table.mean()
    found = []
    for quantity, metrics in columns.items():
        for metric in metrics:
            value = printed.get(quantity)
            paper = math.nan if value is None else value
            mean = means.get(metric, math.nan)
            ours = intervals.get(metric, Interval(mean, math.nan, math.nan, len(table.rows)))
            said = verdict(ours, paper, style(metric).lower_is_better)
            if metric in table.not_computed:
                said = f"not computed: {table.not_computed[metric]}"
            found.append(Beside(method, quantity, metric, ours, paper, said))
    return found


def verdict(ours: Interval, paper: float, lower_is_better: bool) -> str:
    """On which side of our interval the paper's mean lies."""
    if math.isnan(paper):
        return "-"
    if math.isnan(ours.mean):
        return "no mean: an object has no value"
    if math.isnan(ours.low):
        return f"too few objects ({ours.n}) for an interval"
    if ours.low <= paper <= ours.high:
        return "the interval contains the paper's mean"
    above = ours.low > paper
    return f"{'above' if above else 'below'} the paper's mean ({'worse' if above == lower_is_better else 'better'})"


def grid(rows: Sequence[Beside], facts: Mapping[str, str], notes: Sequence[str] = ()) -> Grid:
    """The comparison as a table of text."""
    methods = dict.fromkeys(row.method for row in rows)
    blocks = tuple(tuple(_line(row) for row in rows if row.method == method) for method in methods)
    columns = ("method, metric", "ours", "95 % interval", "objects", "paper", "verdict")
    return Grid(facts, columns, blocks, (WARNING, *notes))


def plain_row(row: Beside) -> dict[str, Any]:
    """JSON-ready; nan becomes None, and a number that the paper does not print says so."""
    ours = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(row.ours).items()}
    paper = NOT_PRINTED if math.isnan(row.paper) else row.paper
    return asdict(row) | {"ours": ours, "paper": paper}


def per_object(found: Mapping[str, Table]) -> str:
    """Every method's whole table, each under its name."""
    return "\n".join(f"## {name}: scores per object\n\n{table.markdown()}" for name, table in found.items())


def write_text(path: Path, text: str) -> Path:
    """Raises InputError where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def _line(row: Beside) -> Line:
    least = style(row.metric).decimals
    decimals = decimals_for((row.ours.high - row.ours.low) / 2, least)
    paper = NOT_PRINTED if math.isnan(row.paper) else f"{row.paper:g}"
    cells = (number(row.ours.mean, decimals), interval_text(row.ours, least), str(row.ours.n), paper, row.verdict)
    return Line(f"{row.method}, {row.metric} {arrow(row.metric)}", cells)
