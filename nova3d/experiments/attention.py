"""The attention suite: every arm of the alignment attention trained alike, then sampled and scored on held-out objects.

All arms of a seed share the weights they start from (alignment units start as their arm demands), the order of the
data, every draw of noise and the budget; what differs is the arm.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch.utils.flop_counter import FlopCounterMode

from nova3d import config as configs
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table
from nova3d.evaluation.cache import scored_tables
from nova3d.evaluation.comparison import Comparison, compare
from nova3d.evaluation.formats import Grid, Line
from nova3d.experiments import study as stages
from nova3d.experiments import tables
from nova3d.experiments.initial import write_start
from nova3d.experiments.reproduce import fit_to_model
from nova3d.generation import SampleConfig
from nova3d.models import NovaUNet
from nova3d.models.alignment import ALIGNMENT_INITS, ALIGNMENTS
from nova3d.tasks import TASKS
from nova3d.training.config import TrainConfig, UNetConfig, check, micro_steps
from nova3d.training.trainer import train
from nova3d.utils import provenance
from nova3d.utils.files import writable_folder
from nova3d.utils.workers import in_parts

log = logging.getLogger(__name__)

BUDGETS = ("steps", "flops")
_FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward one


@dataclass
class AttentionArm:
    """One arm: its alignment (nova3d.models.alignment) and how its units start."""

    alignment: str = MISSING
    init: str = "copied"


@dataclass
class AttentionConfig:
    """What `scripts/ablate.py --suite attention` reads. Paths are relative to where the script runs."""

    out: str = "outputs/attention"
    train: str = "configs/train/mini.yaml"
    train_changes: list[str] = field(default_factory=list)  # key=value; out, seed, model.alignment and resume are ours
    held_out: str = MISSING  # objects to score: a folder of meshes or of shards; none of them may be trained on
    names: list[str] = field(default_factory=list)  # of these; empty: all
    arms: dict[str, AttentionArm] = field(default_factory=dict)
    baseline: str = "gta"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of trainings; each model samples with its own
    budget: str = "steps"  # every arm takes as many steps; or flops: as much arithmetic as the baseline's steps
    sample: SampleConfig = field(default_factory=SampleConfig)  # its image, model, out, seed and framed are ours
    protocol: str = "configs/eval/mini.yaml"
    protocol_changes: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)  # of perceptual metrics, by column


@dataclass(frozen=True)
class Cost:
    """Of one arm. flops: of one training step, forward and backward, over all its objects."""

    parameters: int
    flops: float
    steps: int


@dataclass(frozen=True)
class Training:
    """One run: its arm, seed and whole config."""

    arm: str
    seed: int
    config: TrainConfig
    start: Path

    @property
    def model(self) -> Path:
        return Path(self.config.out) / "model"

    def finished(self) -> bool:
        record = self.model / "record.json"
        return record.is_file() and json.loads(record.read_text()).get("step") == self.config.steps


@dataclass(frozen=True)
class AttentionReport:
    """tables: arm -> scores over the seeds. costs, measured: arm -> what it costs; measured: from the training logs."""

    tables: Mapping[str, Table]
    comparison: Comparison
    costs: Mapping[str, Cost]
    measured: Mapping[str, Mapping[str, float]]
    baseline: str
    facts: Mapping[str, str]

    def markdown(self) -> str:
        parts = ["# Attention suite\n", self._cost_grid().markdown()]
        parts.append(f"## Against `{self.baseline}`, object by object\n\n{self.comparison.markdown()}")
        parts.append(tables.per_object(self.tables))
        return "\n".join(parts)

    def save(self, folder: Path, record: Mapping[str, object]) -> Path:
        """report.md, report.json, comparison.* and scores.* of each arm; returns report.md."""
        writable_folder(folder)
        for name, table in self.tables.items():
            table.save(folder / name, record, self.facts)
        self.comparison.save(folder, record)
        costs = {name: vars(cost) | dict(self.measured[name]) for name, cost in self.costs.items()}
        entry = {"facts": dict(self.facts), "costs": costs, "record": dict(record)}
        entry |= {"comparison": self.comparison.to_dict()}
        tables.write_text(folder / "report.json", json.dumps(entry, indent=1, default=str))
        return tables.write_text(folder / "report.md", self.markdown())

    def _cost_grid(self) -> Grid:
        base = self.costs[self.baseline]
        lines = []
        for name, cost in self.costs.items():
            share, seen = cost.flops / base.flops, self.measured[name]
            cells = (f"{cost.parameters:,}", f"{cost.flops / 1e12:.4g}", f"{share:.3f}", f"{cost.steps:,}")
            work = cost.flops * cost.steps / (base.flops * base.steps)
            lines.append(Line(name, (*cells, f"{work:.3f}", f"{seen['seconds']:.3g}", f"{seen['loss']:.4f}")))
        columns = ("arm", "parameters", "TFLOP per step", "share", "steps", "work", "s per step", "last loss")
        notes = (
            f"share and work are of `{self.baseline}`'s; seconds and the last logged loss are means over the seeds; "
            "seconds mean nothing where runs shared a machine",
        )
        return Grid(self.facts, columns, (tuple(lines),), notes)


def attention_suite(
    config: AttentionConfig,
    device: str = "cpu",
    workers: int = 1,
    retry: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[AttentionReport, Path]:
    """Train what is missing in out/runs/ARM/seedK, sample, score, and write out/report.md; the same call goes on.

    workers: processes; each takes every workers-th training, then every workers-th object, on "cuda" each with a GPU of
    its own. progress: called with what is done, in all, and a word on what. Raises InputError for bad configs, data and
    diverged trainings, and where every object of an arm fails.
    """
    tell = progress or (lambda done, total, message: None)
    protocol = configs.load(Protocol, config.protocol, config.protocol_changes)
    base, names = _checked(config)
    out = writable_folder(config.out)
    dataset = MultiViewDataset(base.data.shards, base.data.input_views)
    costs = budgets(config, base, len(dataset.reader.cameras), dataset.reader.cameras.width)
    runs = trainings(config, base, costs)
    work = partial(train_part, tuple(runs))
    in_parts(work, workers, device, lambda: tell(sum(run.finished() for run in runs), len(runs), "training"))
    rig, size = stages.model_rig(runs[0].model)
    made = [stages.Generator(f"{run.arm}/seed{run.seed}", str(run.model), run.seed) for run in runs]
    study = stages.Study(out, Path(config.held_out), names, rig, size, config.sample, tuple(made))
    protocol = fit_to_model(protocol, study)
    stages.check_study(study, retry)
    total = len(list(study.folders()))
    in_parts(partial(stages.make, study), workers, device, lambda: tell(study.done(), total, "sampling"))
    places = {arm: [f"views/{arm}/seed{seed}" for seed in config.seeds] for arm in config.arms}
    found = scored_tables(study, places, protocol, device, workers, config.weights, progress)
    first = next(iter(found.values()))
    facts = {
        "protocol": f"{first.protocol} ({first.protocol_hash})",
        "commit": first.facts["commit"],
        "hardware": first.facts["hardware"],
        "training": f"{config.train}, {len(dataset)} objects",
        "budget": f"equal {config.budget}",
        "seeds": first.facts["seeds"],
        "held out": f"{len(names)} objects of '{config.held_out}'",
    }
    measured = {arm: _measured([run for run in runs if run.arm == arm]) for arm in config.arms}
    report = AttentionReport(found, compare(found, config.baseline), costs, measured, config.baseline, facts)
    record = provenance.record("attention-suite", configs.to_dict(config), device=device, workers=workers)
    return report, report.save(out, record)


def budgets(config: AttentionConfig, base: TrainConfig, views: int, size: int) -> dict[str, Cost]:
    """Each arm's cost and its steps under the budget."""
    counted = {name: step_cost(_model(base, arm), views, size // 8) for name, arm in config.arms.items()}
    reference = counted[config.baseline][1]
    objects = base.batch_size * micro_steps(base, processes=1)
    found = {}
    for name, (parameters, flops) in counted.items():
        steps = base.steps if config.budget == "steps" else max(1, round(base.steps * reference / flops))
        found[name] = Cost(parameters, flops * objects, steps)
    return found


def step_cost(model: UNetConfig, views: int, side: int) -> tuple[int, float]:
    """Parameters, and FLOPs (2 per multiply-add) of a forward and a backward pass over one object, counted without
    computing anything; side: of the latents."""
    with torch.device("meta"):
        unet = NovaUNet(sample_size=side, **vars(model))
        unet = unet.to("meta")  # mix factors ignore the device above
        width, one = int(unet.config.cross_attention_dim), torch.empty(1)
        inputs = (torch.empty(1, len(TASKS), views, 8, side, side), one, torch.empty(1, 1, width), one)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*inputs, torch.empty(1, views, 2))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return parameters, float(_FORWARD_AND_BACKWARD * counter.get_total_flops())


def trainings(config: AttentionConfig, base: TrainConfig, costs: Mapping[str, Cost]) -> list[Training]:
    """Every run, seed by seed, so that an unfinished suite has whole seeds."""
    runs = []
    for seed in config.seeds:
        for name, arm in config.arms.items():
            start = Path(config.out) / "start" / f"seed{seed}" / name
            settings = replace(
                base,
                out=str(Path(config.out) / "runs" / name / f"seed{seed}"),
                seed=seed,
                steps=costs[name].steps,
                model=_model(base, arm),
                resume="auto",
            )
            runs.append(Training(name, seed, settings, start))
    return runs


def train_part(runs: tuple[Training, ...], part: int, parts: int, device: str, tell: Callable[[], None]) -> None:
    """The trainings part, part + parts, ... that are not finished."""
    for run in runs[part::parts]:
        if not run.finished():
            log.info("training %s, seed %d", run.arm, run.seed)
            train(write_start(run.config, run.start), device, lambda *_: tell())
            shutil.rmtree(run.start, ignore_errors=True)
        tell()


def _model(base: TrainConfig, arm: AttentionArm) -> UNetConfig:
    return replace(base.model, alignment=arm.alignment, alignment_init=arm.init)


def _checked(config: AttentionConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """The training config and the held-out objects; raises InputError for whatever would end the suite later."""
    base = configs.load(TrainConfig, config.train, config.train_changes)
    check(base)
    if config.budget not in BUDGETS:
        raise InputError(f"budget '{config.budget}' is not one of {', '.join(BUDGETS)}")
    if config.baseline not in config.arms or len(config.arms) < 2:
        raise InputError(f"the suite needs the baseline '{config.baseline}' and another arm, got {list(config.arms)}")
    if unknown := [arm.alignment for arm in config.arms.values() if arm.alignment not in ALIGNMENTS]:
        raise InputError(f"alignment '{unknown[0]}' is not one of {', '.join(ALIGNMENTS)}")
    if unknown := [arm.init for arm in config.arms.values() if arm.init not in ALIGNMENT_INITS]:
        raise InputError(f"init '{unknown[0]}' is not one of {', '.join(ALIGNMENT_INITS)}")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds must be given and differ, got {config.seeds}")
    names = stages.object_names(Path(config.held_out), config.names)
    trained = {str(sample["uid"]) for sample in MultiViewDataset(base.data.shards).reader.samples}
    if both := sorted(trained & set(names)):
        raise InputError(f"held-out object {', '.join(both)} is in the training shards '{base.data.shards}'")
    return base, names


def _measured(runs: list[Training]) -> dict[str, float]:
    """Means over an arm's runs of the logged seconds per step and of the last logged loss; nan without a log."""
    found: dict[str, list[Any]] = {"seconds": [], "loss": []}
    for run in runs:
        path = Path(run.config.out) / "stats.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        found["seconds"] += [line["seconds"] for line in lines if "seconds" in line]
        found["loss"] += [line["loss"] for line in lines[-1:] if "loss" in line]
    return {name: sum(values) / len(values) if values else float("nan") for name, values in found.items()}
