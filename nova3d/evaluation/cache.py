"""Scoring shared out over processes, with every object's scores on disk: interrupted, it goes on; repeated, it is read.

    FOLDER/PROTOCOL-HASH/references/OBJECT.json     the floors; the hash leaves the list of objects out
    FOLDER/PROTOCOL-HASH/PLACE/OBJECT.json          one prediction
A score is taken from its file only while everything it hangs on is what it was: the object's files on both sides, the
protocol, the networks' weights and the sources of this package.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import nova3d
from nova3d import layouts
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table
from nova3d.evaluation.formats import plain
from nova3d.evaluation.scorer import Contest, Progress, Scored, score_floors, score_prediction, tabulate
from nova3d.evaluation.tables import hardware
from nova3d.evaluation.view_scores import Networks, scored_views
from nova3d.experiments.study import Study, weights_hash
from nova3d.utils import provenance
from nova3d.utils.workers import in_parts

REFERENCES = "references"  # the floors' place
_SOURCES = (
    "*.py",
    "metrics/*.py",
    "evaluation/*.py",
    "layouts/*.py",
    "rendering/mesh*.py",
    "rendering/raster.py",
    "images/*.py",
)


@dataclass(frozen=True)
class Job:
    """A contest, where its scores lie, and what each hangs on.

    folder: of this protocol's scores. places: of the contest's seeds, in their order. keys: (place, object) -> digest
    of all that the score hangs on.
    """

    contest: Contest
    folder: Path
    places: tuple[str, ...]
    keys: Mapping[tuple[str, str], str]
    weights: Mapping[str, str | Path]

    def file(self, place: str, name: str) -> Path:
        return self.folder / place / f"{name}.json"

    def there(self, place: str, name: str) -> bool:
        return self.file(place, name).is_file()

    def done(self) -> int:
        return sum(self.there(*at) for at in self.keys)


def scored_tables(
    study: Study,
    places: Mapping[str, Sequence[str]],
    protocol: Protocol,
    device: str = "cpu",
    workers: int = 1,
    weights: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Table]:
    """Method -> table, for methods whose seeds are the folders `places` of the study; the floors are computed once.

    A failed object is scored as if nothing had been returned, and carries the reason of the stage that failed. Raises
    InputError where every object of a method failed.
    """
    for where in places.values():
        reasons = {place: study.reasons(place) for place in where}
        if all(len(found) == len(study.names) for found in reasons.values()):
            raise InputError(f"every object of {', '.join(where)} failed; the first one: {_first(reasons)}")
    every = [place for where in places.values() for place in where]
    for place in every:
        (study.out / place).mkdir(parents=True, exist_ok=True)
    # Without an explicit list the references' folder decides, which may hold the objects of an earlier, longer list.
    there = {path.name for path in study.references.iterdir() if not path.name.startswith(".")}
    protocol = replace(protocol, failures="score", objects=() if there == set(study.names) else study.names)
    contest = Contest.of([study.out / place for place in every], study.references, protocol)
    found, floors, networks = in_shares(contest, study.out / "scores", every, device, workers, weights or {}, progress)
    scored = {place: _with_task_iou(rows, study, place, protocol) for place, rows in zip(every, found, strict=True)}
    made = {}
    for method, where in places.items():
        own = replace(contest, seeds=tuple(contest.seeds[every.index(place)] for place in where))
        table = tabulate(own, [scored[place] for place in where], floors, networks)
        failures = _failures(study, where, table.failures)
        made[method] = replace(table, failures=failures, facts={**table.facts, **_facts(study, where, networks)})
    return made


def score_folders(
    predictions: Sequence[str | Path],
    references: str | Path,
    protocol: Protocol,
    folder: Path,
    *,
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    weights: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress | None = None,
) -> Table:
    """`evaluation.score` by `workers` processes, every object's scores kept in `folder`."""
    contest = Contest.of(predictions, references, protocol, layout, assume)
    places = [f"seed{index}" for index in range(len(contest.seeds))]
    found, floors, networks = in_shares(contest, folder, places, device, workers, weights or {}, progress)
    return tabulate(contest, found, floors, networks)


def in_shares(
    contest: Contest,
    folder: Path,
    places: Sequence[str],
    device: str,
    workers: int,
    weights: Mapping[str, str | Path],
    progress: Progress | None = None,
) -> tuple[list[dict[str, Scored]], dict[str, Scored], Networks]:
    """Score what is not in `folder` yet, each of `workers` processes every workers-th object.

    places: a name for each of the contest's seeds. Returns the seeds' scores by object, the floors by object, and the
    networks. Raises InputError as `evaluation.score` does.
    """
    networks = Networks.load(contest.metrics, weights, device if workers == 1 else "cpu")
    # Which other objects are scored changes nothing for one.
    rules = replace(contest.protocol, objects=())
    keys = _keys(contest, rules.hash, places, networks)
    job = Job(contest, folder / f"{rules.name}-{rules.hash}", tuple(places), keys, weights)
    for (place, name), key in job.keys.items():
        file = job.file(place, name)
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("key") != key:
            file.unlink()
    tell = progress or (lambda done, total, message: None)
    own = networks if workers == 1 else None  # a process of its own loads its own
    in_parts(partial(_share, job, own), workers, device, lambda: tell(job.done(), len(job.keys), "scoring"))
    found = [{name: _read(job.file(place, name)) for name in contest.objects} for place in places]
    return found, {name: _read(job.file(REFERENCES, name)) for name in contest.objects}, networks


def _with_task_iou(rows: Mapping[str, Scored], study: Study, place: str, protocol: Protocol) -> dict[str, Scored]:
    """The scores of generated views with the column `task_iou`, a mean over the scored views.

    It was measured on the network's own pictures, which only the views' records know. A failed object agrees in
    nothing. Meshes, and views of a release that did not measure it, get no column.
    """
    recorded = {name: _recorded(study.out / place / name) for name in rows}
    if not any(recorded.values()):
        return dict(rows)
    found = {}
    for name, one in rows.items():
        values = recorded[name]
        counted = [values[view] for view in scored_views(len(values), protocol.views, name)] if values else []
        agreed = math.fsum(counted) / len(counted) if counted else 0.0 if one.failure else math.nan
        found[name] = replace(one, lines={label: row | {"task_iou": agreed} for label, row in one.lines.items()})
    return found


def _recorded(views: Path) -> list[float]:
    """`task_iou` of every view of a folder that `stages.write_views` wrote; empty where there is none."""
    record = views / "record.json"
    return list(json.loads(record.read_text(encoding="utf-8")).get("task_iou", [])) if record.is_file() else []


def _share(job: Job, networks: Networks | None, part: int, parts: int, device: str, tell: Callable[[], None]) -> None:
    """The scores of the objects part, part + parts, ... that are not there."""
    contest = job.contest
    for name in contest.objects[part::parts]:
        wanted = [place for place in job.places if not job.there(place, name)]
        if not wanted and job.there(REFERENCES, name):
            continue
        networks = networks or Networks.load(contest.metrics, job.weights, device)
        judges = contest.judges(name, networks, device)
        if not job.there(REFERENCES, name):
            _write(job, REFERENCES, name, score_floors(judges))
            tell()
        for place in wanted:
            seed = contest.seeds[job.places.index(place)]
            _write(job, place, name, score_prediction(judges, seed, contest.protocol.failures))
            tell()


def _write(job: Job, place: str, name: str, scored: Scored) -> None:
    """Raises InputError where it cannot be written."""
    file = job.file(place, name)
    entry = {"key": job.keys[place, name], "lines": scored.lines, "failure": scored.failure, "missing": scored.missing}
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(plain(entry), allow_nan=False), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise InputError(f"cannot write '{file}': {error.strerror or error}") from error


def _read(file: Path) -> Scored:
    entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    lines = {
        label: {column: math.nan if value is None else float(value) for column, value in row.items()}
        for label, row in entry["lines"].items()
    }
    return Scored(lines, entry["failure"], entry["missing"])


def _keys(contest: Contest, rules_hash: str, places: Sequence[str], networks: Networks) -> dict[tuple[str, str], str]:
    settings = [rules_hash, contest.kinds, networks.facts(), sorted(networks.missing), sources_hash()]
    keys = {}
    for name in contest.objects:
        reference = _digest(contest.references.root, name)
        keys[REFERENCES, name] = provenance.hash_json([*settings, reference])
        for place, seed in zip(places, contest.seeds, strict=True):
            read_as = [seed.layout, str(seed.assume)]
            keys[place, name] = provenance.hash_json([*settings, reference, _digest(seed.root, name), read_as])
    return keys


def _digest(root: Path, name: str) -> list[list[str]]:
    """Path and SHA-256 of every file of an object."""
    files = [path for path in (root / name).rglob("*") if path.is_file()]
    files += [path for path in root.glob(f"{name}.*") if path.is_file()]
    return sorted([str(path.relative_to(root)), provenance.hash_file(path)] for path in files)


@cache
def sources_hash() -> str:
    """Of every source file that scoring can run through: finer than the commit, which stays while a file is changed."""
    root = Path(nova3d.__file__).parent
    files = [file for pattern in _SOURCES for file in root.glob(pattern)]
    hashes = sorted((str(file.relative_to(root)), provenance.hash_file(file)) for file in files)
    return provenance.hash_json([torch.__version__, hashes])


def _facts(study: Study, where: Sequence[str], networks: Networks) -> dict[str, str]:
    """What a method's table hangs on: the commit, its model's and the metrics' weights, its seeds, this machine."""
    made = {f"views/{generator.folder}": generator for generator in study.generators}
    made |= {f"meshes/{fusion.folder}": made[f"views/{fusion.views}"] for fusion in study.fusions}
    used = [made[place] for place in where]
    weights = dict.fromkeys(f"model {weights_hash(study, generator)}" for generator in used)
    return {
        "commit": provenance.commit(),
        "weights": ", ".join([*weights, *networks.facts().values()]),
        "seeds": ", ".join(str(generator.seed) for generator in used),
        "hardware": hardware(),
    }


def _failures(study: Study, where: Sequence[str], failures: Mapping[str, str]) -> dict[str, str]:
    """The reasons of the stages that failed instead of those of the scoring, which found nothing there."""
    found = {}
    for name, reason in failures.items():
        said = {place: study.reasons(place).get(name) for place in where}
        found[name] = "; ".join(f"{place}: {why}" for place, why in said.items() if why) or reason
    return found


def _first(reasons: Mapping[str, Mapping[str, str]]) -> str:
    return next(f"{name}: {reason}" for found in reasons.values() for name, reason in found.items())
