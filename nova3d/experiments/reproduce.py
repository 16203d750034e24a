"""The paper's tables made anew: a model folder and a folder of objects to a report with the paper's numbers beside."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table
from nova3d.evaluation.cache import scored_tables
from nova3d.evaluation.comparison import Comparison, compare
from nova3d.evaluation.published import Published, Source
from nova3d.experiments import study as stages
from nova3d.experiments import tables
from nova3d.experiments.tables import Beside
from nova3d.fusion import FusionConfig
from nova3d.generation import SampleConfig
from nova3d.utils import provenance
from nova3d.utils.files import writable_folder
from nova3d.utils.resources import Shipped
from nova3d.utils.workers import in_parts

Progress = Callable[[int, int, str], None]


@dataclass
class Arm:
    """One method of a table."""

    model: str = ""
    """A model folder, or a folder of one per seed (seed0/model ...), inside sample.model. Empty: that folder itself."""
    fusion: list[str] = field(default_factory=list)
    """Changes to the fusion's config, as key=value."""
    paper: str = ""
    """The method's row in the paper's table. Empty: it has none."""


@dataclass
class ReproduceConfig:
    """The keys of `scripts/reproduce.py`, one file per table. Paths are relative to where the script runs."""

    table: str = "table1"
    """The name of the table and of its folder in `out`."""
    objects: str = MISSING
    """A folder of meshes (GSO), or of shards."""
    names: list[str] = field(default_factory=list)
    """The objects to take. Empty: all."""
    out: str = "outputs/reproduce"
    """The output folder. Tables with equal settings share what is generated in it."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds to sample with."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How views are sampled. Its image, out, seed, framed and keep_input are set by the study."""
    fusion: Annotated[str | None, Shipped("config", "fusion")] = None
    """The config of the fusion. null: the table is of views."""
    fusion_changes: list[str] = field(default_factory=list)
    """Changes to it for all arms, as key=value."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """The methods by name."""
    baseline: str | None = None
    """The arm that the others are compared with, object by object."""
    protocol: Annotated[str, Shipped("protocol")] = "configs/eval/nova3d-el0.yaml"
    """The protocol of the scores."""
    protocol_changes: list[str] = field(default_factory=list)
    """Changes to it, as key=value."""
    weights: dict[str, str] = field(default_factory=dict)
    """Perceptual metric -> weights file."""
    published: Annotated[str, Shipped("config")] = "configs/eval/published.yaml"
    """The file of published numbers."""
    paper_table: str | None = None
    """A title in `published`. null: the paper's table is not in our copy."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """The paper's quantity -> our metrics."""


@dataclass(frozen=True)
class Report:
    """tables: arm -> its scores. rows: ours beside the paper's. comparison: of the arms, where there are several."""

    table: str
    tables: Mapping[str, Table]
    rows: tuple[Beside, ...]
    comparison: Comparison | None
    facts: Mapping[str, str]

    def markdown(self) -> str:
        parts = [f"# {self.table}\n", tables.grid(self.rows, self.facts).markdown()]
        parts.append(tables.per_object(self.tables))
        if self.comparison:
            parts.append(f"## Object by object\n\n{self.comparison.markdown()}")
        return "\n".join(parts)

    def save(self, folder: Path, record: Mapping[str, object]) -> Path:
        """report.md and report.json, and scores.* of each arm in a folder of its own; returns report.md."""
        writable_folder(folder)
        for name, table in self.tables.items():
            table.save(folder / name.replace("/", "-"), record, self.facts)
        if self.comparison:
            self.comparison.save(folder, record)
        rows = [tables.plain_row(row) for row in self.rows]
        entry = {"table": self.table, "facts": dict(self.facts), "beside_the_paper": rows, "record": dict(record)}
        tables.write_text(folder / "report.json", json.dumps(entry, indent=1, allow_nan=False, default=str))
        return tables.write_text(folder / "report.md", self.markdown())


def reproduce(
    config: ReproduceConfig,
    device: str = "cpu",
    workers: int = 1,
    retry: bool = False,
    progress: Progress | None = None,
) -> tuple[Report, Path]:
    """Make what is missing of the table's views and meshes in `config.out`, score it, and write out/TABLE/report.md.

    workers: processes, each with every workers-th object, on "cuda" each with a GPU of its own; they share the scoring
    likewise. retry: objects that failed are tried again. progress: called with what is done, in all, and a word on
    what. Raises InputError where config, model, objects or references are bad, and where every object fails.
    """
    tell = progress or (lambda done, total, message: None)
    protocol, source = _rules(config), _paper(config)
    study, places = plan(config)
    protocol = fit_to_model(protocol, study)
    stages.check_study(study, retry)
    total = len(list(study.folders()))
    work = partial(stages.make, study)
    in_parts(work, workers, device, lambda: tell(study.done(), total, "making views and meshes"))
    found = scored_tables(study, places, protocol, device, workers, config.weights, progress)
    rows = [
        row
        for name, table in found.items()
        for row in tables.beside(name, table, config.columns, source, config.arms[name].paper)
    ]
    first = next(iter(found.values()))
    facts = {
        "protocol": f"{first.protocol} ({first.protocol_hash})",
        "commit": first.facts["commit"],
        "hardware": first.facts["hardware"],
        "model": config.sample.model,
        "objects": f"{len(study.names)} of '{config.objects}'",
        "seeds": first.facts["seeds"],
        "paper": f"{source.source}; {source.note}" if source else tables.NOT_PRINTED,
    }
    comparison = compare(found, config.baseline or "") if len(found) > 1 else None
    report = Report(config.table, found, tuple(rows), comparison, facts)
    record = provenance.record("reproduce", configs.to_dict(config), device=device, workers=workers)
    return report, report.save(Path(config.out) / config.table, record)


def plan(config: ReproduceConfig) -> tuple[stages.Study, dict[str, list[str]]]:
    """What is to be made, and the folders of each arm's seeds in it. Raises InputError for a config that cannot be."""
    if config.baseline and config.baseline not in config.arms:
        raise InputError(f"baseline '{config.baseline}' is none of the arms {', '.join(config.arms)}")
    if not config.arms or not config.seeds:
        raise InputError("a table needs at least one arm and one seed")
    if len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds repeat: {config.seeds}")
    generators: dict[str, stages.Generator] = {}
    fusions: list[stages.Fusion] = []
    places: dict[str, list[str]] = {}
    several = len(config.arms) > 1
    for name, arm in config.arms.items():
        shared = not several or not arm.model
        for seed in config.seeds:
            views = f"seed{seed}" if shared else f"{name}/seed{seed}"
            generators[views] = stages.Generator(views, _model(Path(config.sample.model, arm.model), seed), seed)
            place = f"views/{views}"
            if config.fusion:
                folder = f"{name}/seed{seed}" if several else f"seed{seed}"
                settings = configs.load(FusionConfig, config.fusion, [*config.fusion_changes, *arm.fusion])
                fusions.append(stages.Fusion(folder, views, settings))
                place = f"meshes/{folder}"
            places.setdefault(name, []).append(place)
    source = Path(config.objects)
    rigs = {stages.model_rig(generator.model) for generator in generators.values()}
    if len(rigs) > 1:
        raise InputError(f"the models have different cameras or sizes: {sorted(rigs)}")
    (rig, size), names = rigs.pop(), stages.object_names(source, config.names)
    made = tuple(generators.values())
    return stages.Study(Path(config.out), source, names, rig, size, config.sample, made, tuple(fusions)), places


def fit_to_model(protocol: Protocol, study: stages.Study) -> Protocol:
    """The protocol at the model's picture size, as its hash then says; raises InputError where the cameras differ."""
    if "views" not in protocol.kinds:
        return protocol
    if protocol.views.cameras not in ("any", study.rig):
        raise InputError(
            f"the model's cameras are {study.rig}, the protocol '{protocol.name}' scores {protocol.views.cameras}"
        )
    if protocol.views.size in (0, study.size):
        return protocol
    return replace(protocol, views=replace(protocol.views, size=study.size))


def _rules(config: ReproduceConfig) -> Protocol:
    return configs.load(Protocol, config.protocol, config.protocol_changes)


def _paper(config: ReproduceConfig) -> Source | None:
    if not config.paper_table:
        return None
    published = Published.load(config.published).tables
    if config.paper_table not in published:
        raise InputError(f"'{config.published}' has no table '{config.paper_table}'")
    source = published[config.paper_table]
    if unknown := [arm.paper for arm in config.arms.values() if arm.paper and arm.paper not in source.rows]:
        raise InputError(f"table '{config.paper_table}' has no row '{unknown[0]}'")
    return source


def _model(folder: Path, seed: int) -> str:
    """The model folder itself, or the one of this seed in a folder of trainings."""
    of_seed = folder / f"seed{seed}" / "model"
    return str(of_seed if of_seed.is_dir() else folder)
