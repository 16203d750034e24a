"""`score`: folders of objects and a protocol to a table."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.evaluation.judges import Judge, judges
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.submissions import Submission, common_kinds
from nova3d.evaluation.tables import Rows, Table
from nova3d.evaluation.view_scores import Networks

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

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
    protocol = protocol or Protocol()
    refs = Submission.at(references, "references")
    folders = [predictions] if isinstance(predictions, (str, Path)) else list(predictions)
    seeds = [Submission.at(path, "predictions", layout, assume) for path in folders]
    if len({seed.root.resolve() for seed in seeds}) != len(seeds) or not seeds:
        raise InputError("give one predictions folder, or several different ones, one per seed")
    objects = sorted(protocol.objects) or refs.objects(protocol.kinds, protocol.views)
    kinds, notes = _kinds(seeds, refs, objects, protocol)
    wanted = {"views": protocol.views.metrics, "textures": protocol.textures.metrics}
    metrics = tuple(dict.fromkeys(metric for kind in kinds for metric in wanted.get(kind, ())))
    scores = _Scores(protocol, {index: {} for index in range(len(seeds))})
    networks = Networks.load(metrics, weights or {}, device)
    started = time.monotonic()
    for done, name in enumerate(objects):
        if progress:
            progress(done, len(objects), name + _left(started, done, len(objects)))
        for judge in judges(kinds, name, refs, protocol, networks, str(device)).values():
            scores.add(name, judge, seeds)
    if progress:
        progress(len(objects), len(objects), "done")
    scores.not_computed |= networks.missing
    return scores.table({**networks.facts(), **notes})


@dataclass
class _Scores:
    """The rows of every seed and of the floors, as they grow object by object."""

    protocol: Protocol
    rows: dict[int, Rows]
    floors: dict[str, Rows] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, judge: Judge, seeds: Sequence[Submission]) -> None:
        for index, seed in enumerate(seeds):
            try:
                row = judge.score(seed)
            except InputError as error:
                if self.protocol.failures == "refuse":
                    raise
                logger.warning("%s failed in '%s': %s", name, seed.root, error)
                reason = f"seed {index}: {error}" if len(seeds) > 1 else str(error)
                self.failures[name] = "; ".join(filter(None, [self.failures.get(name), reason]))
                row = judge.nothing()
            self.rows[index].setdefault(name, {}).update(row)
        for label, row in judge.floors():
            self.floors.setdefault(label, {}).setdefault(name, {}).update(row)
        self.not_computed |= judge.missing

    def table(self, facts: Mapping[str, str]) -> Table:
        """The table, without the columns that could not be computed or have no value at all."""
        every = [row for rows in self.rows.values() for row in rows.values()]
        for metric in every[0]:
            if all(math.isnan(row[metric]) for row in every):
                self.not_computed.setdefault(metric, _NO_VALUE)
        rows = {seed: self._computed(scored) for seed, scored in self.rows.items()}
        floors = {label: self._computed(scored) for label, scored in self.floors.items()}
        name, code = self.protocol.name, self.protocol.hash
        if len(rows) == 1:
            return Table(name, code, rows[0], floors, {}, self.failures, self.not_computed, facts)
        return Table.from_seeds(name, code, rows, floors, self.failures, self.not_computed, facts)

    def _computed(self, rows: Rows) -> Rows:
        return {
            name: {metric: value for metric, value in row.items() if metric not in self.not_computed}
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
