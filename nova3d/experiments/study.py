"""A study on disk: references, generated views, fused meshes, their scores.

    OUT/references/OBJECT/              true views of the model's rig; mesh.glb in the same frame
    OUT/views/[ARM/]seedK/OBJECT/       the model's views of the reference's view 0
    OUT/meshes/[ARM/]seedK/OBJECT/      mesh.glb fused from them
    OUT/failures/STAGE/[ARM/]seedK/OBJECT.json   why it failed
    OUT/scores/                         kept scores (nova3d.evaluation.cache)
A folder is written aside and renamed, so every existing folder is complete. The same call continues an interrupted
study.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nova3d import config as configs
from nova3d.cameras import Cameras, preset
from nova3d.data.shards import INDEX, ShardReader
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table, score_methods
from nova3d.evaluation.references import write_reference
from nova3d.evaluation.tables import Rows, hardware
from nova3d.evaluation.view_scores import scored_views
from nova3d.experiments.objects import mesh_file, mesh_hash
from nova3d.fusion import FusionConfig, reconstruct
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.folder import model_folder, model_hashes
from nova3d.sampling import SampleConfig, generate_views, load_pipeline
from nova3d.utils import provenance
from nova3d.utils.files import json_types, read_json, replacing, write_json
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_IDENTITY = "study.json"
_OBJECTS = "objects"  # in it: object -> hash of its files


@dataclass(frozen=True)
class Generator:
    """A model folder and the seed it samples with."""

    folder: str
    """Under views/: "seed0", "gta/seed0"."""
    model: str
    seed: int


@dataclass(frozen=True)
class Fusion:
    """How one generator's views are fused to meshes; `folder` is under meshes/."""

    folder: str
    views: str
    config: FusionConfig


@dataclass(frozen=True)
class Study:
    """The stages of a study. source: a folder of mesh files, or of shards (references of shards have no mesh).

    sample: how every generator samples; its image, model, out, seed, framed and keep_input are not used.
    """

    out: Path
    source: Path
    names: tuple[str, ...]
    rig: str
    size: int
    sample: SampleConfig
    generators: tuple[Generator, ...]
    fusions: tuple[Fusion, ...] = field(default=())

    @property
    def references(self) -> Path:
        return self.out / "references"

    def folders(self) -> Iterator[tuple[str, str]]:
        """(folder of the stage, object) of every result."""
        stages = ["references", *(f"views/{g.folder}" for g in self.generators)]
        for stage in [*stages, *(f"meshes/{f.folder}" for f in self.fusions)]:
            for name in self.names:
                yield stage, name

    def done(self) -> int:
        """How many of `folders` exist or have failed."""
        return sum(self.is_finished(stage, name) for stage, name in self.folders())

    def is_finished(self, stage: str, name: str) -> bool:
        return (self.out / stage / name).is_dir() or self.failure(stage, name).is_file()

    def failure(self, stage: str, name: str) -> Path:
        return self.out / "failures" / stage / f"{name}.json"

    def reasons(self, stage: str) -> dict[str, str]:
        """Object -> why it failed, of one stage's folder."""
        files = {name: self.failure(stage, name) for name in self.names}
        found = {name: read_json(file, dict, "failure") for name, file in files.items() if file.is_file()}
        return {name: str(entry.get("reason")) for name, entry in found.items()}


def model_rig(model: str | Path) -> tuple[str, int]:
    """Camera preset and picture size of a model, a folder, a shipped name or a hub id, read without its weights."""
    path = model_folder(model) / "model_index.json"
    entry = read_json(path, dict, "model index")
    try:
        return str(entry["camera_preset"]), int(entry["size"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"'{model}' is not a model folder of this project: {path.name}: {error!r}") from error


def check_study(study: Study, retry: bool = False) -> None:
    """Refuse a folder that holds another study's results, and record this study's settings; with `retry`, remove the
    failures. Raises InputError naming the setting that differs, or the object whose files have changed since."""
    path = study.out / _IDENTITY
    before = read_json(path, dict, "study") if path.is_file() else {}
    now = json_types(_identity(study))
    for stage in sorted(before.keys() & now.keys()):
        for key, value in now[stage].items():
            if before[stage].get(key) != value:
                raise InputError(f"'{study.out}/{stage}' was made with another {key}; give another out folder")
    hashes = _object_hashes(study)
    known = before.get(_OBJECTS, {})  # empty in a study of an earlier version
    for name, value in hashes.items():
        if known.get(name, value) != value and (study.references / name).is_dir():
            raise InputError(
                f"object '{name}' of '{study.source}' has changed since '{study.references / name}' was made; give "
                "another out folder"
            )
    write_json(path, before | now | {_OBJECTS: known | hashes})
    if retry:
        for stage, name in study.folders():
            study.failure(stage, name).unlink(missing_ok=True)


def _object_hashes(study: Study) -> dict[str, str]:
    """Object -> hash of the files that it is drawn from, or of its sample in shards."""
    if (study.source / INDEX).is_file():
        samples = {str(sample["uid"]): str(sample["sha256"]) for sample in ShardReader(study.source).samples}
        return {name: samples[name] for name in study.names}
    return {name: mesh_hash(study.source, name) for name in study.names}


def model_hash(study: Study, generator: Generator) -> str:
    """Hash of the weights that made a generator's views, as `check_study` recorded them."""
    known = read_json(study.out / _IDENTITY, dict, "study")
    return provenance.hash_json(known[f"views/{generator.folder}"]["model"])


def make(study: Study, part: int, parts: int, device: str, tick: Callable[[], None]) -> None:
    """Make all missing results of the objects part, part + parts, ..., stage by stage.

    A stage that fails for one object is recorded as its failure, and the others continue. A bad reference, model or
    disk ends the run with InputError.
    """
    names = study.names[part::parts]
    rig = preset(study.rig, study.size)
    for name in names:
        if not study.is_finished("references", name):
            with replacing(study.references / name) as folder:
                folder.mkdir()
                _write_truth(study.source, name, rig, folder)
            tick()
    for generator in study.generators:
        _make_views(study, generator, names, device, tick)
    for fusion in study.fusions:
        stage = f"meshes/{fusion.folder}"
        for name in [name for name in names if not study.is_finished(f"meshes/{fusion.folder}", name)]:
            with _record_failures(study, stage, name), replacing(study.out / stage / name) as folder:
                folder.mkdir()
                write_mesh(study.out / "views" / fusion.views / name, folder, fusion.config, device)
            tick()


def _make_views(
    study: Study, generator: Generator, names: Sequence[str], device: str, tick: Callable[[], None]
) -> None:
    """The missing views of one generator. Its networks are in memory only for as long as this takes."""
    stage, pipeline = f"views/{generator.folder}", None
    for name in [name for name in names if not study.is_finished(stage, name)]:
        pipeline = pipeline or load_pipeline(replace(study.sample, model=generator.model), device)
        with _record_failures(study, stage, name), replacing(study.out / stage / name) as folder:
            folder.mkdir()
            write_views(pipeline, study.references / name, folder, study.sample, generator)
        tick()


def _write_truth(source: Path, name: str, rig: Cameras, folder: Path) -> None:
    """An object's true views and, where the source has one, its mesh in their frame."""
    if (source / INDEX).is_file():
        reader = ShardReader(source)
        if reader.cameras.c2w.shape != rig.c2w.shape or not torch.allclose(reader.cameras.c2w, rig.c2w, atol=1e-4):
            raise InputError(f"the shards in '{source}' were not rendered with the model's cameras")
        if reader.cameras.width != rig.width:
            raise InputError(f"the shards in '{source}' have {reader.cameras.width} pixels, the model {rig.width}")
        reader.views([sample["uid"] for sample in reader.samples].index(name)).save(folder)
        return
    with mesh_file(source, name) as path:
        write_reference(path, rig, folder)


# Raise it when the same model and settings give other views. 2: straight alpha, and noise by seed and object.
SAMPLING_VERSION = 2


def object_seed(seed: int, name: str) -> int:
    """The sampling seed of an object in a study, 32 bits of a hash of the study's seed and the object's name.

    With one seed for all objects, all would start from the same noise, and its effect would not average out over them.
    """
    return provenance.stable_hash(f"{seed} {name}", 32)


def write_views(
    pipeline: Nova3DPipeline, reference: Path, folder: Path, sample: SampleConfig, generator: Generator
) -> None:
    """Generate views from the reference's view 0, which keeps its true colours."""
    truth = ViewSet.load(reference)
    started = time.perf_counter()
    own = replace(sample, keep_input=True, framed=True, seed=object_seed(generator.seed, reference.name))
    views, task_iou = generate_views(pipeline, truth.straight_alpha(0), own)
    seconds = time.perf_counter() - started
    entry = provenance.record("sample", model=generator.model, seed=generator.seed, task_iou=task_iou, seconds=seconds)
    views.save(folder, entry)


def write_mesh(views: Path, folder: Path, config: FusionConfig, device: str) -> None:
    """Fuse a view folder to a mesh; raises InputError where there are no views."""
    if not views.is_dir():
        raise InputError("there are no views: their generation failed")
    result = reconstruct(ViewSet.load(views), config, device)
    entry = provenance.record("fusion", config, timings=result.timings, report=result.report)
    result.save(folder / "mesh.glb", entry)
    provenance.write(folder, entry)


@contextmanager
def _record_failures(study: Study, stage: str, name: str) -> Iterator[None]:
    """Record an exception as the object's failure; lack of memory or disk space is raised as InputError instead."""
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(f"{stage}/{name}: {error}; the same command continues from there") from error
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        log.warning("%s of %s failed: %s", stage, name, reason, exc_info=not isinstance(error, InputError))
        write_json(study.failure(stage, name), {"stage": stage, "object": name, "reason": reason})


def _identity(study: Study) -> Mapping[str, Mapping[str, Any]]:
    """The settings that each stage's results depend on, by its folder."""
    ignored = ("image", "model", "out", "seed", "framed", "keep_input", "low_memory", "compile")
    sample = {key: value for key, value in configs.to_dict(study.sample).items() if key not in ignored}
    hashes = {model: model_hashes(model) for model in {generator.model for generator in study.generators}}
    known: dict[str, Mapping[str, Any]] = {
        "references": {"objects folder": str(study.source.resolve()), "cameras": [study.rig, study.size]}
    }
    for generator in study.generators:
        known[f"views/{generator.folder}"] = {
            "model": hashes[generator.model],
            "sampling": sample,
            "sampling version": SAMPLING_VERSION,
        }
    for fusion in study.fusions:
        known[f"meshes/{fusion.folder}"] = {"fusion": configs.to_dict(fusion.config), "views": fusion.views}
    return known


def score_study(
    study: Study,
    methods: Mapping[str, Sequence[str]],
    protocol: Protocol,
    device: str = "cpu",
    workers: int = 1,
    weights: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Table]:
    """Score the methods of a study whose objects have been made.

    A failed object is scored as a failed prediction, and carries the reason of the stage that failed.

    Args:
        study: the study.
        methods: method -> its folders in the study, one per seed: "views/gta/seed0".
        protocol: what is scored and how.
        device, workers, weights, progress: as in `evaluation.score`.

    Returns:
        Method -> table, with the study's facts, and for generated views the column `task_iou`.

    Raises:
        InputError: where every object of a method failed.
    """
    for stages in methods.values():
        reasons = {stage: study.reasons(stage) for stage in stages}
        if all(len(found) == len(study.names) for found in reasons.values()):
            first = next(f"{name}: {reason}" for found in reasons.values() for name, reason in found.items())
            raise InputError(f"every object of {', '.join(stages)} failed; the first one: {first}")
    for stage in (stage for stages in methods.values() for stage in stages):
        (study.out / stage).mkdir(parents=True, exist_ok=True)
    # Without a list the protocol scores every object of the references' folder, which may hold more than this study's.
    there = {path.name for path in study.references.iterdir() if not path.name.startswith(".")}
    protocol = replace(protocol, failures="score", objects=() if there == set(study.names) else study.names)
    tables = score_methods(
        {method: {stage: study.out / stage for stage in stages} for method, stages in methods.items()},
        study.references,
        protocol,
        weights=weights,
        device=device,
        workers=workers,
        cache=study.out / "scores",
        progress=progress,
    )
    return {method: _with_facts(study, methods[method], protocol, table) for method, table in tables.items()}


def tables_markdown(tables: Mapping[str, Table]) -> str:
    """Every method's whole table, each under its name."""
    return "\n".join(f"## {name}: scores per object\n\n{table.markdown()}" for name, table in tables.items())


def _with_facts(study: Study, stages: Sequence[str], protocol: Protocol, table: Table) -> Table:
    """A method's table with the study's own records: task_iou, reasons of failures, facts."""
    table = _with_task_iou(study, stages, protocol, table)
    failures = {}
    for name, reason in table.failures.items():  # the scorer's reason is only that the files are missing
        said = {stage: study.reasons(stage).get(name) for stage in stages}
        failures[name] = "; ".join(f"{stage}: {why}" for stage, why in said.items() if why) or reason
    made = {f"views/{generator.folder}": generator for generator in study.generators}
    made |= {f"meshes/{fusion.folder}": made[f"views/{fusion.views}"] for fusion in study.fusions}
    used = [made[stage] for stage in stages]
    weights = [*dict.fromkeys(f"model {model_hash(study, generator)}" for generator in used)]
    weights += [table.facts["weights"]] if "weights" in table.facts else []
    facts = {
        "commit": provenance.commit(),
        "weights": ", ".join(weights),
        "seeds": ", ".join(str(generator.seed) for generator in used),
        "hardware": hardware(),
    }
    return replace(table, failures=failures, facts={**table.facts, **facts})


def _with_task_iou(study: Study, stages: Sequence[str], protocol: Protocol, table: Table) -> Table:
    """The table of generated views with the column `task_iou`, a mean over the scored views.

    It was measured on the network's own pictures and is read from the views' records. A failed object has 0. Meshes get
    no column, nor do views of a version that did not measure it.
    """
    recorded = {stage: {name: _recorded_task_iou(study.out / stage / name) for name in table.rows} for stage in stages}
    if not any(values for found in recorded.values() for values in found.values()):
        return table

    def value(stage: str, name: str) -> float:
        values = recorded[stage][name]
        if not values:
            return math.nan if (study.out / stage / name).is_dir() else 0.0
        counted = [values[view] for view in scored_views(len(values), protocol.views, name)]
        return math.fsum(counted) / len(counted)

    def extended(rows: Rows, stage: str) -> Rows:
        return {name: row | {"task_iou": value(stage, name)} for name, row in rows.items()}

    if not table.per_seed:
        return replace(table, rows=extended(table.rows, stages[0]))
    per_seed = {seed: extended(rows, stages[seed]) for seed, rows in table.per_seed.items()}
    return Table.from_seeds(
        table.protocol,
        table.protocol_hash,
        per_seed,
        table.baselines,
        dict(table.failures),
        table.not_computed,
        table.facts,
    )


def _recorded_task_iou(views: Path) -> list[float]:
    """`task_iou` of every view of a folder that `write_views` wrote; empty where there is none."""
    record = views / "record.json"
    return list(read_json(record, dict, "record").get("task_iou", [])) if record.is_file() else []
