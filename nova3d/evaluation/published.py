"""Published numbers, quoted: a block for each source, because their protocols differ.

They are printed below a table and not in it, since differences between protocols are not differences between methods.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nova3d import config
from nova3d.config import MISSING
from nova3d.errors import InputError
from nova3d.evaluation.formats import TextRow, TextTable, arrow, number

WARNING = "another protocol: not comparable"
_BASES = {
    "text": "from the text of the paper",
    "quoted": "quoted from others' text, not checked in the paper",
    "file": "read in the file itself",
}


@dataclass
class PublishedTable:
    """One table of one source.

    kind: what was scored: views, meshes or textures. source: where it was published. basis: text, quoted or file.
    metrics: the columns, named as this project's where they mean the same kind of quantity (their definitions differ).
    rows: method -> one value per metric, null where the source gives none. note: a caveat.
    """

    kind: str = MISSING
    source: str = MISSING
    basis: str = MISSING
    metrics: list[str] = MISSING
    rows: dict[str, list[float | None]] = MISSING
    note: str = ""

    def grid(self) -> TextTable:
        columns = [[math.nan if v is None else v for v in column] for column in zip(*self.rows.values(), strict=True)]
        texts = [[number(value, _decimals(column)) for value in column] for column in columns]
        lines = tuple(TextRow(name, cells) for name, cells in zip(self.rows, zip(*texts, strict=True), strict=True))
        facts = {"source": f"{self.source} ({_BASES[self.basis]})", "comparable": f"no: {WARNING}"}
        columns_as_printed = (f"{metric} {arrow(metric)}" for metric in self.metrics)  # a source's units are its own
        return TextTable(facts, ("published", *columns_as_printed), (lines,), (self.note,) if self.note else ())


@dataclass
class Published:
    """The schema of configs/eval/published.yaml: title -> table."""

    tables: dict[str, PublishedTable] = field(default_factory=dict)

    @staticmethod
    def load(path: str | Path) -> "Published":
        """Read and check the file; raises InputError naming the table that is not whole."""
        found = config.load(Published, path)
        for title, table in found.tables.items():
            wrong = [name for name, values in table.rows.items() if len(values) != len(table.metrics)]
            if wrong:
                raise InputError(f"{path}: table '{title}': '{wrong[0]}' does not have one value for each metric")
            if table.basis not in _BASES:
                raise InputError(f"{path}: table '{title}': basis '{table.basis}' is not one of {', '.join(_BASES)}")
        return found

    def of(self, *kinds: str) -> "Published":
        """Only the tables of these kinds."""
        return Published({title: table for title, table in self.tables.items() if table.kind in kinds})

    def markdown(self) -> str:
        """A section of its own, each table under its title."""
        blocks = [f"### {title}\n\n{table.grid().markdown()}" for title, table in self.tables.items()]
        return "\n".join([f"## Published numbers ({WARNING})\n", *blocks])

    def latex(self) -> str:
        """One table environment per source."""
        return "\n".join(f"% {title} ({WARNING})\n{table.grid().latex()}" for title, table in self.tables.items())

    def to_dict(self) -> dict[str, Any]:
        return {"comparable": False, "why": WARNING, **config.to_dict(self)}


def _decimals(column: list[float]) -> int:
    """As many as the source prints in this column: a quoted number is not rounded again."""
    return max(len(repr(value).partition(".")[2]) for value in column)
