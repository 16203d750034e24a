"""Training shards: WebDataset-compatible tars of rendered objects, with an index for exact random access.

A sample is the members `UID.rgb.000.png ...`, `UID.normal.000.png ...` and `UID.json`. `index.json` holds the rig's
cameras, and for every sample its shard, the byte range of its members and their SHA-256. Tar headers carry no time
or owner, so identical input gives identical shards.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nova3d import images, normals
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.views import ViewSet

INDEX = "index.json"
FORMAT = 1


def encode_views(uid: str, views: ViewSet, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The tar members of one object: lossless PNGs and its facts (licence, attribution, source hash)."""
    members = {f"{uid}.json": json.dumps(dict(facts), sort_keys=True).encode()}
    for i in range(len(views)):
        rgba = torch.cat([views.rgb[i], views.mask[i][..., None]], dim=-1)
        members[f"{uid}.rgb.{i:03d}.png"] = _png(images.to_uint8(rgba))
        members[f"{uid}.normal.{i:03d}.png"] = _png(normals.encode(views.normals[i]).numpy())
    return members


class ShardWriter:
    """Appends samples to `shard-00000.tar ...` in a folder and writes the index last, atomically."""

    def __init__(self, folder: str | Path, cameras: Cameras, samples_per_shard: int = 256):
        self.folder = Path(folder)
        self.cameras = cameras
        self.samples_per_shard = samples_per_shard
        self.samples: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write shards to '{folder}': {error.strerror}") from error

    def add(self, uid: str, members: Mapping[str, bytes]) -> None:
        if len(self.samples) % self.samples_per_shard == 0:
            self._finish_shard()
            self._shard = f"shard-{len(self.samples) // self.samples_per_shard:05d}.tar"
            self._tar = tarfile.open(self.folder / f"{self._shard}.part", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        assert self._tar is not None
        ranges: dict[str, list[int]] = {}
        digest = hashlib.sha256()
        for name in sorted(members):
            header = tarfile.TarInfo(name)
            header.size = len(members[name])
            self._tar.addfile(header, io.BytesIO(members[name]))
            ranges[name.removeprefix(f"{uid}.")] = [self._tar.offset - _padded(header.size), header.size]
            digest.update(members[name])
        row = {"uid": uid, "shard": self._shard, "members": ranges, "sha256": digest.hexdigest()}
        self.samples.append(row)

    def close(self, facts: Mapping[str, Any]) -> Path:
        """Finish the last shard and write the index with `facts` (provenance)."""
        self._finish_shard()
        index = {"format": FORMAT, "cameras": self.cameras.to_transforms(), **facts, "samples": self.samples}
        path = self.folder / INDEX
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(index))
        temporary.replace(path)
        return path

    def _finish_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            (self.folder / f"{self._shard}.part").replace(self.folder / self._shard)
            self._tar = None


class ShardReader:
    """Random access to the samples of a shard folder; safe to use from several processes."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise InputError(f"'{folder}' is not a shard folder (no {INDEX}); make one with scripts/render.py")
        try:
            self.index = json.loads(path.read_text())
            self.samples: list[dict[str, Any]] = self.index["samples"]
            self.cameras = Cameras.from_transforms(self.index["cameras"], str(path))
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: broken index: {error!r}") from error
        if self.index.get("format") != FORMAT:
            raise InputError(f"{path}: shard format {self.index.get('format')} is not {FORMAT}; render again")

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, row: int) -> dict[str, bytes]:
        """The members of sample `row`, by name without the uid. Raises InputError where the shard is cut short or its
        content does not fit the index's checksum."""
        sample = self.samples[row]
        path = self.folder / sample["shard"]
        if not path.is_file():
            raise InputError(f"shard '{path}' is missing")
        members: dict[str, bytes] = {}
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for name in sorted(sample["members"]):
                offset, size = sample["members"][name]
                file.seek(offset)
                members[name] = file.read(size)
                digest.update(members[name])
        if digest.hexdigest() != sample["sha256"]:
            raise InputError(f"shard '{path}' is damaged or truncated at object '{sample['uid']}'; render it again")
        return members

    def views(self, row: int, order: Sequence[int] | None = None) -> ViewSet:
        """Sample `row` as a ViewSet on white; only the views in `order` where it is given."""
        members = self.read(row)
        chosen = list(range(len(self.cameras))) if order is None else list(order)
        rgba = torch.stack([_pixels(members[f"rgb.{i:03d}.png"]) for i in chosen]).float() / 255
        normal, _ = normals.decode(torch.stack([_pixels(members[f"normal.{i:03d}.png"]) for i in chosen]))
        mask = rgba[..., 3]
        return ViewSet(rgba[..., :3], normal * (mask > 0)[..., None], mask, self.cameras[chosen])


def read_json(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The facts of a sample."""
    return json.loads(members["json"])


def shard_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """One hash of a set of samples, whatever their order: names the data a model was trained on."""
    lines = sorted(f"{row['uid']} {row['sha256']}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _pixels(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as picture:
        return torch.from_numpy(np.asarray(picture).copy())


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
