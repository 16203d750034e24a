"""`score`: folders of predicted objects, folders of references and a protocol to a table."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol as Interface

import torch

from nova3d import config as configs
from nova3d import layouts
from nova3d.errors import InputError
from nova3d.evaluation import baselines
from nova3d.evaluation.cache import PREDICTION, REFERENCES, ObjectScores, ScoreCache, object_files
from nova3d.evaluation.folders import OUR_AXES, ObjectFolder, common_kinds
from nova3d.evaluation.mesh_scores import MeshScorer
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.references import with_views
from nova3d.evaluation.tables import Rows, Table
from nova3d.evaluation.view_scores import Networks, TextureScorer, ViewScorer
from nova3d.metrics.registry import with_companions
from nova3d.utils import provenance
from nova3d.utils.progress import Progress, silent
from nova3d.utils.resources import find
from nova3d.utils.workers import in_parts

log = logging.getLogger(__name__)

VERSION = 1  # raise it when reading, drawing or aligning changes scores; cached ones are then recomputed
_NO_VALUE = "it has no value for any object (for normals: views without normal maps)"


def score(
    predictions: str | Path | Sequence[str | Path],
    references: str | Path,
    protocol: Protocol | str | Path | None = None,
    *,
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    axes: str = OUR_AXES,
    weights: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    workers: int = 1,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """Score DIR/<object>/ (views, a mesh.glb or both) or DIR/<object>.glb against references laid out alike.

    The protocol's kinds are scored where predictions and references both hold them. Baselines need references alone.

    Args:
        predictions: one folder, or one per seed of the same method.
        references: folder of the reference objects. Where the protocol scores views and the folder holds meshes
            alone, true views are drawn from them into `cache` (`nova3d.evaluation.references`).
        protocol: what is scored and how, or the name or file of a protocol; None is `Protocol()`, which is
            configs/eval/nova3d-el0.yaml.
        layout: of the predicted views (`nova3d.layouts`); that of the references is detected from their files.
        assume: what is assumed where the layout does not specify it.
        axes: of the predicted meshes, UP,FRONT: "+z,-y" where +Z is up and -Y looks at the input view's camera.
        weights: perceptual metric -> weights file, where it is not the published one.
        device: of the perceptual networks and of the drawing of textured meshes.
        workers: processes that share the objects out; on "cuda" each has a GPU of its own.
        cache: folder for every object's scores. The same call then continues after an interruption, and computes only
            what has changed. None caches nothing.
        progress: called with finished objects and objects in all.

    Returns:
        The table, with a row per object.

    Raises:
        InputError: naming the object, for bad references, and for bad predictions where the protocol refuses them.
    """
    folders = [predictions] if isinstance(predictions, (str, Path)) else list(predictions)
    runs = {f"seed{index}": folder for index, folder in enumerate(folders)}
    tables = score_methods(
        {"": runs},
        references,
        protocol,
        layout=layout,
        assume=assume,
        axes=axes,
        weights=weights,
        device=device,
        workers=workers,
        cache=cache,
        progress=progress,
    )
    return tables[""]


def score_methods(
    methods: Mapping[str, Mapping[str, str | Path]],
    references: str | Path,
    protocol: Protocol | str | Path | None = None,
    *,
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    axes: str = OUR_AXES,
    weights: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    workers: int = 1,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Table]:
    """Score several methods against the same references, whose baselines are scored once.

    Args:
        methods: method -> its runs, one per seed: name -> folder. A run's name is its subfolder in the cache.
        references: as in `score`, like the other arguments.

    Returns:
        Method -> table.

    Raises:
        InputError: as `score` does.
    """
    if not isinstance(protocol, Protocol):
        protocol = Protocol() if protocol is None else configs.load(Protocol, find(protocol, "protocol"))
    given = ObjectFolder.open(references, "references")
    runs = {
        run: ObjectFolder.open(folder, "predictions", layout, assume, axes)
        for of_method in methods.values()
        for run, folder in of_method.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(cache or temporary)
        refs, made = with_views(given, list(runs.values()), protocol, folder, workers, progress or silent)
        evaluation = Evaluation.match(runs, refs, protocol, made)
        networks = Networks.load(evaluation.image_metrics, weights or {}, device if workers == 1 else "cpu")
        kept = evaluation.cache(folder, networks)
        kept.remove_stale()
        _fill(evaluation, kept, networks, str(device), workers, weights or {}, progress or silent)
        scores = {run: {name: kept.read(run, name) for name in evaluation.objects} for run in (REFERENCES, *runs)}
    return {method: _table(evaluation, list(of_method), scores, networks) for method, of_method in methods.items()}


@dataclass(frozen=True)
class Evaluation:
    """Predictions and references that match under a protocol."""

    protocol: Protocol
    references: ObjectFolder
    runs: Mapping[str, ObjectFolder]
    """Name -> predictions of one method and seed."""
    objects: tuple[str, ...]
    kinds: tuple[str, ...]
    """What is scored (protocols.KINDS)."""
    notes: Mapping[str, str]
    """Facts for the table: references drawn from meshes, and kinds that are not scored."""

    @staticmethod
    def match(
        runs: Mapping[str, ObjectFolder], refs: ObjectFolder, protocol: Protocol, facts: Mapping[str, str]
    ) -> "Evaluation":
        """Match folders; raises InputError naming what is missing or inconsistent."""
        if len({folder.root.resolve() for folder in runs.values()}) != len(runs) or not runs:
            raise InputError("give one predictions folder, or several different ones, one per seed")
        objects = sorted(protocol.objects) or refs.objects(protocol.kinds, protocol.views)
        kinds, notes = _kinds(list(runs.values()), refs, objects, protocol)
        return Evaluation(protocol, refs, runs, tuple(objects), kinds, {**facts, **notes})

    @property
    def image_metrics(self) -> tuple[str, ...]:
        """The metrics (metrics.VIEW_METRICS) of the pictures that are scored."""
        named = {"views": self.protocol.views.metrics, "textures": self.protocol.textures.metrics}
        return with_companions([metric for kind in self.kinds for metric in named.get(kind, ())])

    def scorers(self, name: str, networks: Networks, device: str) -> list["ObjectScorer"]:
        """One scorer per kind for an object; raises InputError that names what is wrong with the reference."""
        makers: dict[str, Callable[[], ObjectScorer]] = {
            "views": lambda: ViewScorer(name, self.references, self.protocol, networks),
            "meshes": lambda: MeshScorer(name, self.references, self.protocol),
            "textures": lambda: TextureScorer(name, self.references, self.protocol, networks, device),
        }
        return [make() for kind, make in makers.items() if kind in self.kinds]

    def cache(self, folder: Path, networks: Networks) -> ScoreCache:
        """The cache of all scores of this evaluation, below `folder`, with the key of each."""
        rules = replace(self.protocol, objects=())  # an object's scores do not depend on the other objects
        settings = [VERSION, torch.__version__, rules.hash, rules.versions(), self.kinds]
        settings += [networks.facts(), sorted(networks.missing)]
        keys = {}
        for name in self.objects:
            reference = object_files(self.references.root, name)
            keys[REFERENCES, name] = provenance.hash_json([*settings, baselines.VERSION, reference])
            for run, predictions in self.runs.items():
                own = [object_files(predictions.root, name), predictions.layout, str(predictions.assume)]
                own += [predictions.axes]
                keys[run, name] = provenance.hash_json([*settings, reference, *own])
        return ScoreCache(folder / f"{rules.name}-{rules.hash}", keys)


class ObjectScorer(Interface):
    """Scores predictions of one object in one kind; its reference is read once."""

    missing: dict[str, str]
    """Column -> why it could not be computed, filled while scoring."""

    def score(self, prediction: ObjectFolder) -> dict[str, float]:
        """Column -> value; raises InputError where the prediction is missing or unusable."""
        ...

    def score_failure(self) -> dict[str, float]:
        """The row of a prediction that failed: that of an empty one."""
        ...

    def score_baselines(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Name and row of every baseline."""
        ...


def score_prediction(scorers: Sequence[ObjectScorer], folder: ObjectFolder, failures: str) -> ObjectScores:
    """Score one object of one run. A bad prediction raises InputError or scores as empty, by `failures`."""
    row: dict[str, float] = {}
    reasons: list[str] = []
    missing: dict[str, str] = {}
    for scorer in scorers:
        try:
            row |= scorer.score(folder)
        except InputError as error:
            if failures == "refuse":
                raise
            log.warning("scored as a failure, in '%s': %s", folder.root, error)
            reasons.append(str(error))
            row |= scorer.score_failure()
        missing |= scorer.missing
    return ObjectScores({PREDICTION: row}, "; ".join(reasons), missing)


def score_baselines(scorers: Sequence[ObjectScorer]) -> ObjectScores:
    """Score every baseline of one object."""
    rows: Rows = {}
    missing: dict[str, str] = {}
    for scorer in scorers:
        for label, row in scorer.score_baselines():
            rows.setdefault(label, {}).update(row)
        missing |= scorer.missing
    return ObjectScores(rows, "", missing)


def _fill(
    evaluation: Evaluation,
    cache: ScoreCache,
    networks: Networks,
    device: str,
    workers: int,
    weights: Mapping[str, str | Path],
    progress: Progress,
) -> None:
    """Score what is not in the cache; each of `workers` processes takes every workers-th object."""
    total = len(evaluation.objects)
    own = networks if workers == 1 else None  # another process loads its own

    def tick() -> None:
        finished = (all(cache.has(run, name) for run in (REFERENCES, *evaluation.runs)) for name in evaluation.objects)
        progress(sum(finished), total, "scoring")

    tick()
    in_parts(partial(_score_part, evaluation, cache, own, weights), workers, device, tick)


def _score_part(
    evaluation: Evaluation,
    cache: ScoreCache,
    networks: Networks | None,
    weights: Mapping[str, str | Path],
    part: int,
    parts: int,
    device: str,
    tick: Callable[[], None],
) -> None:
    """Score the objects part, part + parts, ... that are not in the cache."""
    for name in evaluation.objects[part::parts]:
        wanted = [run for run in evaluation.runs if not cache.has(run, name)]
        if not wanted and cache.has(REFERENCES, name):
            continue
        networks = networks or Networks.load(evaluation.image_metrics, weights, device)
        scorers = evaluation.scorers(name, networks, device)
        for run in wanted:
            cache.write(run, name, score_prediction(scorers, evaluation.runs[run], evaluation.protocol.failures))
        if not cache.has(REFERENCES, name):
            cache.write(REFERENCES, name, score_baselines(scorers))
        tick()


def _table(
    evaluation: Evaluation,
    runs: Sequence[str],
    scores: Mapping[str, Mapping[str, ObjectScores]],
    networks: Networks,
) -> Table:
    """The table of one method's runs, without the columns that have no value for any object."""
    rows: dict[int, Rows] = {
        index: {name: scores[run][name].rows[PREDICTION] for name in evaluation.objects}
        for index, run in enumerate(runs)
    }
    of_baselines: dict[str, Rows] = {}
    for name in evaluation.objects:
        for label, row in scores[REFERENCES][name].rows.items():
            of_baselines.setdefault(label, {})[name] = row
    not_computed = dict(networks.missing)
    for run in (*runs, REFERENCES):
        not_computed |= {column: why for entry in scores[run].values() for column, why in entry.missing.items()}
    every = [row for of_seed in rows.values() for row in of_seed.values()]
    for metric in every[0]:
        if all(math.isnan(row[metric]) for row in every):
            not_computed.setdefault(metric, _NO_VALUE)
    failures = {
        name: text for name in evaluation.objects if (text := _failure([scores[run][name].failure for run in runs]))
    }
    kept = {seed: _drop_not_computed(found, not_computed) for seed, found in rows.items()}
    kept_baselines = {label: _drop_not_computed(found, not_computed) for label, found in of_baselines.items()}
    name, code = evaluation.protocol.name, evaluation.protocol.hash
    facts = {**networks.facts(), **evaluation.notes}
    if len(kept) == 1:
        return Table(name, code, kept[0], kept_baselines, {}, failures, not_computed, facts)
    return Table.from_seeds(name, code, kept, kept_baselines, failures, not_computed, facts)


def _failure(reasons: Sequence[str]) -> str:
    said = [(f"seed {index}: " if len(reasons) > 1 else "", reason) for index, reason in enumerate(reasons)]
    return "; ".join(where + reason for where, reason in said if reason)


def _drop_not_computed(rows: Rows, not_computed: Mapping[str, str]) -> Rows:
    return {
        name: {metric: value for metric, value in row.items() if metric not in not_computed}
        for name, row in rows.items()
    }


def _kinds(
    folders: Sequence[ObjectFolder], refs: ObjectFolder, objects: list[str], protocol: Protocol
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which kinds are scored, and facts on those that are not; raises InputError that names what is missing."""
    if not objects:
        raise InputError(f"'{refs.root}' has no objects to score {' or '.join(protocol.kinds)} of (DIR/<object>/...)")
    found = [common_kinds(folder, refs, objects, protocol.kinds, protocol.views) for folder in folders]
    kinds, lines = found[0]
    for folder, (others, _) in zip(folders, found, strict=True):
        if others != kinds:
            raise InputError(
                f"'{folders[0].root}' holds {' and '.join(kinds)}, '{folder.root}' {' and '.join(others)}: they are "
                "not seeds of one method"
            )
        if protocol.failures == "refuse":
            for kind in kinds:
                missing = [name for name in objects if not folder.holds(name, kind, protocol.views)]
                if missing:
                    raise InputError(f"'{folder.root}' lacks {kind} of {', '.join(missing)}")
    return tuple(kinds), {"not scored": "; ".join(lines)} if lines else {}
