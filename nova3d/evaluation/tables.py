"""A table of scores: one row per object, their mean, the floors' means; as Markdown, CSV and JSON."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nova3d.errors import InputError

Rows = dict[str, dict[str, float]]  # object -> metric -> value

_LOWER_IS_BETTER = ("chamfer", "normal_mean_deg", "normal_median_deg")
_DECIMALS = {"psnr": 2, "psnr_foreground": 2, "normal_mean_deg": 2, "normal_median_deg": 2, "chamfer": 4}


@dataclass(frozen=True)
class Table:
    """Scores under one protocol.

    rows: object -> metric -> value; every object has the same metrics, in the order they print.
    floors: floor -> such rows; a floor may have fewer metrics. A value that does not exist for an object is nan.
    """

    protocol: str
    protocol_hash: str
    rows: Rows
    floors: Mapping[str, Rows]

    @property
    def metrics(self) -> list[str]:
        return list(next(iter(self.rows.values()), {}))

    def mean(self) -> dict[str, float]:
        """Metric -> mean over objects; nan where any object's value is nan, for a skipped object would flatter."""
        return _mean(self.rows)

    def floor_means(self) -> dict[str, dict[str, float]]:
        """Floor -> metric -> mean over objects."""
        return {name: _mean(rows) for name, rows in self.floors.items()}

    def markdown(self, facts: Mapping[str, str] | None = None) -> str:
        """The protocol and `facts` on a line each, then the table; arrows say which way is better, a dash is nan."""
        lines = [f"protocol: {self.protocol} ({self.protocol_hash})", *(f"{k}: {v}" for k, v in (facts or {}).items())]
        arrows = [f"{name} {'↓' if name in _LOWER_IS_BETTER else '↑'}" for name in self.metrics]
        return "\n".join(
            [
                *(f"{line}  " for line in lines),  # two spaces: a line break in Markdown
                "",
                f"| object | {' | '.join(arrows)} |",
                f"|:--|{'--:|' * len(self.metrics)}",
                *(self._line(name, values) for name, values in self.rows.items()),
                self._line(f"**mean of {len(self.rows)}**", self.mean(), "**"),
                *(self._line(f"*floor: {name}*", values) for name, values in self.floor_means().items()),
                "",
            ]
        )

    def csv(self) -> str:
        """kind, name, then a column per metric at full precision; kind is object, mean or floor, nan an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "name", *self.metrics])
        lines = [("object", name, values) for name, values in self.rows.items()]
        lines += [("mean", f"mean of {len(self.rows)}", self.mean())]
        lines += [("floor", name, values) for name, values in self.floor_means().items()]
        for kind, name, values in lines:
            cells = [values.get(metric, math.nan) for metric in self.metrics]
            writer.writerow([kind, name, *("" if math.isnan(value) else value for value in cells)])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the floors per object too; nan becomes None."""
        return {
            "protocol": self.protocol,
            "protocol_hash": self.protocol_hash,
            "objects": _plain(self.rows),
            "mean": _plain(self.mean()),
            "floors": {
                name: {"objects": _plain(rows), "mean": _plain(_mean(rows))} for name, rows in self.floors.items()
            },
        }

    def save(self, folder: str | Path, record: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> Path:
        """Write scores.md, scores.csv and scores.json (with the run's `record`) into `folder`, made where absent.

        Raises InputError where the folder cannot be written.
        """
        folder = Path(folder)
        entry = self.to_dict() | {"facts": dict(facts or {}), "record": dict(record)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scores.md").write_text(self.markdown(facts), encoding="utf-8")
            (folder / "scores.csv").write_text(self.csv(), encoding="utf-8")
            (folder / "scores.json").write_text(json.dumps(entry, indent=1, allow_nan=False), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write scores to '{folder}': {error.strerror or error}") from error
        return folder

    def _line(self, name: str, values: Mapping[str, float], mark: str = "") -> str:
        cells = []
        for metric in self.metrics:
            value = values.get(metric, math.nan)
            cells.append("-" if math.isnan(value) else f"{mark}{value:.{_DECIMALS.get(metric, 3)}f}{mark}")
        return f"| {name} | {' | '.join(cells)} |"


def hardware() -> str:
    """This machine in one line: processor, cores, and the GPU where there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}"


def _mean(rows: Rows) -> dict[str, float]:
    metrics = next(iter(rows.values()), {})
    return {metric: math.fsum(row[metric] for row in rows.values()) / len(rows) for metric in metrics}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, Mapping) else None if math.isnan(value) else value
        for key, value in values.items()
    }
