"""Checking packed shards: quickly against their index, or bit by bit and picture by picture."""

import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nova3d import normals
from nova3d.cameras import Cameras
from nova3d.data.jobs.devices import core_count
from nova3d.data.jobs.pack import SPLITS
from nova3d.data.shards import INDEX, NAME_BYTES, ShardReader, read_picture
from nova3d.errors import InputError
from nova3d.utils import provenance
from nova3d.utils.progress import Progress

# Shares of pixels; the rest are rims, where coverage and the mean normal may vanish at different places.
_COVERED_WITH_NORMAL = 0.95
_EMPTY_WITHOUT_NORMAL = 0.999


@dataclass(frozen=True)
class Verified:
    """What was checked.

    Attributes:
        objects: how many.
        shards: how many.
        problems: one line each, naming object or shard.
    """

    objects: int
    shards: int
    problems: list[str]


def verify(folder: str | Path, deep: bool = False, progress: Progress | None = None) -> Verified:
    """Check a job's train/ and val/, or one shard folder.

    Args:
        folder: of a job or of shards.
        deep: read everything. Checksums of members and of whole shards are compared, every picture must decode and have
            the rig's size, masks and normals must agree. Otherwise only the sizes of the shards and the positions of
            the members' tar headers are compared with the index.
        progress: called after every object.

    Returns:
        What was checked, and the problems.

    Raises:
        InputError: where there is nothing to verify or an index cannot be read.
    """
    folder = Path(folder)
    parts = [folder / split for split in SPLITS if (folder / split / INDEX).is_file()]
    readers = [ShardReader(part) for part in parts or [folder]]
    total, done = sum(map(len, readers)), 0
    problems: list[str] = []
    check = _check_deeply if deep else _check_headers
    with ThreadPoolExecutor(core_count() if deep else 1) as threads:
        for reader in readers:
            problems += _check_files(reader, deep)
            for complaint in threads.map(partial(check, reader), range(len(reader))):
                problems += [complaint] if complaint else []
                done += 1
                if progress:
                    progress(done, total, f"verifying, {len(problems)} problems")
    shards = {(reader.folder, sample["shard"]) for reader in readers for sample in reader.samples}
    return Verified(total, len(shards), problems)


def _check_files(reader: ShardReader, deep: bool) -> Iterator[str]:
    for name, shard in reader.index.get("shards", {}).items():
        path = reader.folder / name
        if not path.is_file():
            yield f"shard '{path}' is missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"shard '{path}' has {path.stat().st_size} bytes, its index gives {shard['bytes']}"
        elif deep and provenance.hash_file(path) != shard["sha256"]:
            yield f"shard '{path}' does not fit its SHA-256"


def _check_headers(reader: ShardReader, row: int) -> str:
    """Return what is wrong with the tar headers of a sample, "" for nothing."""
    sample = reader.samples[row]
    path = reader.folder / sample["shard"]
    try:
        with path.open("rb") as file:
            for name, (offset, size) in sample["members"].items():
                file.seek(offset - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
                if (header.name, header.size) != (f"{sample['uid']}.{name}"[:NAME_BYTES], size):
                    return f"object '{sample['uid']}': '{name}' is not where the index of '{path}' says"
    except (OSError, ValueError, OverflowError, tarfile.TarError) as error:
        return f"object '{sample['uid']}': '{path}' is damaged: {error}"
    return ""


def _check_deeply(reader: ShardReader, row: int) -> str:
    if complaint := _check_headers(reader, row):
        return complaint
    uid = reader.samples[row]["uid"]
    try:
        members = reader.read(row)
        return next((f"object '{uid}': {fault}" for fault in _picture_faults(members, reader.cameras)), "")
    except (InputError, OSError, KeyError) as error:
        return f"object '{uid}': {error}"


def _picture_faults(members: Mapping[str, bytes], cameras: Cameras) -> Iterator[str]:
    for view in range(len(cameras)):
        size, shape = (cameras.width, cameras.height), (cameras.height, cameras.width)
        rgba = read_picture(members[f"rgb.{view:03d}.png"], size)
        encoded = read_picture(members[f"normal.{view:03d}.png"], size)
        if rgba.shape != (*shape, 4) or encoded.shape != (*shape, 3):
            yield f"view {view} has the shapes {tuple(rgba.shape)} and {tuple(encoded.shape)}, the rig is {shape}"
            return
        length = normals.decode(encoded)[1].numpy()
        alpha: Any = rgba[..., 3].numpy()
        with_normal, without = _share(length[alpha == 255] > 0.5), _share(length[alpha == 0] < 0.5)
        if with_normal < _COVERED_WITH_NORMAL or without < _EMPTY_WITHOUT_NORMAL:
            yield f"view {view}: mask and normals disagree ({with_normal:.3f} inside, {without:.3f} outside)"


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 1.0
