"""Packing view folders, ours or other tools', into training shards."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nova3d import layouts
from nova3d.cameras import Cameras
from nova3d.data.jobs.config import RenderConfig, rig_digest
from nova3d.data.jobs.pack import Packed, write_splits
from nova3d.data.jobs.plan import PLAN, choose_objects
from nova3d.data.shards import encode_views
from nova3d.data.sources.base import Asset, licence_rows, uid_of
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.utils.files import check_folder, locked, readable, writing
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

log = logging.getLogger(__name__)
_SAME_CAMERA = 1e-3  # world units of poses, pixels of intrinsics


def pack_views(
    views: str | Path,
    config: RenderConfig,
    layout: str = "auto",
    assume: layouts.Assume | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write train/ and val/ of view folders: shards in order of sha256(uid), an index and a manifest.

    A folder's name is the object's uid. All objects must have normals and the cameras of the first one. Of several
    objects at least one goes to val/, unless `config.val_share` is 0. The same input gives the same shards.

    Args:
        views: a folder with one view folder per object, and licences.json where there is one (`licence_rows`).
        config: `out`, `samples_per_shard`, `val_share`, `size`, `licences`, `exclude`, `limit` and `source.licences`
            count. Pictures of another size are resized to `size`.
        layout: of the view folders (`nova3d.layouts`).
        assume: what that layout does not say.
        progress: called after every object.

    Returns:
        What was packed.

    Raises:
        InputError: naming the folder, where views cannot be read, have no normals or other cameras; where `config.out`
            is a render job, or cannot be written; where no object is left.
    """
    folder, out = check_folder(views, "folder of view folders"), Path(config.out)
    if (out / PLAN).is_file():
        raise InputError(f"'{out}' is a render job: its shards are of its own objects; choose another folder")
    rows = _rows(folder, config)
    with writing(f"the shards of '{out}'"), locked(out, name="pack", wait=True):
        reader = _reader(config, layout, assume)
        return write_splits(rows, reader, config, "pack views", lambda members: [], progress)


def _rows(folder: Path, config: RenderConfig) -> list[dict[str, Any]]:
    """The manifest's rows in the order of the shards, what is refused by its licence included."""
    licences = licence_rows(config.source.licences, folder)
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        uid = uid_of(path.name)
        if uid in found:
            raise InputError(f"'{found[uid]}' and '{path}' have the same uid '{uid}': rename one of them")
        found[uid] = path
    assets = [_asset(uid, path, licences) for uid, path in found.items() if uid not in config.exclude]
    rows = choose_objects(assets, config)
    if not any(row["state"] == "planned" for row in rows):
        raise InputError(f"'{folder}' has no view folders to pack (one per object), or `licences` refuses them all")
    states = {"planned": "done", "refused": "refused"}
    return [row | {"state": states[row["state"]], "message": "", "shard": ""} for row in rows]


def _asset(uid: str, path: Path, licences: Mapping[str, Mapping[str, Any]]) -> Asset:
    row = licences.get(path.name, {})
    return Asset(
        uid=uid,
        source="views",
        path=str(path),
        url=str(row.get("url") or row.get("source_repo") or ""),
        licence=spdx(str(row.get("licence", ""))),
        attribution=str(row.get("attribution", "")),
        title=str(row.get("title") or readable(path.name)),
        category=str(row.get("category", "")),
    )


def _reader(
    config: RenderConfig, layout: str, assume: layouts.Assume | None
) -> Callable[[dict[str, Any]], tuple[Cameras, dict[str, bytes]]]:
    """What reads a row's view folder as the members of a shard, for `write_splits`. The first one sets the rig."""
    rig: Cameras | None = None

    def read(row: dict[str, Any]) -> tuple[Cameras, dict[str, bytes]]:
        nonlocal rig
        views = layouts.read(row["path"], layout, config.size, assume)
        rig = rig or views.cameras
        _check(views, rig, row["path"])
        facts = {key: row[key] for key in ("uid", "source", "url", "licence", "attribution", "title", "category")}
        return rig, encode_views(row["uid"], views, facts | {"rig": rig_digest(rig)})

    return read


def _check(views: ViewSet, rig: Cameras, path: str) -> None:
    if not views.has_normals:
        raise InputError(f"'{path}' has no normal maps, which training needs")
    ours = (len(views), views.cameras.width, views.cameras.height, views.cameras.model)
    wanted = (len(rig), rig.width, rig.height, rig.model)
    if ours != wanted:
        said = [f"{model} {count} views of {w}x{h}" for count, w, h, model in (ours, wanted)]
        raise InputError(f"'{path}' has {said[0]} where others have {said[1]}: shards have one rig, pack them apart")
    same = torch.allclose(views.cameras.c2w, rig.c2w, atol=_SAME_CAMERA)
    if not same or not torch.allclose(views.cameras.intrinsics, rig.intrinsics, atol=_SAME_CAMERA):
        raise InputError(f"'{path}' has other cameras than the objects before it: shards have one rig, pack them apart")
