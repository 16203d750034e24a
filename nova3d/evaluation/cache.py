"""Cached scores of objects: computed once, and read again while everything that they depend on is unchanged.

FOLDER/PROTOCOL-HASH/references/OBJECT.json     the baselines; the hash leaves the list of objects out
FOLDER/PROTOCOL-HASH/RUN/OBJECT.json            one prediction
"""

import glob
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nova3d.errors import InputError
from nova3d.evaluation.formats import plain
from nova3d.evaluation.tables import Rows
from nova3d.utils import provenance
from nova3d.utils.files import read_json, write_text, writing

log = logging.getLogger(__name__)

REFERENCES = "references"  # the baselines' folder
PREDICTION = "prediction"  # the one row of a prediction's scores


@dataclass(frozen=True)
class ObjectScores:
    """The scores of one object of a prediction, or of its baselines."""

    rows: Rows
    """PREDICTION or a baseline's name -> column -> value; nan where a value does not exist."""
    failure: str = ""
    """Why the prediction was scored as a failure; empty where it was not."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Column -> why it could not be computed."""


@dataclass(frozen=True)
class ScoreCache:
    """The cached scores of one protocol.

    A score is kept with a key: a hash of the object's files on both sides, the protocol, the declared versions of the
    metrics and the networks' weights. A score with another key is not used.
    """

    folder: Path
    keys: Mapping[tuple[str, str], str]
    """(run, object) -> key, of all scores that the table needs."""

    def has(self, run: str, name: str) -> bool:
        """Whether the scores of an object are cached; call `remove_stale` first."""
        return self._file(run, name).is_file()

    def remove_stale(self) -> None:
        """Remove cached scores of this evaluation with another key, so that they are recomputed; logs their number."""
        stale = [self._file(*wanted) for wanted, key in self.keys.items() if self._stale(self._file(*wanted), key)]
        for file in stale:
            file.unlink()
        if stale:
            log.info(
                "%d kept scores in '%s' are of other files, weights or versions of the metrics: recomputed",
                len(stale),
                self.folder,
            )

    def read(self, run: str, name: str) -> ObjectScores:
        """The cached scores of an object; raises InputError where the file is damaged."""
        file = self._file(run, name)
        return _scores(read_json(file, dict, "kept scores"), file)

    def write(self, run: str, name: str, scores: ObjectScores) -> None:
        """Write the scores of an object; raises InputError where they cannot be written."""
        entry = {"key": self.keys[run, name], "rows": scores.rows}
        entry |= {"failure": scores.failure, "missing": scores.missing}
        with writing(f"'{self._file(run, name)}'"):
            write_text(self._file(run, name), json.dumps(plain(entry), allow_nan=False))  # the order of columns stays

    def _file(self, run: str, name: str) -> Path:
        return self.folder / run / f"{name}.json"

    def _stale(self, file: Path, key: str) -> bool:
        if not file.is_file():
            return False
        try:
            entry = read_json(file, dict, "kept scores")
            _scores(entry, file)
            return bool(entry.get("key") != key)
        except InputError:  # a file that cannot be read
            return True


def _scores(entry: Mapping[str, Any], file: Path) -> ObjectScores:
    try:
        rows = {
            str(label): {str(column): math.nan if value is None else float(value) for column, value in row.items()}
            for label, row in entry["rows"].items()
        }
        return ObjectScores(rows, str(entry["failure"]), dict(entry["missing"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"kept scores '{file}' are damaged ({repr(error)[:100]}): remove the file") from error


def object_files(root: Path, name: str) -> list[list[str]]:
    """Path and SHA-256 of every file of an object, for its key."""
    files = [path for path in (root / name).rglob("*") if path.is_file()]
    files += [path for path in root.glob(f"{glob.escape(name)}.*") if path.is_file()]
    return sorted([str(path.relative_to(root)), provenance.hash_file(path)] for path in files)
