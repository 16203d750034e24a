"""A table of scores under one protocol: rows per object and seed, means, baselines, in four file formats."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nova3d.errors import InputError
from nova3d.evaluation import statistics
from nova3d.evaluation.baselines import row_label
from nova3d.evaluation.formats import TextRow, TextTable, decimals_for, header, number, plain, stated, style
from nova3d.evaluation.published import Published
from nova3d.utils.files import read_json, write_text, writing
from nova3d.utils.text import csv_cell

Rows = dict[str, dict[str, float]]  # object -> metric -> value

FILE = "scores.json"
# Prefixes of the columns for the terminal, in order of preference; the first SHOWN that the table has are shown.
_SHOWN_FIRST = (
    *("psnr", "psnr_u8", "cd_l2", "mask_iou", "iou", "lpips", "normal_mean_deg", "psnr_union", "ssim", "f_score"),
    *("psnr_foreground", "input_iou", "watertight", "clip", "normal_consistency"),
)
SHOWN = 6
# SSIM over whole pictures. Published rows leave out the border of 5 px, where white pictures are equal.
_UNCROPPED = ("ssim", "ssim_own_range")
_NOT_BESIDE = "of whole pictures; the published ones were computed without the border: see scores.json"
_LEFT_OUT = "means leave out failed objects without a score: compare methods on the objects that both have"


@dataclass(frozen=True)
class Table:
    """Scores of one method under one protocol."""

    protocol: str
    """The protocol's name."""
    protocol_hash: str
    """Tables compare only where these are equal."""
    rows: Rows
    """Object -> metric -> value, nan where it does not exist. Every object has the same metrics, in printing
    order. With several seeds these are means over them (`from_seeds`)."""
    baselines: Mapping[str, Rows]
    """Baseline or oracle -> such rows; one may have fewer metrics."""
    per_seed: Mapping[int, Rows] = field(default_factory=dict)
    """Seed -> rows, with several seeds."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Object -> why its prediction failed. It has a row only where the protocol scores failures; it is printed as
    failed in both cases."""
    not_computed: Mapping[str, str] = field(default_factory=dict)
    """Metric -> why the table lacks it."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the numbers depend on, such as commit, weights (their hash), seeds, hardware; printed above them."""

    @classmethod
    def from_seeds(
        cls,
        protocol: str,
        protocol_hash: str,
        per_seed: Mapping[int, Rows],
        baselines: Mapping[str, Rows],
        failures: Mapping[str, str] | None = None,
        not_computed: Mapping[str, str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> "Table":
        """A table whose rows are means over the seeds.

        Args:
            protocol: the protocol's name.
            protocol_hash: its hash.
            per_seed: seed -> rows. An object without a row for some seed has failed.
            baselines: baseline or oracle -> rows.
            failures: object -> why its prediction failed.
            not_computed: metric -> why the table lacks it.
            facts: what the numbers depend on.

        Returns:
            The table.
        """
        failures = dict(failures or {})
        rows: Rows = {}
        for name in dict.fromkeys(name for seed_rows in per_seed.values() for name in seed_rows):
            absent = [seed for seed, seed_rows in per_seed.items() if name not in seed_rows]
            if absent:
                failures.setdefault(name, f"no score with seed {', '.join(map(str, absent))}")
                continue
            seeds = [seed_rows[name] for seed_rows in per_seed.values()]
            rows[name] = {metric: math.fsum(row[metric] for row in seeds) / len(seeds) for metric in seeds[0]}
        return cls(protocol, protocol_hash, rows, baselines, per_seed, failures, not_computed or {}, facts or {})

    @property
    def metrics(self) -> list[str]:
        """The metrics in the order in which they print."""
        return list(next(iter(self.rows.values()), {}))

    @property
    def objects(self) -> list[str]:
        """Every object, scored or failed."""
        return [*self.rows, *(name for name in self.failures if name not in self.rows)]

    def mean(self) -> dict[str, float]:
        """Metric -> mean over the rows; nan where any of them is nan: skipping an object would bias the mean."""
        return _mean(self.rows)

    def baseline_means(self) -> dict[str, dict[str, float]]:
        """Baseline -> metric -> mean over objects."""
        return {name: _mean(rows) for name, rows in self.baselines.items()}

    def of_baseline(self, name: str) -> "Table":
        """A baseline's rows as a table of their own, to compare with.

        Args:
            name: of the baseline, as the table's row shows it.

        Returns:
            The table of its rows, without baselines.

        Raises:
            KeyError: where the table has no such baseline.
        """
        return replace(self, rows=self.baselines[name], baselines={}, per_seed={}, failures={})

    def with_metrics(self, metrics: Sequence[str]) -> "Table":
        """The same table with some of its metrics.

        Args:
            metrics: their names; unknown ones are ignored.

        Returns:
            The table, its columns in their own order.
        """

        def kept(rows: Rows) -> Rows:
            return {name: {m: v for m, v in row.items() if m in metrics} for name, row in rows.items()}

        per_seed = {seed: kept(rows) for seed, rows in self.per_seed.items()}
        baselines = {name: kept(rows) for name, rows in self.baselines.items()}
        return replace(self, rows=kept(self.rows), baselines=baselines, per_seed=per_seed)

    def shown(self) -> "Table":
        """The table for a terminal, with the SHOWN most informative columns."""
        names = self.metrics
        found = (b if b in names else next((n for n in names if n.startswith(b)), None) for b in _SHOWN_FIRST)
        chosen = list(dict.fromkeys(name for name in found if name))[:SHOWN]
        return self.with_metrics(chosen)

    def beside_published(self) -> "Table":
        """The table without columns whose published namesakes are computed differently."""
        wrong = {name: _NOT_BESIDE for name in _UNCROPPED if name in self.metrics}
        kept = self.with_metrics([name for name in self.metrics if name not in wrong])
        return replace(kept, not_computed={**self.not_computed, **wrong})

    def intervals(self) -> dict[str, statistics.Interval]:
        """Metric -> 95 % interval of the mean over objects; metrics that are nan for one are left out."""
        columns = {metric: [row[metric] for row in self.rows.values()] for metric in self.metrics}
        return {m: statistics.mean_interval(values) for m, values in columns.items() if all(map(math.isfinite, values))}

    def over_seeds(self) -> dict[str, statistics.OverSeeds]:
        """Metric -> mean, spread between seeds and best of k, over the objects with a row; empty without seeds.

        Best of k is nan for a metric without a best value.
        """
        seeds = [{name: rows[name] for name in self.rows} for rows in self.per_seed.values()]
        found = {}
        for metric in self.metrics if seeds else ():
            values = [{name: row[metric] for name, row in rows.items()} for rows in seeds]
            over = statistics.over_seeds(values, style(metric).lower_is_better)
            found[metric] = over if style(metric).ranked else replace(over, best=math.nan)
        return found

    def markdown(self, facts: Mapping[str, str] | None = None) -> str:
        """The table in Markdown: a line for protocol and each fact, then the rows.

        Args:
            facts: further facts, which are added to the table's own.

        Returns:
            Text in which arrows show the better direction and a dash is nan.
        """
        return self._grid(facts).markdown()

    def latex(self, facts: Mapping[str, str] | None = None) -> str:
        """The table for LaTeX's `booktabs`.

        Args:
            facts: further facts, which are added to the table's own.

        Returns:
            The same rows and facts as in Markdown.
        """
        return self._grid(facts).latex()

    def csv(self, facts: Mapping[str, str] | None = None) -> str:
        """The table as CSV with the columns kind, name, seed, one per metric at full precision, and note.

        The kinds are fact (its value is the note), object (the note is a failure's reason), seed (one object's row of
        one seed), mean, low and high (of the 95 % interval), between (deviation between seeds), best (of the seeds) and
        floor (a baseline or an oracle; the kind keeps its name of version 0.1).

        Args:
            facts: further facts, which are added to the table's own.

        Returns:
            Text in which nan is an empty cell.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "name", "seed", *self.metrics, "note"])

        def write(kind: str, name: str, values: Mapping[str, float], seed: int | str = "", note: str = "") -> None:
            cells = [values.get(metric, math.nan) for metric in self.metrics]
            numbers = ("" if math.isnan(value) else value for value in cells)
            writer.writerow([kind, csv_cell(name), seed, *numbers, csv_cell(note)])

        for fact, value in self._facts(facts).items():
            write("fact", fact, {}, note=value)
        for name in self.objects:
            reason = self.failures.get(name)
            write("object", name, self.rows.get(name, {}), note=f"failed: {reason}" if reason else "")
        for seed, rows in self.per_seed.items():
            for name, row in rows.items():
                write("seed", name, row, seed)
        write("mean", f"mean of {len(self.rows)}", self.mean())
        intervals, k, seeds = self.intervals(), len(self.per_seed), self.over_seeds()
        write("low", "95 % interval of the mean", {metric: found.low for metric, found in intervals.items()})
        write("high", "95 % interval of the mean", {metric: found.high for metric, found in intervals.items()})
        if seeds:
            write("between", f"SD between {k} seeds", {metric: found.between for metric, found in seeds.items()})
            write(
                "best", f"best of {k} seeds by the reference", {metric: found.best for metric, found in seeds.items()}
            )
        for name, values in self.baseline_means().items():
            write("floor", name, values)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the baselines per object too; nan becomes None. `load` reads it back."""
        return plain(
            {
                "protocol": self.protocol,
                "protocol_hash": self.protocol_hash,
                "facts": self.facts,
                "objects": self.rows,
                "failures": self.failures,
                "not_computed": self.not_computed,
                "mean": self.mean(),
                "interval": {metric: vars(found) for metric, found in self.intervals().items()},
                "seeds": self.per_seed,
                "over_seeds": {metric: vars(found) for metric, found in self.over_seeds().items()},
                # The key keeps its name of version 0.1.
                "floors": {name: {"objects": rows, "mean": _mean(rows)} for name, rows in self.baselines.items()},
            }
        )

    def save(
        self,
        folder: str | Path,
        record: Mapping[str, Any],
        facts: Mapping[str, str] | None = None,
        published: Published | None = None,
    ) -> Path:
        """Write scores.md, .tex, .csv and .json.

        Args:
            folder: the folder, made where absent.
            record: the run's provenance, for the JSON.
            facts: further facts, which are added to the table's own.
            published: numbers quoted below the table in a separate block. Markdown and LaTeX then leave out the columns
                that `beside_published` does.

        Returns:
            The folder.

        Raises:
            InputError: where the folder cannot be written.
        """
        folder = Path(folder)
        quoted = published.to_dict() if published else {}
        entry = self.to_dict() | {"facts": {**self.facts, **(facts or {})}, "published": quoted, "record": dict(record)}
        with writing(f"scores to '{folder}'"):
            printed = self.beside_published() if published else self
            below = f"\n{published.markdown()}" if published else ""
            write_text(folder / "scores.md", printed.markdown(facts) + below)
            below = f"\n{published.latex()}" if published else ""
            write_text(folder / "scores.tex", printed.latex(facts) + below)
            write_text(folder / "scores.csv", self.csv(facts))
            write_text(folder / FILE, json.dumps(entry, indent=1, allow_nan=False))  # the order of columns stays
        return folder

    @staticmethod
    def load(path: str | Path) -> "Table":
        """Read what `save` wrote.

        Args:
            path: a scores.json, or the folder that holds it.

        Returns:
            The table.

        Raises:
            InputError: where the file is missing or has another format.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise InputError(f"scores '{path}' do not exist")
        try:
            entry = read_json(path, dict, "scores")
            baselines = {name: _rows(found["objects"]) for name, found in entry["floors"].items()}
            return Table(
                str(entry["protocol"]),
                str(entry["protocol_hash"]),
                _rows(entry["objects"]),
                baselines,
                {int(seed): _rows(rows) for seed, rows in entry.get("seeds", {}).items()},
                {str(name): str(reason) for name, reason in entry.get("failures", {}).items()},
                {str(name): str(reason) for name, reason in entry.get("not_computed", {}).items()},
                {str(name): str(value) for name, value in entry.get("facts", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            why = repr(error)[:200]
            raise InputError(f"'{path}' is not a {FILE} of this project ({why}): score again") from error

    def stated_facts(self) -> dict[str, str]:
        """The facts, led by `formats.CARRIED`; seeds are those of `per_seed` unless stated otherwise."""
        seeds = {"seeds": ", ".join(map(str, self.per_seed))} if self.per_seed else {}
        return stated({**seeds, **self.facts})

    def _facts(self, facts: Mapping[str, str] | None) -> dict[str, str]:
        return {"protocol": f"{self.protocol} ({self.protocol_hash})", **self.stated_facts(), **(facts or {})}

    def _grid(self, facts: Mapping[str, str] | None) -> TextTable:
        objects = [
            TextRow(f"{name} (failed)" if name in self.failures else name, self._cells(self.rows.get(name, {})))
            for name in self.objects
        ]
        unscored = len(self.objects) - len(self.rows)
        label = f"mean of {len(self.rows)}"
        if self.failures:
            label += f" ({len(self.failures)} of {len(self.objects)} failed, {unscored} without a score)"
        means = [TextRow(label, self._cells(self.mean()), "bold"), TextRow("95 % interval of the mean", self._ends())]
        if self.per_seed:
            k, found = len(self.per_seed), self.over_seeds()
            means.append(
                TextRow(f"SD between {k} seeds", self._cells({m: f.between for m, f in found.items()}, more=1))
            )
            best = {metric: f.best for metric, f in found.items()}
            means.append(TextRow(f"best of {k} seeds by the reference: a bound", self._cells(best), "italic"))
        below = [
            TextRow(row_label(name), self._cells(values), "italic") for name, values in self.baseline_means().items()
        ]
        notes = [f"failed: {name}: {reason}" for name, reason in self.failures.items()]
        notes += [f"not computed: {metric}: {reason}" for metric, reason in self.not_computed.items()]
        notes += [_LEFT_OUT] if unscored else []
        blocks = tuple(tuple(block) for block in (objects, means, below) if block)
        return TextTable(self._facts(facts), ("object", *map(header, self.metrics)), blocks, tuple(notes))

    def _cells(self, values: Mapping[str, float], more: int = 0) -> tuple[str, ...]:
        return tuple(number(values.get(m, math.nan), style(m).decimals + more) for m in self.metrics)

    def _ends(self) -> tuple[str, ...]:
        found = self.intervals()
        return tuple(interval_text(found[m], style(m).decimals) if m in found else "-" for m in self.metrics)


def interval_text(found: statistics.Interval, least_decimals: int) -> str:
    """ "low to high" with two digits of the half width; a dash without an interval."""
    if math.isnan(found.low):
        return "-"
    decimals = decimals_for((found.high - found.low) / 2, least_decimals)
    return f"{number(found.low, decimals)} to {number(found.high, decimals)}"


def hardware() -> str:
    """This machine in one line: processor, cores, and the GPU where there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}"


def _mean(rows: Rows) -> dict[str, float]:
    metrics = next(iter(rows.values()), {})
    return {metric: math.fsum(row[metric] for row in rows.values()) / len(rows) for metric in metrics}


def _rows(entry: Mapping[str, Mapping[str, float | None]]) -> Rows:
    return {
        str(name): {str(metric): math.nan if value is None else float(value) for metric, value in row.items()}
        for name, row in entry.items()
    }
