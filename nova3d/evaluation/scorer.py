"""`score`: folders of objects and a protocol to a table; and its parts, for those who share the objects out."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.evaluation.folders import Submission, common_kinds
from nova3d.evaluation.judges import Judge, judges
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.tables import Rows, Table
from nova3d.evaluation.view_scores import Networks

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

PREDICTION = "prediction"  # the one line of a prediction's `Scored`
_NO_VALUE = "it has no value for any object (for normals: views without normal maps)"


def score(
    predictions: str | Path | Sequence[str | Path],
    references: str | Path,
    protocol: Protocol | None = None,
    *,
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    weights: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Table:
    """Score DIR/<object>/ (views, a mesh.glb or both) or DIR/<object>.glb against references laid out alike.

    predictions: one folder, or one per seed of the same method. layout, assume: how the PREDICTED views are to be read
    (`nova3d.layouts.read`); the references' are told by their files. weights: of perceptual metrics, by column; see
    `view_scores.Networks`. device: of those networks and of the re-rendering. progress: called with objects done,
    objects in all, and what is next with the time left.

    What the protocol names is scored where both sides hold it. Floors come from the references alone. Raises InputError
    naming the object for bad references, and for bad predictions where the protocol refuses them.
    """
    contest = Contest.of(predictions, references, protocol or Protocol(), layout, assume)
    networks = Networks.load(contest.metrics, weights or {}, device)
    predicted: list[dict[str, Scored]] = [{} for _ in contest.seeds]
    floors: dict[str, Scored] = {}
    started = time.monotonic()
    for done, name in enumerate(contest.objects):
        if progress:
            progress(done, len(contest.objects), name + _left(started, done, len(contest.objects)))
        made = contest.judges(name, networks, device)
        for scored, seed in zip(predicted, contest.seeds, strict=True):
            scored[name] = score_prediction(made, seed, contest.protocol.failures)
        floors[name] = score_floors(made)
    if progress:
        progress(len(contest.objects), len(contest.objects), "done")
    return tabulate(contest, predicted, floors, networks)


@dataclass(frozen=True)
class Scored:
    """One object's lines: PREDICTION alone, or every floor's by its name; column -> value, nan where there is none.

    failure: why a prediction was scored as nothing, "" where it was not. missing: column -> why it is not computed.
    """

    lines: Rows
    failure: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """Folders that were found to be scorable under a protocol: one per seed, and the references.

    kinds: what is scored (protocols.KINDS). notes: facts on what is not, for the table.
    """

    protocol: Protocol
    references: Submission
    seeds: tuple[Submission, ...]
    objects: tuple[str, ...]
    kinds: tuple[str, ...]
    notes: Mapping[str, str]

    @staticmethod
    def of(
        predictions: str | Path | Sequence[str | Path],
        references: str | Path,
        protocol: Protocol,
        layout: str = "auto",
        assume: layouts.Assume | None = None,
    ) -> "Contest":
        """As `score` takes them. Raises InputError naming what is missing or does not go together."""
        refs = Submission.at(references, "references")
        folders = [predictions] if isinstance(predictions, (str, Path)) else list(predictions)
        seeds = [Submission.at(path, "predictions", layout, assume) for path in folders]
        if len({seed.root.resolve() for seed in seeds}) != len(seeds) or not seeds:
            raise InputError("give one predictions folder, or several different ones, one per seed")
        objects = sorted(protocol.objects) or refs.objects(protocol.kinds, protocol.views)
        kinds, notes = _kinds(seeds, refs, objects, protocol)
        return Contest(protocol, refs, tuple(seeds), tuple(objects), kinds, notes)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The picture metrics (protocols.IMAGE_METRICS) of what is scored."""
        wanted = {"views": self.protocol.views.metrics, "textures": self.protocol.textures.metrics}
        return tuple(dict.fromkeys(metric for kind in self.kinds for metric in wanted.get(kind, ())))

    def judges(self, name: str, networks: Networks, device: torch.device | str) -> list[Judge]:
        """The judges of one object, one per kind; raises InputError naming what is wrong with the reference."""
        return judges(self.kinds, name, self.references, self.protocol, networks, str(device))


def score_prediction(made: Sequence[Judge], seed: Submission, failures: str) -> Scored:
    """One object of one folder. A bad prediction raises InputError, or is scored as nothing, as `failures` says."""
    row: dict[str, float] = {}
    reasons: list[str] = []
    missing: dict[str, str] = {}
    for judge in made:
        try:
            row |= judge.score(seed)
        except InputError as error:
            if failures == "refuse":
                raise
            logger.warning("scored as nothing, in '%s': %s", seed.root, error)
            reasons.append(str(error))
            row |= judge.nothing()
        missing |= judge.missing
    return Scored({PREDICTION: row}, "; ".join(reasons), missing)


def score_floors(made: Sequence[Judge]) -> Scored:
    """Every floor of one object."""
    lines: Rows = {}
    missing: dict[str, str] = {}
    for judge in made:
        for label, row in judge.floors():
            lines.setdefault(label, {}).update(row)
        missing |= judge.missing
    return Scored(lines, "", missing)


def tabulate(
    contest: Contest, predicted: Sequence[Mapping[str, Scored]], floors: Mapping[str, Scored], networks: Networks
) -> Table:
    """The table of what was scored, per seed and object, without the columns that have no value at all."""
    rows: dict[int, Rows] = {
        index: {name: scored[name].lines[PREDICTION] for name in contest.objects}
        for index, scored in enumerate(predicted)
    }
    below: dict[str, Rows] = {}
    for name in contest.objects:
        for label, row in floors[name].lines.items():
            below.setdefault(label, {})[name] = row
    not_computed = dict(networks.missing)
    for scored in (*predicted, floors):
        not_computed |= {column: why for entry in scored.values() for column, why in entry.missing.items()}
    every = [row for seed_rows in rows.values() for row in seed_rows.values()]
    for metric in every[0]:
        if all(math.isnan(row[metric]) for row in every):
            not_computed.setdefault(metric, _NO_VALUE)
    failures = {name: text for name in contest.objects if (text := _failure([s[name] for s in predicted]))}
    kept = {seed: _computed(found, not_computed) for seed, found in rows.items()}
    kept_below = {label: _computed(found, not_computed) for label, found in below.items()}
    name, code = contest.protocol.name, contest.protocol.hash
    facts = {**networks.facts(), **contest.notes}
    if len(kept) == 1:
        return Table(name, code, kept[0], kept_below, {}, failures, not_computed, facts)
    return Table.from_seeds(name, code, kept, kept_below, failures, not_computed, facts)


def _failure(seeds: Sequence[Scored]) -> str:
    said = [(f"seed {index}: " if len(seeds) > 1 else "", entry.failure) for index, entry in enumerate(seeds)]
    return "; ".join(where + reason for where, reason in said if reason)


def _computed(rows: Rows, not_computed: Mapping[str, str]) -> Rows:
    return {
        name: {metric: value for metric, value in row.items() if metric not in not_computed}
        for name, row in rows.items()
    }


def _kinds(
    seeds: Sequence[Submission], refs: Submission, objects: list[str], protocol: Protocol
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which kinds are scored, and facts on those that are not. Raises InputError naming what is missing."""
    if not objects:
        raise InputError(f"'{refs.root}' has no objects to score {' or '.join(protocol.kinds)} of (DIR/<object>/...)")
    found = [common_kinds(seed, refs, objects, protocol.kinds, protocol.views) for seed in seeds]
    kinds, lines = found[0]
    for seed, (others, _) in zip(seeds, found, strict=True):
        if others != kinds:
            raise InputError(
                f"'{seeds[0].root}' holds {' and '.join(kinds)}, '{seed.root}' {' and '.join(others)}: they are not "
                "seeds of one method"
            )
        if protocol.failures == "refuse":
            for kind in kinds:
                missing = [name for name in objects if not seed.holds(name, kind, protocol.views)]
                if missing:
                    raise InputError(f"'{seed.root}' lacks {kind} of {', '.join(missing)}")
    return tuple(kinds), {"not scored": "; ".join(lines)} if lines else {}


def _left(started: float, done: int, total: int) -> str:
    if done == 0:
        return ""
    seconds = (time.monotonic() - started) / done * (total - done)
    return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"
