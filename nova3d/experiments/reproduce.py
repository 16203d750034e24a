"""The paper's tables from a model folder and a folder of objects, beside the paper's numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table
from nova3d.evaluation.comparison import Comparison, compare, compare_with_baselines
from nova3d.evaluation.formats import TextRow, TextTable, arrow, decimals_for, number, style
from nova3d.evaluation.published import Published, PublishedTable
from nova3d.evaluation.statistics import Interval
from nova3d.evaluation.tables import interval_text
from nova3d.experiments import study as studies
from nova3d.experiments.config import ReproduceConfig
from nova3d.experiments.objects import object_names
from nova3d.fusion import FusionConfig
from nova3d.pipeline.folder import model_folder
from nova3d.utils import provenance
from nova3d.utils.files import check_component, locked, writable_folder, write_text
from nova3d.utils.progress import Progress, silent
from nova3d.utils.workers import in_parts

NOT_PRINTED = "not printed in our copy of the paper"
WARNING = (
    "a verdict says on which side of the interval (95 %, bootstrap over objects) the paper's printed mean lies; the "
    "paper's objects, lens, light and LPIPS network are not stated, so neither agreement nor difference is proven"
)


@dataclass(frozen=True)
class PaperComparison:
    """One quantity of one method: our mean against the paper's."""

    method: str
    quantity: str
    """The paper's name of it."""
    metric: str
    """Ours."""
    ours: Interval
    paper: float
    """The paper's mean; nan where it prints none."""
    verdict: str


@dataclass(frozen=True)
class Report:
    """A reproduced table."""

    table: str
    tables: Mapping[str, Table]
    """Arm -> scores."""
    rows: tuple[PaperComparison, ...]
    comparison: Comparison | None
    """Of the arms, where there are several."""
    to_baselines: Mapping[str, Comparison]
    """Of the arms with the baselines of `baselines.BASELINES`, by their keys."""
    facts: Mapping[str, str]

    def markdown(self) -> str:
        parts = [f"# {self.table}\n", comparison_table(self.rows, self.facts).markdown()]
        parts.append(studies.tables_markdown(self.tables))
        if self.comparison:
            parts.append(f"## Object by object\n\n{self.comparison.markdown()}")
        for one in self.to_baselines.values():
            parts.append(f"## Difference to the {one.baseline}\n\n{one.markdown()}")
        return "\n".join(parts)

    def save(self, folder: Path, record: Mapping[str, object]) -> Path:
        """report.md and report.json, and scores.* of each arm in a folder of its own; returns report.md."""
        writable_folder(folder)
        for name, table in self.tables.items():
            table.save(folder / name, record, self.facts)
        if self.comparison:
            self.comparison.save(folder, record)
        for key, one in self.to_baselines.items():
            one.save(folder / key, record)
        rows = [plain_comparison(row) for row in self.rows]
        entry = {"table": self.table, "facts": dict(self.facts), "beside_the_paper": rows, "record": dict(record)}
        write_text(folder / "report.json", json.dumps(entry, indent=1, allow_nan=False, default=str))
        return write_text(folder / "report.md", self.markdown())


def reproduce(
    config: ReproduceConfig,
    device: str = "cpu",
    workers: int = 1,
    retry: bool = False,
    progress: Progress | None = None,
) -> tuple[Report, Path]:
    """Generate the missing views and meshes of a table in `config.out`, score them, and write out/TABLE/report.md.

    Args:
        config: the table.
        device: of the networks.
        workers: processes that share the objects out; on "cuda" each has a GPU of its own.
        retry: whether objects that failed are tried again.
        progress: called as objects are finished.

    Returns:
        The report, and the path of report.md.

    Raises:
        InputError: where config, model, objects or references are bad, and where every object fails.
    """
    progress = progress or silent
    protocol, source = _rules(config), _paper(config)
    study, stages = plan(config)
    protocol = fit_to_model(protocol, study)
    with locked(writable_folder(study.out), "another study"):
        studies.check_study(study, retry)
        total = len(list(study.folders()))
        work = partial(studies.make, study)
        in_parts(work, workers, device, lambda: progress(study.done(), total, "making views and meshes"))
        found = studies.score_study(study, stages, protocol, device, workers, config.weights, progress)
        rows = [
            row
            for name, table in found.items()
            for row in compare_with_paper(name, table, config.columns, source, config.arms[name].paper)
        ]
        first = next(iter(found.values()))
        facts = {
            "protocol": f"{first.protocol} ({first.protocol_hash})",
            "commit": first.facts["commit"],
            "hardware": first.facts["hardware"],
            "model": config.sample.model,
            "objects": f"{len(study.names)} of '{config.objects}'",
            "seeds": first.facts["seeds"],
            "paper": f"{source.source}; {source.note}" if source else NOT_PRINTED,
        }
        comparison = compare(found, config.baseline or "") if len(found) > 1 else None
        facts = provenance.without_folders(facts)
        report = Report(config.table, found, tuple(rows), comparison, compare_with_baselines(found), facts)
        record = provenance.record("reproduce", config, device=device, workers=workers)
        return report, report.save(Path(config.out) / config.table, record)


def plan(config: ReproduceConfig) -> tuple[studies.Study, dict[str, list[str]]]:
    """The study to run, and the folders of each arm's seeds in it. Raises InputError for a bad config."""
    if config.baseline and config.baseline not in config.arms:
        raise InputError(f"baseline '{config.baseline}' is not one of the arms {', '.join(config.arms)}")
    if not config.arms or not config.seeds:
        raise InputError("a table needs at least one arm and one seed")
    for name in config.arms:
        check_component(name, "arm")
    check_component(config.table, "table")
    if len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds repeat: {config.seeds}")
    generators: dict[str, studies.Generator] = {}
    fusions: list[studies.Fusion] = []
    stages: dict[str, list[str]] = {}
    several = len(config.arms) > 1
    for name, arm in config.arms.items():
        shared = not several or not arm.model
        for seed in config.seeds:
            views = f"seed{seed}" if shared else f"{name}/seed{seed}"
            generators[views] = studies.Generator(views, _model(config.sample.model, arm.model, seed), seed)
            stage = f"views/{views}"
            if config.fusion:
                folder = f"{name}/seed{seed}" if several else f"seed{seed}"
                settings = configs.load(FusionConfig, config.fusion, [*config.fusion_changes, *arm.fusion])
                fusions.append(studies.Fusion(folder, views, settings))
                stage = f"meshes/{folder}"
            stages.setdefault(name, []).append(stage)
    source = Path(config.objects)
    rigs = {studies.model_rig(generator.model) for generator in generators.values()}
    if len(rigs) > 1:
        raise InputError(f"the models have different cameras or sizes: {sorted(rigs)}")
    (rig, size), names = rigs.pop(), object_names(source, config.names)
    made = tuple(generators.values())
    return studies.Study(Path(config.out), source, names, rig, size, config.sample, made, tuple(fusions)), stages


def fit_to_model(protocol: Protocol, study: studies.Study) -> Protocol:
    """The protocol at the model's picture size, which changes its hash; raises InputError where the cameras differ."""
    if "views" not in protocol.kinds:
        return protocol
    if protocol.views.cameras not in ("any", study.rig):
        raise InputError(
            f"the model's cameras are {study.rig}, the protocol '{protocol.name}' scores {protocol.views.cameras}"
        )
    if protocol.views.size in (None, 0, study.size):
        return protocol
    return replace(protocol, views=replace(protocol.views, size=study.size))


def _rules(config: ReproduceConfig) -> Protocol:
    return configs.load(Protocol, config.protocol, config.protocol_changes)


def _paper(config: ReproduceConfig) -> PublishedTable | None:
    if not config.paper_table:
        return None
    published = Published.load(config.published).tables
    if config.paper_table not in published:
        raise InputError(f"'{config.published}' has no table '{config.paper_table}'")
    source = published[config.paper_table]
    if unknown := [arm.paper for arm in config.arms.values() if arm.paper and arm.paper not in source.rows]:
        raise InputError(f"table '{config.paper_table}' has no row '{unknown[0]}'")
    return source


def _model(model: str, arm: str | None, seed: int) -> str:
    """The model of this seed in a folder of trainings, or else the model itself.

    model: a folder, the name of a shipped model or a hub id. arm: a folder inside it.
    """
    folder = model_folder(model) / (arm or "")
    of_seed = folder / f"seed{seed}" / "model"
    if of_seed.is_dir():
        return str(of_seed)
    return str(folder) if arm else model


def compare_with_paper(
    method: str, table: Table, columns: Mapping[str, Sequence[str]], source: PublishedTable | None, row: str | None
) -> list[PaperComparison]:
    """Compare a method's means with the paper's.

    Args:
        method: the method's name.
        table: its scores.
        columns: the paper's quantity -> our metrics of that kind, several where the paper is ambiguous.
        source: the paper's table, None where our copy of the paper has none.
        row: the method's row in it, None where it has none.

    Returns:
        One comparison per metric of `columns`.
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
            found.append(PaperComparison(method, quantity, metric, ours, paper, said))
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


def comparison_table(rows: Sequence[PaperComparison], facts: Mapping[str, str], notes: Sequence[str] = ()) -> TextTable:
    """The comparison as a table of text."""
    methods = dict.fromkeys(row.method for row in rows)
    blocks = tuple(tuple(_line(row) for row in rows if row.method == method) for method in methods)
    columns = ("method, metric", "ours", "95 % interval", "objects", "paper", "verdict")
    return TextTable(facts, columns, blocks, (WARNING, *notes))


def plain_comparison(row: PaperComparison) -> dict[str, Any]:
    """JSON-ready; nan becomes None, and a number that the paper does not print becomes NOT_PRINTED."""
    ours = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(row.ours).items()}
    paper = NOT_PRINTED if math.isnan(row.paper) else row.paper
    return asdict(row) | {"ours": ours, "paper": paper}


def _line(row: PaperComparison) -> TextRow:
    least = style(row.metric).decimals
    decimals = decimals_for((row.ours.high - row.ours.low) / 2, least)
    paper = NOT_PRINTED if math.isnan(row.paper) else f"{row.paper:g}"
    cells = (number(row.ours.mean, decimals), interval_text(row.ours, least), str(row.ours.n), paper, row.verdict)
    return TextRow(f"{row.method}, {row.metric} {arrow(row.metric)}", cells)
