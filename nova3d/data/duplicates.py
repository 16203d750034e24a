"""Duplicate detection: the same file, the same geometry, the same pictures.

Each object has a fingerprint: a geometry key that ignores vertex order, scale and rotation, a 64-bit difference hash of
every view, and a mean colour. `mark_duplicates` puts objects of equal geometry or near-equal views into one group, so
that no group is split between training and validation. Those of a group that also look the same are duplicates: a toy
painted in two colours is one group and no duplicate.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from nova3d import images
from nova3d.errors import InputError
from nova3d.rendering.meshes import Mesh, load_mesh
from nova3d.utils.provenance import stable_hash

log = logging.getLogger(__name__)
_QUANTILES = 16
_MARGIN = 2 / 255  # sRGB; neighbours closer than this are equal, so that noise cannot flip a bit
_COARSE = 4  # sums of hash bits in the search tree cover 4x4 cells of the 8x8 difference grid


@dataclass(frozen=True)
class DuplicateConfig:
    """When two objects look the same."""

    view_bits: float = 2.0
    """Views are near-equal where their hashes differ by at most so many of 64 bits on average, under the best turn."""
    colour: float = 0.03
    """Colours are near-equal where their means differ by at most this per channel, in [0,1]."""


def fingerprint(rgba: Tensor, path: Path, mesh: Mesh | None = None) -> dict[str, Any]:
    """Compute what `mark_duplicates` compares.

    Args:
        rgba: [v,h,w,4] float32 in [0,1], the views in straight alpha.
        path: the mesh file.
        mesh: the mesh where it has been read from `path` already.

    Returns:
        `views` (a hash of each), `colour` (the mean) and `geometry`, the geometry key: "" where only the engine can
        read the file.
    """
    try:
        geometry = geometry_key(mesh or load_mesh(path))
    except InputError as error:
        log.info("no geometry key: %s", error)
        geometry = ""
    return {"views": view_hashes(rgba), "colour": mean_colour(rgba), "geometry": geometry}


def geometry_key(mesh: Mesh) -> str:
    """Return 32 hex digits, equal for meshes of the same triangles in any order, position, scale and orientation.

    They are made of the number of faces with an area, and of quantiles of edge lengths and face areas, relative to the
    mean and rounded to 1/1000.
    """
    corners = mesh.vertices.double()[mesh.faces]  # f 3 3
    lengths = (corners - corners.roll(1, dims=1)).norm(dim=-1)
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    solid = areas > 1e-9 * areas.mean()
    ranks = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
    numbers = [int(solid.sum())]
    for values in (lengths[solid].flatten(), areas[solid]):
        ordered = values.sort().values / values.mean().clamp_min(1e-30)
        numbers += (ordered[(ranks * (len(ordered) - 1)).long()] * 1000).round().long().tolist()
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:32]


def view_hashes(rgba: Tensor) -> list[str]:
    """Return the difference hash of each straight-alpha view [v,h,w,4], as 16 hex digits.

    The picture on white becomes 8 rows of 9 grey cells; a bit says whether a cell is brighter than its right neighbour.
    All views are cut to the box that holds the object in every one of them, so that a thin object
    fills its cells as well as a stout one.
    """
    grey = images.composite(rgba).mean(dim=-1)
    rows, columns = torch.nonzero((rgba[..., 3] > 0.5).any(dim=0), as_tuple=True)
    if len(rows):
        grey = grey[:, int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    cells = F.interpolate(grey[:, None], size=(8, 9), mode="area")[:, 0]
    bits = (cells[:, :, :-1] > cells[:, :, 1:] + _MARGIN).flatten(1).cpu().numpy()
    return [row.tobytes().hex() for row in np.packbits(bits, axis=1)]


def mean_colour(rgba: Tensor) -> list[float]:
    """Return the mean sRGB of the covered surface over all views [v,h,w,4], rounded to 3 digits."""
    alpha = rgba[..., 3:]
    mean = (rgba[..., :3] * alpha).sum(dim=(0, 1, 2)) / alpha.sum().clamp_min(1e-9)
    return [round(value, 3) for value in mean.tolist()]


def mark_duplicates(rows: Iterable[Mapping[str, Any]], config: DuplicateConfig | None = None) -> list[dict[str, Any]]:
    """Mark duplicates, and give every group of look-alikes one split.

    The first of a group by SHA-256 of the uid is kept, names the group and gives it its split. The order of the rows
    does not matter. 32,000 rows with 16 views take 9 CPU-s, 64,000 take 33 (measured): 800,000 will take about an hour.

    Args:
        rows: uid, sha256, split and the columns of `fingerprint`; what is empty or absent is not compared.
        config: when two objects look the same.

    Returns:
        The rows in their order, with `group` and `dup_of`: the object kept in place of this one, "" for a kept one.
    """
    config = config or DuplicateConfig()
    marked = [dict(row) for row in rows]
    rank = sorted(range(len(marked)), key=lambda i: stable_hash(marked[i]["uid"]))
    ordered = [marked[i] for i in rank]
    same, near = _DisjointSets(len(ordered)), _DisjointSets(len(ordered))
    for sets in (same, near):
        sets.union_equal([row.get("sha256", "") for row in ordered])
    near.union_equal([row.get("geometry", "") for row in ordered])
    for a, b in _similar_pairs(ordered, config.view_bits):
        near.union(a, b)
        if _colour_distance(ordered[a], ordered[b]) <= config.colour:
            same.union(a, b)
    for index, row in enumerate(ordered):
        kept, first = ordered[same.find(index)], ordered[near.find(index)]
        row["dup_of"] = "" if kept is row else kept["uid"]
        row["group"] = first["uid"]
        if "split" in first:
            row["split"] = first["split"]
    return marked


class _DisjointSets:
    """Disjoint sets of 0..n-1; the root of a set is its smallest member."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)

    def union_equal(self, keys: Sequence[str]) -> None:
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key:
                self.union(index, first.setdefault(key, index))


def _colour_distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return max((abs(x - y) for x, y in zip(a.get("colour", ()), b.get("colour", ()), strict=False)), default=0.0)


def _similar_pairs(rows: Sequence[Mapping[str, Any]], bits: float) -> list[tuple[int, int]]:
    """Return pairs of rows whose views differ by at most `bits` per view under the best cyclic shift."""
    counts: defaultdict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.get("views"):
            counts[len(row["views"])].append(index)
    return [pair for members in counts.values() for pair in _similar_among(rows, members, bits)]


def _similar_among(rows: Sequence[Mapping[str, Any]], members: list[int], bits: float) -> list[tuple[int, int]]:
    # Equal sets of views, the bulk of the duplicates, are one entry: the search below would visit all their pairs.
    entries: dict[tuple[str, ...], int] = {}
    pairs = []
    for index in members:
        first = entries.setdefault(_canonical(rows[index]["views"]), index)
        if first != index:
            pairs.append((first, index))
    firsts = list(entries.values())
    hashes = np.array([[int(view, 16) for view in rows[index]["views"]] for index in firsts], dtype=np.uint64)
    limit = bits * hashes.shape[1]
    # How many views set a bit does not depend on the turn, and two rows' counts differ by no more than their hashes:
    # near-equal rows are neighbours in the space of sums of counts.
    unpacked = np.unpackbits(hashes.view(np.uint8).reshape(len(firsts), -1, 8), axis=2, bitorder="little")
    votes = unpacked.astype(np.int16).sum(axis=1).reshape(len(firsts), 8, 8)
    cells = votes.reshape(len(firsts), _COARSE, 8 // _COARSE, _COARSE, 8 // _COARSE).sum(axis=(2, 4))
    candidates = cKDTree(cells.reshape(len(firsts), -1)).query_pairs(limit, p=1, output_type="ndarray")
    for part in np.array_split(candidates, len(candidates) // 100_000 + 1):
        coarse = np.abs(votes[part[:, 0]] - votes[part[:, 1]]).sum(axis=(1, 2)) <= limit
        part = part[coarse]
        part = part[_distance(hashes[part[:, 0]], hashes[part[:, 1]]) <= limit]
        pairs += [(firsts[a], firsts[b]) for a, b in part.tolist()]
    return pairs


def _canonical(views: Sequence[str]) -> tuple[str, ...]:
    """Return the smallest of the cyclic shifts: equal for the same views whatever the first is."""
    return min(tuple(views[i:]) + tuple(views[:i]) for i in range(len(views)))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Count the differing bits [n] between hashes [n,v] under the best cyclic shift."""
    shifts = [np.bitwise_count(a ^ np.roll(b, shift, axis=1)).sum(axis=1) for shift in range(a.shape[1])]
    return np.stack(shifts).min(axis=0)
