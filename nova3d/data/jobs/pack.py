"""Packing finished objects into training shards: sorted, deduplicated, with bytes that no schedule changes."""

import json
import logging
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova3d.cameras import Cameras
from nova3d.data import duplicates
from nova3d.data.jobs.config import RenderConfig, rig_digest
from nova3d.data.jobs.journal import AssetOutcome, object_path, outcomes
from nova3d.data.jobs.plan import load_plan
from nova3d.data.shards import INDEX, ShardWriter, read_member, read_object
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason
from nova3d.utils import provenance
from nova3d.utils.files import locked, parse_json, read_json_lines, write_text, writing
from nova3d.utils.progress import Progress

log = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"
SPLITS = ("train", "val")
_FROM_OBJECT = ("sha256", "size_bytes", "measures", "tags")  # what an object's own JSON adds to its manifest row


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        folder: the job's.
        counts: objects per split.
        changed: whether any file differs from before.
    """

    folder: Path
    counts: dict[str, int]
    changed: bool

    def __str__(self) -> str:
        words = ", ".join(f"{count} in {self.folder / split}" for split, count in self.counts.items() if count)
        return f"{words}{'' if self.changed else ' (unchanged)'}"


def pack(config: RenderConfig, incomplete: bool = False, progress: Progress | None = None) -> Packed:
    """Write train/ and val/ of a job: shards in order of sha256(uid), an index, and a manifest.

    manifest.jsonl has one row per planned object, packed or why not. Duplicates are left out, and their groups stay on
    one side of the split. Files that are up to date are not written again.

    Args:
        config: the job's.
        incomplete: pack although objects are still to be rendered.
        progress: called after every object.

    Returns:
        What was packed.

    Raises:
        InputError: where there is no plan or it was made with other settings, objects are still to be rendered, an
            object's tar is damaged or was rendered with another rig, nothing is left to pack, or the disk is full.
    """
    out, plan, cameras = Path(config.out), load_plan(config), config.cameras()
    assets, rig = plan.assets(), rig_digest(cameras)
    with writing(f"the shards of '{out}'"), locked(out, name="pack", wait=True):
        found = outcomes(out, assets, config.pool.strikes)
        waiting = [uid for uid, outcome in found.items() if outcome.state == "waiting"]
        if waiting and not incomplete:
            raise InputError(
                f"{len(waiting)} of {len(assets)} planned objects in '{out}' are not rendered yet ('{waiting[0]}' is "
                "one): `run` first, or `pack --incomplete`"
            )
        facts = {uid: _facts(out, uid, rig) for uid, outcome in found.items() if outcome.state == "done"}
        rows = [_row(row, found.get(row["uid"]), facts.get(row["uid"])) for row in plan.rows()]
        _mark_duplicates(rows, facts)
        rows.sort(key=lambda row: provenance.stable_hash(row["uid"]))
        packed = write_splits(
            rows,
            lambda row: (cameras, read_object(object_path(out, row["uid"]))),
            config,
            "render",
            lambda members: _engines(facts[row["uid"]] for row in members),
            progress,
        )
    if not any(packed.counts.values()):
        first = next((row for row in rows if row["reason"]), None)
        why = f"; the first, '{first['uid']}': {first['reason']}: {first['message']}" if first else ""
        raise InputError(f"none of the {len(rows)} planned objects could be packed, see {MANIFEST}{why}")
    return packed


def manifest_rows(out: str | Path) -> list[dict[str, Any]]:
    """Return the manifest rows of all splits of a packed job. Raises InputError where it is not packed."""
    files = [path for split in SPLITS if (path := Path(out) / split / MANIFEST).is_file()]
    if not files:
        raise InputError(f"'{out}' has no packed shards; run `nova3d render pack` first")
    return [row for path in files for row in read_json_lines(path, "manifest")]


def write_splits(
    rows: list[dict[str, Any]],
    read: Callable[[dict[str, Any]], tuple[Cameras, dict[str, bytes]]],
    config: RenderConfig,
    stage: str,
    engines: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    progress: Progress | None,
) -> Packed:
    """Write the shards, index, manifest and record of train/ and val/; a split without objects is removed.

    Files that are up to date are not written again.

    Args:
        rows: of the manifest, in the order of the shards, with split and state. Those that are "done" are packed, and
            get the name of their shard.
        read: gives the cameras and the members of a row's object.
        config: `out` and `samples_per_shard` count.
        stage: of the record: "render", "pack views".
        engines: gives what made the packed rows of a split.
        progress: called after every object.

    Returns:
        What was packed.
    """
    out = Path(config.out)
    total = sum(row["state"] == "done" for row in rows)
    counts, changed, packed = {}, False, 0
    for split in SPLITS:
        folder = out / split
        chosen = [row for row in rows if row["split"] == split]
        members = [row for row in chosen if row["state"] == "done"]
        before = _split_content(folder)
        writer = None
        for row in members:
            cameras, content = read(row)
            writer = writer or ShardWriter(folder, cameras, config.samples_per_shard)
            writer.add(row["uid"], content)
            row["shard"] = writer.samples[-1]["shard"]
            packed += 1
            if progress:
                progress(packed, total, "packing")
        if writer:
            writer.close({"rig": rig_digest(cameras), "engines": engines(members)})
        else:
            _clear_split(folder)
        if chosen:
            lines = [{key: value for key, value in row.items() if key != "path"} for row in chosen]
            manifest = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
            write_text(folder / MANIFEST, manifest, keep_equal=True)
        if _split_content(folder) != before:
            changed = True
            if chosen:
                provenance.write(folder, provenance.record(stage, config))
        counts[split] = len(members)
    return Packed(out, counts, changed)


def _clear_split(folder: Path) -> None:
    """Remove the shards of a split that has no objects any more."""
    for name in (INDEX, "record.json", MANIFEST):
        (folder / name).unlink(missing_ok=True)
    for shard in folder.glob("shard-*.tar"):
        shard.unlink()


def _split_content(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> bytes and time in nanoseconds of the files that make up a split; empty where it does not exist."""
    paths = [*folder.glob("shard-*.tar"), folder / INDEX, folder / MANIFEST]
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()}


def _facts(out: Path, uid: str, digest: str) -> dict[str, Any]:
    """Read the JSON of a finished object, the first member of its tar."""
    path = object_path(out, uid)
    try:
        with tarfile.open(path, "r:") as tar:
            header = tar.next()
            facts = parse_json(read_member(tar, header), dict, "its JSON") if header else {}
    except (tarfile.TarError, OSError, InputError) as error:
        raise InputError(f"object '{path}' is damaged: {error}; delete it and run again") from error
    if facts.get("rig") != digest:
        raise InputError(f"object '{path}' was rendered with another rig; delete it and run again")
    return facts


def _row(planned: dict[str, Any], outcome: AssetOutcome | None, facts: dict[str, Any] | None) -> dict[str, Any]:
    """Return a manifest row: the object and its outcome, nothing of when, where and by which worker."""
    row = {"message": "", "shard": ""} | {key: value for key, value in planned.items() if key != "path"}
    row |= {key: facts[key] for key in _FROM_OBJECT} if facts else {"measures": {}, "tags": []}
    if outcome is None:  # refused by the plan
        return row
    message = outcome.message.partition(" | stderr: ")[0]
    return row | {"state": outcome.state, "reason": outcome.reason, "message": message}


def _mark_duplicates(rows: list[dict[str, Any]], facts: dict[str, dict[str, Any]]) -> None:
    """Refuse duplicates among the finished rows, and bring each group of look-alikes to one side of the split."""
    finished = [row for row in rows if row["state"] == "done"]
    keys = [facts[row["uid"]] | {"split": row["split"]} for row in finished]
    for row, marked in zip(finished, duplicates.mark_duplicates(keys), strict=True):
        row |= {"split": marked["split"], "group": marked["group"], "dup_of": marked["dup_of"]}
        if marked["dup_of"]:
            row |= {"state": "refused", "reason": str(Reason.DUPLICATE), "message": f"as '{marked['dup_of']}'"}


def _engines(facts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the different engines of a split; more than one means that versions differed among the workers."""
    found = sorted({json.dumps(entry["engine"], sort_keys=True) for entry in facts})
    if len(found) > 1:
        log.warning("%d different engines rendered these objects: %s", len(found), "; ".join(found))
    return [json.loads(engine) for engine in found]
