"""Several methods against one baseline, object by object: differences with intervals, corrected for their number."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nova3d.errors import InputError
from nova3d.evaluation import statistics
from nova3d.evaluation.baselines import BASELINES
from nova3d.evaluation.formats import TextRow, TextTable, decimals_for, header, number, plain, style
from nova3d.evaluation.statistics import Paired, Verdict
from nova3d.evaluation.tables import Table, interval_text
from nova3d.utils.files import write_text, writing
from nova3d.utils.text import csv_cell

_COLUMNS = (
    "metric, method",
    "objects",
    "missing",
    "mean",
    "baseline",
    "difference",
    "95 % interval",
    "p (Holm)",
    "d_z",
    "rank r",
    "detectable",
    "verdict",
)


@dataclass(frozen=True)
class Compared:
    """One method against the baseline in one metric.

    p_holm: the signed-rank p, corrected over all comparisons of ranked metrics; nan without a test.
    verdict: "better" or "worse" only where the interval excludes zero AND p_holm is at most 1 - confidence. "not
        ranked" for a metric without a best value (`Style.ranked`), which is not tested.
    """

    method: str
    metric: str
    result: Paired
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Methods beside a baseline, object by object.

    Attributes:
        protocol: the protocol's name.
        protocol_hash: its hash, the same for all.
        baseline: the method that the others are compared with.
        rows: by metric, then method.
        confidence: of the intervals.
        facts: method -> the facts of its table.
        failures: method -> object -> why its prediction failed.
    """

    protocol: str
    protocol_hash: str
    baseline: str
    rows: tuple[Compared, ...]
    confidence: float
    facts: Mapping[str, Mapping[str, str]]
    failures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def markdown(self) -> str:
        """The comparison as a Markdown table."""
        return self._grid().markdown()

    def latex(self) -> str:
        """The comparison as a table for LaTeX's `booktabs`."""
        return self._grid().latex()

    def csv(self) -> str:
        """A line per comparison at full precision, nan an empty cell; the last columns name the protocol."""
        rows = [self._flat(row) for row in self.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, [*rows[0], "protocol", "protocol_hash"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            written = {key: "" if value is None else csv_cell(value) for key, value in plain(row).items()}
            writer.writerow(written | {"protocol": self.protocol, "protocol_hash": self.protocol_hash})
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; nan becomes None."""
        return {
            "protocol": self.protocol,
            "protocol_hash": self.protocol_hash,
            "baseline": self.baseline,
            "confidence": self.confidence,
            "family": self.family,
            "facts": plain(self.facts),
            "failures": plain(self.failures),
            "comparisons": [plain(self._flat(row)) for row in self.rows],
        }

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> Path:
        """Write comparison.md, .tex, .csv and .json.

        Args:
            folder: the folder, made where absent.
            record: the run's provenance, for the JSON.

        Returns:
            The folder.

        Raises:
            InputError: where the folder cannot be written.
        """
        folder = Path(folder)
        texts = {"md": self.markdown(), "tex": self.latex(), "csv": self.csv()}
        texts["json"] = json.dumps(self.to_dict() | {"record": dict(record)}, indent=1, allow_nan=False)
        with writing(f"the comparison to '{folder}'"):
            for suffix, text in texts.items():
                write_text(folder / f"comparison.{suffix}", text)
        return folder

    @property
    def family(self) -> int:
        """The number of comparisons in Holm's correction."""
        return sum(style(row.metric).ranked for row in self.rows)

    def _flat(self, row: Compared) -> dict[str, Any]:
        found = row.result
        return {
            "metric": row.metric,
            "method": row.method,
            "baseline": self.baseline,
            "objects": found.n,
            "missing": found.missing,
            "mean": found.mean,
            "baseline_mean": found.baseline_mean,
            "difference": found.interval.mean,
            "low": found.interval.low,
            "high": found.interval.high,
            "p": found.p,
            "p_holm": row.p_holm,
            "d_z": found.d_z,
            "rank_biserial": found.rank_biserial,
            "detectable": found.detectable,
            "verdict": row.verdict,
        }

    def _grid(self) -> TextTable:
        metrics = dict.fromkeys(row.metric for row in self.rows)
        blocks = tuple(tuple(_line(row) for row in self.rows if row.metric == metric) for metric in metrics)
        facts = {"protocol": f"{self.protocol} ({self.protocol_hash})", "baseline": self.baseline}
        for method, said in self.facts.items():
            facts[f"method {method}"] = ", ".join(f"{name} {value}" for name, value in said.items())
        columns = tuple(name.replace("95", f"{100 * self.confidence:g}") for name in _COLUMNS)
        return TextTable(facts, columns, blocks, tuple(self._notes()))

    def _notes(self) -> list[str]:
        family, alpha = self.family, 1 - self.confidence
        notes = [
            "differences are method minus baseline, on the objects that both have; intervals are paired bootstraps "
            "over objects (bias-corrected, accelerated), one comparison each",
            f"a verdict needs an interval without zero and a signed-rank p, corrected by Holm for all {family} "
            f'comparisons of this table, of at most {alpha:.2g}; "no difference shown" is not "equal"',
            "detectable: the smallest true difference that this many objects would show with probability 0.8 at the "
            "strictest step of the correction",
        ]
        if family < len(self.rows):
            notes.append('"not ranked": no value is best; the value is read beside the reference\'s own')
        least = statistics.fewest_objects(self.confidence)
        if any(row.verdict == "too few objects" for row in self.rows):
            notes.append(f'"too few objects": fewer than {least} cannot show a difference, however large it is')
        needed = statistics.fewest_objects(self.confidence, max(family, 1))
        if any(row.result.n < needed for row in self.rows):
            notes.append(
                f"with {family} comparisons, fewer than {needed} objects cannot show all: compare fewer metrics"
            )
        for method, failures in self.failures.items():
            notes += [f"failed: {method}: {name}: {reason}" for name, reason in failures.items()]
        return notes


def compare(
    tables: Mapping[str, Table],
    baseline: str,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare methods with a baseline, object by object.

    Rows that are means over seeds are compared as such.

    Args:
        tables: method -> its table; all of one protocol.
        baseline: the method that the others are compared with.
        metrics: which ones, chosen before the results are seen; empty: those that all tables have with a value
            somewhere. Every metric and method adds a comparison to Holm's correction, so name the few that the claim
            is about.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row per metric and method, with its interval, p and verdict.

    Raises:
        InputError: where the baseline, a second table or a metric is missing, or where the protocols differ.
    """
    if baseline not in tables:
        raise InputError(f"baseline '{baseline}' is not one of the tables: {', '.join(tables)}")
    methods = [name for name in tables if name != baseline]
    if not methods:
        raise InputError(f"nothing to compare with the baseline '{baseline}': name at least two tables")
    base = tables[baseline]
    for name in methods:
        if tables[name].protocol_hash != base.protocol_hash:
            raise InputError(
                f"'{name}' was scored under {tables[name].protocol} ({tables[name].protocol_hash}), '{baseline}' under "
                f"{base.protocol} ({base.protocol_hash}): not comparable; score both under one protocol"
            )
    chosen = _metrics(tables, metrics)
    family = max(1, sum(style(metric).ranked for metric in chosen) * len(methods))
    pairs = [(metric, method) for metric in chosen for method in methods]
    found = [_pair(tables[method], base, metric, confidence, resamples, seed, family) for metric, method in pairs]
    tested = [result.p if style(metric).ranked else math.nan for (metric, _), result in zip(pairs, found, strict=True)]
    corrected = statistics.holm(tested)
    rows = [
        Compared(method, metric, result, p, _verdict(result, p, metric))
        for (metric, method), result, p in zip(pairs, found, corrected, strict=True)
    ]
    return Comparison(
        base.protocol,
        base.protocol_hash,
        baseline,
        tuple(rows),
        confidence,
        {name: table.stated_facts() for name, table in tables.items()},
        {name: table.failures for name, table in tables.items() if table.failures},
    )


def compare_with_baselines(tables: Mapping[str, Table]) -> dict[str, Comparison]:
    """Compare every method, object by object, with the baselines made of its input picture (`baselines.BASELINES`).

    Args:
        tables: method -> scores under one protocol, against the same references.

    Returns:
        Key of BASELINES -> comparison, without the baselines that were not scored or have no metric in common with the
        methods.
    """
    first = next(iter(tables.values()))
    found = {}
    for key, label in BASELINES.items():
        if label not in first.baselines:
            continue
        baseline = first.of_baseline(label)
        all_tables = (baseline, *tables.values())
        shared = [metric for metric in baseline.metrics if all(_has_values(table, metric) for table in all_tables)]
        if shared:
            found[key] = compare({label: baseline, **tables}, label, shared)
    return found


def _has_values(table: Table, metric: str) -> bool:
    return any(math.isfinite(row.get(metric, math.nan)) for row in table.rows.values())


def _metrics(tables: Mapping[str, Table], wanted: Sequence[str]) -> list[str]:
    for metric in wanted:
        lacking = [name for name, table in tables.items() if not _has_values(table, metric)]
        if lacking:
            raise InputError(f"'{lacking[0]}' has no values of the metric '{metric}'")
    first = next(iter(tables.values()))
    shared = [metric for metric in first.metrics if all(_has_values(table, metric) for table in tables.values())]
    if not wanted and not shared:
        raise InputError(f"the tables {', '.join(tables)} have no metric in common")
    return list(dict.fromkeys(wanted)) or shared


def _pair(table: Table, base: Table, metric: str, confidence: float, resamples: int, seed: int, family: int) -> Paired:
    objects = sorted({*table.objects, *base.objects})
    values, baseline = ([t.rows.get(name, {}).get(metric, math.nan) for name in objects] for t in (table, base))
    return statistics.paired(values, baseline, confidence, resamples=resamples, seed=seed, family=family)


def _verdict(result: Paired, p_holm: float, metric: str) -> Verdict:
    if not style(metric).ranked:
        return "not ranked"
    if result.n < statistics.fewest_objects(result.interval.confidence):
        return "too few objects"
    if not p_holm <= 1 - result.interval.confidence:
        return "no difference shown"
    return statistics.verdict(result.interval, style(metric).lower_is_better)


def _line(row: Compared) -> TextRow:
    found, least = row.result, style(row.metric).decimals
    decimals = decimals_for((found.interval.high - found.interval.low) / 2, least)
    return TextRow(
        f"{header(row.metric)}, {row.method}",
        (
            str(found.n),
            str(found.missing),
            number(found.mean, least),
            number(found.baseline_mean, least),
            number(found.interval.mean, decimals, sign=True),
            interval_text(found.interval, least),
            "<0.001" if row.p_holm < 0.001 else number(row.p_holm, 3),
            number(found.d_z, 2, sign=True),
            number(found.rank_biserial, 2, sign=True),
            number(found.detectable, decimals),
            row.verdict,
        ),
        "bold" if row.verdict in ("better", "worse") else "",
    )
