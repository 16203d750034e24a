"""Marching cubes that reads the field only near its surface, and holds only what it has read."""

from collections.abc import Callable

import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor

_CHUNK = 1 << 17  # points per call of the field
_BATCH = 1 << 20  # nodes of the coarse cells that are refined at a time
_SLAB = 1 << 23  # nodes of one slab of marching cubes; bounds its memory
# Values nearer to zero than this, in steps, are moved there, and farther ones than `_FAR` too: then every vertex lies
# strictly inside its edge, also in float32, and is known by it. It moves by a five-hundredth of a step at most.
_NEAR, _FAR = 2e-3, 16.0


def isosurface(sdf: Callable[[Tensor], Tensor], box: Tensor, step: float, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The zero level of `sdf` ([n,3] world -> [n], negative inside) as vertices [n,3] and outward faces [f,3].

    box: [2,3]; the solid is cut off, and closed, `factor` steps outside it. step: the side of a cell. Closed and
    manifold; both arrays are empty where there is no surface.

    A coarse pass reads every `factor`-th node. A coarse cell is read finely where its corners' signs differ or where
    one is so near the surface that a surface may hide in the cell; then wherever the surface leaves a fine cell, the
    next one is read, until it leaves none. So every part of which the coarse pass sees one cell comes out whole,
    exactly as on a dense grid.
    """
    lattice = _Lattice(sdf, box, step, factor)
    coarse = lattice.coarse_values()
    inside = coarse < 0
    cells = np.argwhere(_any_corner(inside) & _any_corner(~inside) | _any_corner(np.abs(coarse) < lattice.reach))
    seen = np.zeros(lattice.cells, dtype=bool)
    while len(cells):
        seen[tuple(cells.T)] = True
        parts = np.array_split(cells, 1 + len(cells) * (factor + 1) ** 3 // _BATCH)
        cells = np.unique(np.concatenate([lattice.refine(part) for part in parts]), axis=0)
        cells = cells[~seen[tuple(cells.T)]]
    return lattice.march(inside, seen)


class _Lattice:
    """The nodes around the box: ids are x-major, so that a slab of x is one piece of the sorted list of read nodes."""

    def __init__(self, sdf: Callable[[Tensor], Tensor], box: Tensor, step: float, factor: int) -> None:
        low, high = box[0].double().cpu().numpy(), box[1].double().cpu().numpy()
        self.sdf, self.device, self.step, self.factor = sdf, box.device, step, factor
        self.cells = np.ceil((high - low) / (step * factor)).astype(int) + 2  # one coarse cell of air on either side
        self.origin = (low + high) / 2 - self.cells * step * factor / 2
        self.shape = self.cells * factor + 1
        # No point of a cell is farther from its nearest corner; a distance field is smaller there.
        self.reach = np.sqrt(3) / 2 * step * factor
        self.ids, self.values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)

    def coarse_values(self) -> np.ndarray:
        """[x,y,z] values at the coarse cells' corners."""
        axes = [np.arange(n + 1) * self.factor for n in self.cells]
        ids = self._ids(*np.meshgrid(*axes, indexing="ij"))
        self._read(ids.ravel())
        return self._look_up(ids)

    def refine(self, cells: np.ndarray) -> np.ndarray:
        """Read coarse cells [n,3] finely; returns the neighbours [m,3] into which the surface leaves them."""
        local = np.arange(self.factor + 1)
        corner = (cells * self.factor)[:, :, None, None, None]
        ids = self._ids(
            corner[:, 0] + local[:, None, None], corner[:, 1] + local[:, None], corner[:, 2] + local
        )  # n x y z
        self._read(np.unique(ids))
        inside = self._look_up(ids) < 0
        leaves = []
        for axis in range(3):
            for end, direction in ((0, -1), (-1, 1)):
                side = np.take(inside, end, axis=axis + 1).reshape(len(cells), -1)
                crossed = side.any(axis=1) & ~side.all(axis=1)
                leaves.append(cells[crossed] + direction * np.eye(3, dtype=int)[axis])
        return np.concatenate(leaves)

    def march(self, inside: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Marching cubes over the cells `seen`, slab by slab, welded. inside [x,y,z]: signs at the coarse corners."""
        plane = int(self.shape[1] * self.shape[2])
        thick = max(1, _SLAB // (plane * self.factor))  # coarse cells
        points, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), dtype=np.int64)], 0
        for first in range(0, self.cells[0], thick):
            last = min(first + thick, int(self.cells[0]))
            start, nodes = first * self.factor, (last - first) * self.factor + 1
            # Unread cells have one sign, that of any of their corners, and nothing else of them matters.
            rows = [np.arange(n) // self.factor for n in (nodes, *self.shape[1:])]
            volume = np.where(inside[first : last + 1][np.ix_(*rows)], np.float32(-self.step), np.float32(self.step))
            a, b = np.searchsorted(self.ids, [start * plane, (start + nodes) * plane])
            volume.ravel()[self.ids[a:b] - start * plane] = self.values[a:b]
            if seen[first:last].any() and (volume < 0).any():
                # skimage would call a solid of negative values "ascent", but turns its faces inward.
                part, triangles, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
                points.append(part + np.array([start, 0.0, 0.0]))
                faces.append(triangles.astype(np.int64) + count)
                count += len(part)
        vertices, index = _weld(np.concatenate(points), np.arange(thick, self.cells[0], thick) * self.factor)
        return vertices * self.step + self.origin, index[np.concatenate(faces)]

    def _ids(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (x * self.shape[1] + y) * self.shape[2] + z

    def _read(self, ids: np.ndarray) -> None:
        """Read the nodes among the sorted `ids` that have not been read."""
        at = np.searchsorted(self.ids, ids).clip(max=max(0, len(self.ids) - 1))
        new = ids[self.ids[at] != ids] if len(self.ids) else ids
        if len(new) == 0:
            return
        node = np.stack(np.unravel_index(new, self.shape), axis=-1)
        points = torch.from_numpy((node * self.step + self.origin).astype(np.float32)).to(self.device)
        with torch.no_grad():
            read = torch.cat([self.sdf(part) for part in points.split(_CHUNK)]).float().cpu().numpy()
        border = ((node == 0) | (node == self.shape - 1)).any(axis=1)
        read = np.where(border, np.maximum(read, np.float32(self.step)), read)  # air there closes what the box cuts
        sign = np.where(read < 0, np.float32(-self.step), np.float32(self.step))
        values = sign * (np.abs(read) / self.step).clip(_NEAR, max(_FAR, 2 * self.factor))
        ids, values = np.concatenate([self.ids, new]), np.concatenate([self.values, values])
        order = np.argsort(ids, kind="stable")
        self.ids, self.values = ids[order], values[order].astype(np.float32)

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        return self.values[np.searchsorted(self.ids, ids)]


def _any_corner(nodes: np.ndarray) -> np.ndarray:
    """[x,y,z] of cells: whether any of the eight corners [x+1,y+1,z+1] is true."""
    for axis in range(3):
        rows = np.moveaxis(nodes, axis, 0)
        nodes = np.moveaxis(rows[1:] | rows[:-1], 0, axis)
    return nodes


def _weld(points: np.ndarray, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [n,3], in nodes, with those doubled on the slabs' common planes made one, and where each went [n]."""
    inside_edge = (points[:, 1:] % 1 != 0).any(axis=1)  # else it lies on an edge that leaves the plane
    seam = np.nonzero(np.isin(points[:, 0], planes) & inside_edge)[0]
    _, first, which = np.unique(points[seam], axis=0, return_index=True, return_inverse=True)
    keeper = np.arange(len(points))
    keeper[seam] = seam[first][which.reshape(-1)]
    kept = np.unique(keeper)
    return points[kept], np.searchsorted(kept, keeper)
