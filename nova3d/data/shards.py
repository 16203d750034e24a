"""Training shards: WebDataset-compatible tars of rendered objects, with an index for exact random access.

A sample is the members `UID.rgb.000.png ...` (straight-alpha RGBA), `UID.normal.000.png ...` and `UID.json`. The index
(index.json) holds the rig's cameras, size and SHA-256 of every shard, and for every sample its shard, the byte range of
its members and their SHA-256. Tar headers carry no time or owner, so identical input gives identical shards.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import Cameras
from nova3d.data.config import shard_folders
from nova3d.errors import InputError, first_line
from nova3d.transforms import cameras_from_transforms, cameras_to_transforms
from nova3d.utils import provenance
from nova3d.utils.files import check_component, parse_json, write_text, writing
from nova3d.utils.limits import MAX_VIEW_MEGAPIXELS
from nova3d.views import ViewSet

INDEX = "index.json"
FORMAT = 2
NAME_BYTES = 100  # of a member's name in a USTAR header
_WHITE = 1  # the format whose colours were composited on white before they were stored


def encode_pictures(uid: str, rgba: Tensor, normal: Tensor, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode one object as tar members: lossless PNGs and a JSON.

    Args:
        uid: the object's key.
        rgba: [v,h,w,4] float32 in [0,1], straight alpha.
        normal: [v,h,w,3] float32, unit world normals, zero on background.
        facts: of the object: licence, attribution, source hash.

    Returns:
        The contents by member name.
    """
    members = {f"{uid}.json": json.dumps(dict(facts), sort_keys=True).encode()}
    for i in range(len(rgba)):
        colours = images.to_uint8(rgba[i])
        colours[colours[..., 3] == 0] = 0  # fully transparent pixels carry no colour
        members[f"{uid}.rgb.{i:03d}.png"] = _png(colours)
        members[f"{uid}.normal.{i:03d}.png"] = _png(normals.encode(normal[i]).cpu().numpy())
    return members


def encode_views(uid: str, views: ViewSet, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode a ViewSet, whose colours are un-premultiplied from their white background; see `encode_pictures`."""
    return encode_pictures(uid, views.rgba, views.normals, facts)


def write_object(path: Path, members: Mapping[str, bytes], writer: str) -> None:
    """Write one object's members as the tar `path`, all or nothing.

    It is written aside as `UID.WRITER.part`, synced and renamed; WRITER tells whose part a killed process left.

    Args:
        path: the tar.
        members: as `encode_pictures` makes them.
        writer: names the process that writes.

    Raises:
        OSError: where it cannot be written; no part stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{writer}.part")
    try:
        with aside.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name in sorted(members):
                    _append(tar, name, members[name])
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def read_object(path: Path) -> dict[str, bytes]:
    """Read the members of an object's tar by their full names; raises InputError where it is damaged."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for header in tar:
                members[header.name] = read_member(tar, header)
    except (tarfile.TarError, OSError, InputError) as error:
        raise InputError(f"object '{path}' is damaged: {error}; delete it and run again") from error
    return members


def read_member(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    """Read a member of a tar file on the disk; raises InputError where it is not a file or is larger than the tar."""
    file = tar.extractfile(header) if header.isreg() else None
    if file is None:
        raise InputError(f"it holds '{header.name[:80]}', which is not a file")
    if header.size > Path(str(tar.name)).stat().st_size:  # of a sparse file, or a lie
        raise InputError(f"its member '{header.name[:80]}' states {header.size} bytes")
    return file.read()


class ShardWriter:
    """Appends samples to `shard-00000.tar ...` in a folder and writes the index last.

    A shard that is already there with the same bytes is left alone. The old index goes before the first changed shard,
    so that a reader never sees an index that does not fit.

    Args:
        folder: where the shards go.
        cameras: the rig of all samples.
        samples_per_shard: objects per tar.

    Raises:
        InputError: where the folder cannot be written.
    """

    def __init__(self, folder: str | Path, cameras: Cameras, samples_per_shard: int = 256):
        self.folder = Path(folder)
        self.cameras = cameras
        self.samples_per_shard = samples_per_shard
        self.samples: list[dict[str, Any]] = []
        self.shards: dict[str, dict[str, Any]] = {}
        self._tar: tarfile.TarFile | None = None
        with writing(f"shards to '{folder}'"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob("shard-*.part"):
                stale.unlink()

    def add(self, uid: str, members: Mapping[str, bytes]) -> None:
        """Append one object; `members` as `encode_pictures` makes them."""
        if len(self.samples) % self.samples_per_shard == 0:
            self._finish_shard()
            self._shard = f"shard-{len(self.samples) // self.samples_per_shard:05d}.tar"
            self._tar = tarfile.open(self.folder / f"{self._shard}.part", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        assert self._tar is not None
        ranges: dict[str, list[int]] = {}
        for name in sorted(members):
            ranges[name.removeprefix(f"{uid}.")] = _append(self._tar, name, members[name])
        row = {"uid": uid, "shard": self._shard, "members": ranges, "sha256": members_hash(members)}
        self.samples.append(row)

    def close(self, facts: Mapping[str, Any]) -> Path:
        """Finish the last shard, remove shards of an earlier, longer set and write the index with `facts`."""
        self._finish_shard()
        index = {
            "format": FORMAT,
            "cameras": cameras_to_transforms(self.cameras),
            **facts,
            "shards": self.shards,
            "samples": self.samples,
        }
        path = self.folder / INDEX
        for surplus in set(self.folder.glob("shard-*.tar")) - {self.folder / name for name in self.shards}:
            path.unlink(missing_ok=True)
            surplus.unlink()
        return write_text(path, json.dumps(index), keep_equal=True)

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        path, aside = self.folder / self._shard, self.folder / f"{self._shard}.part"
        digest, size = provenance.hash_file(aside), aside.stat().st_size
        if path.is_file() and path.stat().st_size == size and provenance.hash_file(path) == digest:
            aside.unlink()
        else:
            (self.folder / INDEX).unlink(missing_ok=True)
            aside.replace(path)
        self.shards[self._shard] = {"bytes": size, "sha256": digest}


class ShardReader:
    """Random access to the samples of shard folders that share one rig; safe to use from several processes.

    Args:
        folder: one folder, or several.

    Raises:
        InputError: where an index is missing or broken, rigs differ, or two folders hold the same object.
    """

    def __init__(self, folder: str | Path | Sequence[str | Path]):
        folders = shard_folders(folder)
        if not folders:
            raise InputError("no shard folder is given")
        self.folder = folders[0]
        indices = [_read_index(f) for f in folders]
        self.index = indices[0]
        self.cameras = cameras_from_transforms(self.index["cameras"], str(self.folder / INDEX))
        self.samples: list[dict[str, Any]] = []
        self._origins: list[tuple[Path, int]] = []  # folder of each sample, and the folder's format
        owners: dict[str, Path] = {}
        for where, index in zip(folders, indices, strict=True):
            if index["cameras"] != self.index["cameras"]:
                raise InputError(f"'{where}' was rendered with other cameras than '{self.folder}'")
            for sample in index["samples"]:
                if (other := owners.setdefault(sample["uid"], where)) != where:
                    raise InputError(f"object '{sample['uid']}' is in '{other}' and in '{where}'")
            self.samples += index["samples"]
            self._origins += [(where, index["format"])] * len(index["samples"])

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, row: int) -> dict[str, bytes]:
        """Read the members of sample `row`, by name without the uid.

        Raises:
            InputError: where the shard is cut short or its content does not fit the index's checksum.
        """
        sample = self.samples[row]
        path = self._origins[row][0] / sample["shard"]
        if not path.is_file():
            raise InputError(f"shard '{path}' is missing")
        members: dict[str, bytes] = {}
        with path.open("rb") as file:
            length = path.stat().st_size
            fits = sum(size for _, size in sample["members"].values()) <= length
            for name in sorted(sample["members"] if fits else ()):
                offset, size = sample["members"][name]
                file.seek(min(offset, length))
                members[name] = file.read(min(size, length))
        if not fits or members_hash(members) != sample["sha256"]:
            raise InputError(f"shard '{path}' is damaged or truncated at object '{sample['uid']}'; render it again")
        return members

    def views(self, row: int, order: Sequence[int] | None = None) -> ViewSet:
        """Read sample `row` as a ViewSet on white.

        Args:
            row: index of the sample.
            order: the views to read, in this order; None reads all.

        Returns:
            The views, in the frame they were rendered in.

        Raises:
            InputError: as `read`.
        """
        members = self.read(row)
        chosen = list(range(len(self.cameras))) if order is None else list(order)

        def pictures(kind: str, channels: int) -> Tensor:
            names = [f"{kind}.{i:03d}.png" for i in chosen]
            if missing := [name for name in names if name not in members]:
                raise InputError(f"object '{self.samples[row]['uid']}' in '{self._origins[row][0]}' lacks {missing[0]}")
            try:
                found = [read_picture(members[name], (self.cameras.width, self.cameras.height)) for name in names]
            except InputError as error:
                raise InputError(f"object '{self.samples[row]['uid']}': {error}") from error
            if any(picture.shape[2:] != (channels,) for picture in found):
                raise InputError(f"object '{self.samples[row]['uid']}': a {kind} picture has not {channels} channels")
            return torch.stack(found)

        rgba = pictures("rgb", 4).float() / 255
        normal, _ = normals.decode(pictures("normal", 3))
        rgb = rgba[..., :3] if self._origins[row][1] == _WHITE else images.composite(rgba)
        mask = rgba[..., 3]
        return ViewSet(rgb, normal * (mask > 0)[..., None], mask, self.cameras[chosen])


def members_hash(members: Mapping[str, bytes]) -> str:
    """Return the checksum of a sample: SHA-256 of the members' contents in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(members[name])
    return digest.hexdigest()


def read_picture(data: bytes, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a PNG member to uint8 [h,w,c].

    Args:
        data: the member.
        size: width and height that it must have, which is checked before it is decoded; None takes any up to
            MAX_VIEW_MEGAPIXELS.

    Returns:
        The pixels.

    Raises:
        InputError: where it is not a picture, is damaged or has another size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if size and picture.size != size:
                raise InputError(f"a picture has {picture.width}x{picture.height} pixels, not {size[0]}x{size[1]}")
            images.check_pixels(picture.width, picture.height, "a picture", MAX_VIEW_MEGAPIXELS)
            return torch.from_numpy(np.asarray(picture).copy())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise InputError(f"a picture cannot be decoded: {first_line(error, 80)}") from error


def shard_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one hash of a set of samples, whatever their order; it names the data a model was trained on."""
    lines = sorted(f"{row['uid']} {row['sha256']}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        if (folder / "plan.json").is_file():
            packed = [str(folder / s) for s in ("train", "val") if (folder / s / INDEX).is_file()]
            where = f"its shards are in '{', '.join(packed)}'" if packed else "run `nova3d render pack` on it first"
            raise InputError(f"'{folder}' is not a shard folder but a render job; {where}")
        raise InputError(f"'{folder}' is not a shard folder (no {INDEX}); make one with nova3d render")
    index = parse_json(path.read_bytes(), dict, f"shard index '{path}'")  # may be larger than read_json allows
    try:
        if index.get("format") not in (_WHITE, FORMAT):
            raise InputError(f"shard format {str(index.get('format'))[:40]} is not {FORMAT}; render again")
        cameras_from_transforms(index["cameras"], "cameras")
        for sample in index["samples"]:
            check_component(sample["uid"], "uid")
            check_component(sample["shard"], "shard")
            if not isinstance(sample["sha256"], str) or not all(map(_is_range, sample["members"].values())):
                raise InputError(f"object '{sample['uid']}' has no checksum or members without a place")
        for name, shard in index.get("shards", {}).items():
            check_component(name, "shard")
            shard["bytes"], shard["sha256"]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: broken index: {repr(error)[:200]}") from error
    return index


def _is_range(place: Any) -> bool:
    """Whether an entry of the index is the offset and the size of a member."""
    return isinstance(place, list) and len(place) == 2 and all(type(n) is int and n >= 0 for n in place)


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> list[int]:
    """Add a member without time or owner; returns its content's offset and size.

    A name that does not fit the header stands in a PAX header before it.
    """
    tar.format = tarfile.USTAR_FORMAT if len(name.encode()) <= NAME_BYTES else tarfile.PAX_FORMAT
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))
    return [tar.offset - -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, header.size]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
