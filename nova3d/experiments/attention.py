"""The attention suite: every arm of the alignment attention trained alike, then sampled and scored on held-out objects.

All arms of a seed share the starting weights, the order of the data, every draw of noise and the budget; only the arm
differs. New units are initialised as their arm specifies. The starting weights can be those of a trunk: one training
without alignment that all seeds share.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nova3d import config as configs
from nova3d.data.config import shard_folders
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import INDEX
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table
from nova3d.evaluation.comparison import Comparison, compare
from nova3d.evaluation.formats import TextRow, TextTable
from nova3d.experiments import study as studies
from nova3d.experiments.config import AttentionArm, AttentionConfig
from nova3d.experiments.objects import object_names
from nova3d.experiments.reproduce import fit_to_model
from nova3d.models import NovaUNet
from nova3d.models.alignment import ALIGNMENT_INITS, ALIGNMENTS, AlignmentInit
from nova3d.models.blocks import SpatialBlock, TemporalBlock
from nova3d.tasks import TASKS
from nova3d.training.config import TrainConfig, UNetConfig, check, micro_steps
from nova3d.training.networks import build_module
from nova3d.training.setup import svd_source
from nova3d.training.trainer import train
from nova3d.utils import provenance
from nova3d.utils.files import (
    check_component,
    json_types,
    locked,
    read_json,
    read_json_lines,
    writable_folder,
    write_json,
    write_text,
)
from nova3d.utils.progress import Progress, silent
from nova3d.utils.workers import in_parts

log = logging.getLogger(__name__)

BUDGETS = ("steps", "flops")
_SETTINGS = "settings.json"  # in a training's folder, beside the model: what it was trained with
# Keys of a training that name where something lies, or change how it runs and not what is trained.
_NOT_TRAINED = {
    *("out", "resume", "resume_other_data", "log_every", "checkpoint_every", "keep_checkpoints", "validate_every"),
    *("validation_objects", "latent_cache", "trackers", "compile", "gradient_checkpointing"),
    *("data.cache", "data.validation", "data.on_corrupt", "data.prefetch", "data.threads"),
}
_ALIGNMENT, _ROW = ".alignment.", ".row_attention."  # in the names of the units' weights
_FORWARD_AND_BACKWARD = 3  # the backward pass costs twice the forward one


# Initialisations other than AttentionArm's. `cross_domain` starts as Wonder3D's; else it would equal `gta_spatial`.
ARM_INITS: dict[str, AlignmentInit] = {"cross_domain": "wonder3d"}


def select_arms(config: AttentionConfig, names: Sequence[str] = ()) -> AttentionConfig:
    """The config with its arms written out, or those called `names` alone.

    Args:
        config: the suite's config. Without arms it has one per alignment of the model.
        names: the arms to keep, in this order; empty keeps all.

    Returns:
        A copy of the config.

    Raises:
        InputError: for an unknown name.
    """
    every = config.arms or {name: AttentionArm(name, ARM_INITS.get(name, "copied")) for name in ALIGNMENTS}
    if unknown := [name for name in names if name not in every]:
        raise InputError(f"arm '{unknown[0]}' is not one of {', '.join(every)}")
    return replace(config, arms={name: every[name] for name in names or every})


@dataclass(frozen=True)
class Cost:
    """What one arm costs."""

    parameters: int
    flops: float
    """Of one training step, forward and backward, over all its objects."""
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

    @property
    def settings_file(self) -> Path:
        return Path(self.config.out) / _SETTINGS

    def finished(self) -> bool:
        """Whether its model is there; raises InputError where it is one of another config.

        A model of an earlier version has no settings beside it: of it, only the number of steps is compared.
        """
        record = self.model / "record.json"
        if not record.is_file():
            return False
        _check_settings(self.settings_file, self.config, Path(self.config.out))
        return read_json(record, dict, "record").get("step") == self.config.steps

    def run(self, device: str, progress: Progress, started: TrainConfig | None = None) -> None:
        """Train it, from the networks that `started` names, and keep its settings beside the model."""
        train(started or self.config, device, progress)
        write_json(self.settings_file, trained_settings(self.config))


@dataclass(frozen=True)
class AttentionReport:
    """What the suite found."""

    tables: Mapping[str, Table]
    """Arm -> scores over the seeds."""
    comparison: Comparison
    costs: Mapping[str, Cost]
    measured: Mapping[str, Mapping[str, float]]
    """Arm -> seconds per step and last loss, from the training logs."""
    baseline: str
    facts: Mapping[str, str]

    def markdown(self) -> str:
        parts = ["# Attention suite\n", self._cost_table().markdown()]
        parts.append(f"## Against `{self.baseline}`, object by object\n\n{self.comparison.markdown()}")
        parts.append(studies.tables_markdown(self.tables))
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
        write_text(folder / "report.json", json.dumps(entry, indent=1, default=str))
        return write_text(folder / "report.md", self.markdown())

    def _cost_table(self) -> TextTable:
        base = self.costs[self.baseline]
        lines = []
        for name, cost in self.costs.items():
            share, seen = cost.flops / base.flops, self.measured[name]
            cells = (f"{cost.parameters:,}", f"{cost.flops / 1e12:.4g}", f"{share:.3f}", f"{cost.steps:,}")
            work = cost.flops * cost.steps / (base.flops * base.steps)
            lines.append(TextRow(name, (*cells, f"{work:.3f}", f"{seen['seconds']:.3g}", f"{seen['loss']:.4f}")))
        columns = ("arm", "parameters", "TFLOP per step", "share", "steps", "work", "s per step", "last loss")
        notes = (
            f"share and work are of `{self.baseline}`'s; seconds and the last logged loss are means over the seeds; "
            "seconds mean nothing where runs shared a machine",
        )
        return TextTable(self.facts, columns, (tuple(lines),), notes)


def attention_suite(
    config: AttentionConfig,
    device: str = "cpu",
    workers: int = 1,
    retry: bool = False,
    progress: Progress | None = None,
) -> tuple[AttentionReport, Path]:
    """Train what is missing in out/runs/ARM/seedK, sample, score, and write out/report.md.

    The same call continues an interrupted suite.


    Args:
        config: the suite.
        device: of the networks.
        workers: processes that share out the trainings, then the objects; on "cuda" each has a GPU of its own.
        retry: whether objects that failed are tried again.
        progress: called as trainings and objects are finished.

    Returns:
        The report, and the path of report.md.

    Raises:
        InputError: for bad configs and data, for diverged trainings, and where every object of an arm fails.
    """
    progress = progress or silent
    config = select_arms(config)
    protocol = configs.load(Protocol, config.protocol, config.protocol_changes)
    base, names = _check(config)
    out = writable_folder(config.out)
    with locked(out, "another study"):
        dataset = MultiViewDataset(base.data.shards, base.data.input_views)
        costs = budgets(config, base, len(dataset.reader.cameras), dataset.reader.cameras.width)
        if config.trunk:
            base = replace(base, unet=str(train_trunk(config, device, progress)))
        runs = trainings(config, base, costs)
        log.info("%d of %d trainings are there", sum(run.finished() for run in runs), len(runs))
        work = partial(train_part, tuple(runs))
        in_parts(work, workers, device, lambda: progress(sum(run.finished() for run in runs), len(runs), "training"))
        rig, size = studies.model_rig(runs[0].model)
        made = [studies.Generator(f"{run.arm}/seed{run.seed}", str(run.model), run.seed) for run in runs]
        study = studies.Study(out, Path(config.held_out), names, rig, size, config.sample, tuple(made))
        protocol = fit_to_model(protocol, study)
        studies.check_study(study, retry)
        total = len(list(study.folders()))
        in_parts(partial(studies.make, study), workers, device, lambda: progress(study.done(), total, "sampling"))
        stages = {arm: [f"views/{arm}/seed{seed}" for seed in config.seeds] for arm in config.arms}
        found = studies.score_study(study, stages, protocol, device, workers, config.weights, progress)
        first = next(iter(found.values()))
        facts = {
            "protocol": f"{first.protocol} ({first.protocol_hash})",
            "commit": first.facts["commit"],
            "hardware": first.facts["hardware"],
            "training": f"{config.train}, {len(dataset)} objects",
            "trunk": f"one training without alignment, {' '.join(config.trunk)}" if config.trunk else "none",
            "budget": f"equal {config.budget}",
            "seeds": first.facts["seeds"],
            "held out": f"{len(names)} objects of '{config.held_out}'",
        }
        facts = provenance.without_folders(facts)
        measured = {arm: _mean_figures([run for run in runs if run.arm == arm]) for arm in config.arms}
        report = AttentionReport(found, compare(found, config.baseline), costs, measured, config.baseline, facts)
        record = provenance.record("attention-suite", config, device=device, workers=workers)
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


def train_trunk(config: AttentionConfig, device: str, progress: Progress = silent) -> Path:
    """Train the weights that all arms start from, in out/trunk, unless they exist.

    Args:
        config: the suite.
        device: of the networks.
        progress: called during the training.

    Returns:
        The folder of the UNet.

    Raises:
        InputError: as the training does, and where the trunk in `out` is one of another config.
    """
    changes = [*config.train_changes, *config.trunk, "model.alignment=none", "resume=auto"]
    settings = _training_config(config.train, changes)
    run = Training("trunk", settings.seed, replace(settings, out=str(Path(config.out) / "trunk")), Path())
    if not run.finished():
        log.info("training the trunk, %d steps", settings.steps)
        run.run(device, progress)
    return run.model / "unet"


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


def train_part(runs: tuple[Training, ...], part: int, parts: int, device: str, tick: Callable[[], None]) -> None:
    """The trainings part, part + parts, ... that are not finished."""
    for run in runs[part::parts]:
        if not run.finished():
            log.info("training %s, seed %d", run.arm, run.seed)
            run.run(device, lambda *_: tick(), write_start(run.config, run.start))
            shutil.rmtree(run.start, ignore_errors=True)
        tick()


def write_start(config: TrainConfig, folder: Path) -> TrainConfig:
    """The same training started from weights in `folder`, which are written unless they exist.

    Every weight that the arms of one seed have in common is the same in all of them, whether the config starts from
    SVD, from a pretrained UNet or from random weights. Alignment units are initialised by
    `config.model.alignment_init`, row attention at zero. Raises InputError where the folder holds the start of a
    training of another config.
    """
    parts = {"unet": folder / "unet", "vae": folder / "vae", "image_encoder": folder / "image_encoder"}
    complete = folder / "complete"
    if complete.is_file():
        _check_settings(complete, config, folder, Path(config.out))
    else:
        _write_networks(config, parts)
        write_json(complete, trained_settings(config))
    # A network read from files draws no random numbers, so a random image encoder is the same in all arms.
    started = replace(config, svd=None, svd_variant=None, unet=str(parts["unet"]))
    if config.svd:
        started = replace(started, vae=str(parts["vae"]), image_encoder=str(parts["image_encoder"]))
    return started


def trained_settings(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value of everything that a training's result depends on, JSON-ready.

    Shards and networks count by their content, as their folders may move. Where a training starts from the trunk, the
    trunk's weights are among them.
    """
    settings: dict[str, Any] = {}
    for name, value in configs.to_dict(config).items():
        settings |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    settings["data.shards"] = [
        provenance.hash_file(folder / INDEX) if (folder / INDEX).is_file() else folder.name
        for folder in shard_folders(config.data.shards)
    ]
    for part in ("svd", "vae", "unet", "image_encoder"):
        folder = Path(settings[part] or "")
        if settings[part] and folder.is_dir():
            settings[part] = [provenance.hash_file(file) for file in sorted(folder.rglob("*.safetensors"))]
    return json_types({key: value for key, value in settings.items() if key not in _NOT_TRAINED})


def _check_settings(file: Path, config: TrainConfig, *made: Path) -> None:
    """Raise InputError where `file` names other settings than `config`; keys that only one of them has do not count.

    A missing or empty file is one of an earlier version and says nothing. made: the folders of what they made.
    """
    if not file.is_file() or not file.stat().st_size:
        return
    before, now = read_json(file, dict, "training's settings"), trained_settings(config)
    if other := sorted(key for key in before.keys() & now.keys() if before[key] != now[key]):
        folders = " and ".join(f"'{folder}'" for folder in made)
        raise InputError(
            f"'{made[0]}' is of a training with another {other[0]}: choose another out, or delete {folders}"
        )


def _write_networks(config: TrainConfig, parts: dict[str, Path]) -> None:
    size = MultiViewDataset(config.data.shards).reader.cameras.width
    torch.manual_seed(config.seed)
    bare = replace(config, model=replace(config.model, alignment="none"))
    module, _ = build_module(bare, size // 8)
    init = config.model.alignment_init
    arm = arm_of(module.unet, config.model.alignment, init, config.seed, config.model.row_attention)
    arm.save_pretrained(parts["unet"])
    if config.svd:
        module.vae.save_pretrained(parts["vae"])
        assert module.image_encoder is not None  # SVD has one
        module.image_encoder.save_pretrained(parts["image_encoder"])
    write_json(parts["unet"].parent / "record.json", {"svd": svd_source(config)})


def arm_of(base: NovaUNet, alignment: str, init: AlignmentInit, seed: int, row_attention: bool = False) -> NovaUNet:
    """A copy of `base` with new alignment units of an arm in place of its own.

    Args:
        base: the network. Its row attention, if it has any, is kept.
        alignment: the arm's name among ALIGNMENTS.
        init: how its alignment units start.
        seed: of what is drawn.
        row_attention: whether it gets row attention where `base` has none.

    Returns:
        A new network that shares no storage with `base`.

    Raises:
        InputError: where `base` has other weights than the arm beside the alignment units and the row attention.
    """
    settings = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    settings |= {"alignment": alignment, "alignment_init": init}
    settings["row_attention"] = row_attention or base.config.row_attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arm = NovaUNet(**settings)
    shared = {name: value for name, value in base.state_dict().items() if _ALIGNMENT not in name}
    missing, unexpected = arm.load_state_dict(shared, strict=False)
    if unfit := [*unexpected, *(name for name in missing if _ALIGNMENT not in name and _ROW not in name)]:
        raise InputError(
            f"the starting network's weights do not fit the arm '{alignment}': {', '.join(unfit[:3])}; start from a "
            "network of this version"
        )
    for block in arm.modules():
        if isinstance(block, SpatialBlock | TemporalBlock) and block.alignment is not None:
            block.alignment.initialise(init, block.norm1, block.attn1)
    return arm


def _model(base: TrainConfig, arm: AttentionArm) -> UNetConfig:
    row_attention = arm.row_attention or base.model.row_attention
    return replace(base.model, alignment=arm.alignment, alignment_init=arm.init, row_attention=row_attention)


def _training_config(path: str, changes: Sequence[str]) -> TrainConfig:
    """A training config with changes, as `nova3d train` reads it."""
    shipped = configs.shipped_paths(configs.load(TrainConfig, path, changes))
    return configs.load(TrainConfig, path, changes, shipped)


def _check(config: AttentionConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """The training config and the held-out objects; raises InputError for what would fail later."""
    base = _training_config(config.train, config.train_changes)
    check(base)
    if base.vae and read_json(Path(base.vae) / "config.json", dict, "autoencoder").get("guide_channels"):
        log.warning(
            "the decoder of vae '%s' also sees the picture's inflated outline, which hides differences between arms: "
            "give one without a guide (nova3d train-autoencoder)",
            base.vae,
        )
    if config.budget not in BUDGETS:
        raise InputError(f"budget '{config.budget}' is not one of {', '.join(BUDGETS)}")
    for name in config.arms:
        check_component(name, "arm")
    if config.baseline not in config.arms or len(config.arms) < 2:
        raise InputError(f"the suite needs the baseline '{config.baseline}' and another arm, got {list(config.arms)}")
    if unknown := [arm.alignment for arm in config.arms.values() if arm.alignment not in ALIGNMENTS]:
        raise InputError(f"alignment '{unknown[0]}' is not one of {', '.join(ALIGNMENTS)}")
    if unknown := [arm.init for arm in config.arms.values() if arm.init not in ALIGNMENT_INITS]:
        raise InputError(f"init '{unknown[0]}' is not one of {', '.join(ALIGNMENT_INITS)}")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds must be given and differ, got {config.seeds}")
    names = object_names(Path(config.held_out), config.names)
    trained = {str(sample["uid"]) for sample in MultiViewDataset(base.data.shards).reader.samples}
    if both := sorted(trained & set(names)):
        raise InputError(f"held-out object {', '.join(both)} is in the training shards '{base.data.shards}'")
    return base, names


def _mean_figures(runs: list[Training]) -> dict[str, float]:
    """Means over an arm's runs of the logged seconds per step and of the last logged loss; nan without a log."""
    found: dict[str, list[Any]] = {"seconds": [], "loss": []}
    for run in runs:
        path = Path(run.config.out) / "stats.jsonl"
        lines = read_json_lines(path, "log", cut=True) if path.is_file() else []
        found["seconds"] += [line["seconds"] for line in lines if "seconds" in line]
        found["loss"] += [line["loss"] for line in lines[-1:] if "loss" in line]
    return {name: sum(values) / len(values) if values else float("nan") for name, values in found.items()}
