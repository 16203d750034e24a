"""From the field to a clean triangle mesh: marching cubes near the surface, main components, few faces.

Marching cubes reads the field only near its surface, and holds only what it has read.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.config import ExtractConfig
from nova3d.fusion.decimation import decimate
from nova3d.utils import compat

log = logging.getLogger(__name__)

KERNELS = ("skimage", "mcubes")

_CHUNK = 1 << 17  # points per call of the field
_BATCH = 1 << 20  # nodes of the coarse cells that are refined at a time
_SLAB = 1 << 23  # nodes of one slab of marching cubes, which bounds its memory
# Values nearer to zero than _NEAR, in steps, are moved there, and farther ones than _FAR too. Every vertex then lies
# strictly inside its edge, also in float32, and is identified by it. It moves by a five-hundredth of a step at most.
_NEAR, _FAR = 2e-3, 16.0
_NEW_SHARE = 0.3  # of a component's cells that no larger one covers, if it is to be kept
_NEW_CELLS = 12  # at least: less is a crumb on the rim
_FLAT = 1e-12  # world units^2: a face with less area has no direction


def extract_mesh(
    sdf: Callable[[Tensor], Tensor],
    box: Tensor,
    config: ExtractConfig,
    radius: float,
    cells_at: Callable[[np.ndarray], np.ndarray] | None = None,
    parts: int = 1,
) -> trimesh.Trimesh:
    """Extract, clean and decimate the zero level of a signed distance field.

    Args:
        sdf: [n,3] float32 world points to [n] float32, negative inside.
        box: [2,3] float32 corners of the box in which the surface lies.
        config: resolution, budget of faces, kernel.
        radius: half the side of the field's box, which `config.resolution` cells span.
        cells_at: see `clean`.
        parts: in how many parts the picture of `cells_at` shows the object.

    Returns:
        A closed manifold in the world frame, faces outward (counter-clockwise from outside).

    Raises:
        InputError: where the level set is empty or the kernel is not installed.
    """
    step, factor = 2 * radius / config.resolution, max(1, config.resolution // config.coarse)
    vertices, faces = isosurface(sdf, box, step, factor, config.kernel)
    mesh = clean(trimesh.Trimesh(vertices, faces, process=False), config.min_component, cells_at)
    # Decimation may pinch crumbs off. Parts that the picture shows apart stay, however small they are.
    return clean(decimate(mesh, config.faces), config.min_component, least_parts=1 if cells_at is None else parts)


def check_kernel(name: str) -> None:
    """Raise InputError where a marching cubes kernel is unknown or not installed."""
    if name not in KERNELS:
        raise InputError(f"extract.kernel '{name}' is none of {', '.join(KERNELS)}")
    if name == "mcubes" and not compat.has("mcubes"):
        raise InputError("extract.kernel 'mcubes' needs PyMCubes: pip install 'nova3d[mcubes]', or use skimage")


def isosurface(
    sdf: Callable[[Tensor], Tensor], box: Tensor, step: float, factor: int, kernel: str = "skimage"
) -> tuple[np.ndarray, np.ndarray]:
    """The zero level of a signed distance field, by marching cubes that reads it only near the surface.

    A coarse pass reads every `factor`-th node. A coarse cell is read finely where the signs of its corners differ, or
    where one is so near the surface that a surface may hide in the cell. Wherever the surface leaves a cell that was
    read finely, the next one is read, until it leaves none. A component of which the coarse pass sees one cell
    therefore comes out whole, exactly as on a dense grid.

    Args:
        sdf: [n,3] float32 world points to [n] float32, negative inside.
        box: [2,3] float32; the solid is cut off, and closed, `factor` steps outside it.
        step: side of a fine cell.
        factor: fine cells along a coarse cell.
        kernel: skimage or mcubes.

    Returns:
        vertices: [n,3] float64.
        faces: [f,3] int64, outward. The mesh is closed and manifold. Both are empty where there is no surface.

    Raises:
        InputError: where the kernel is unknown or not installed.
    """
    check_kernel(kernel)
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
    return lattice.march(inside, seen, kernel)


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

    def march(self, inside: np.ndarray, seen: np.ndarray, kernel: str) -> tuple[np.ndarray, np.ndarray]:
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
                part, triangles = _marching_cubes(volume, kernel)
                points.append(part + np.array([start, 0.0, 0.0]))
                faces.append(triangles.astype(np.int64) + count)
                count += len(part)
        vertices, index = _weld(np.concatenate(points), np.arange(thick, self.cells[0], thick) * self.factor)
        return vertices * self.step + self.origin, index[np.concatenate(faces)]

    def _ids(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (x * self.shape[1] + y) * self.shape[2] + z

    def _read(self, ids: np.ndarray) -> None:
        """Read the nodes among the sorted `ids` that have not been read."""
        nearest = np.searchsorted(self.ids, ids).clip(max=max(0, len(self.ids) - 1))
        new = ids[self.ids[nearest] != ids] if len(self.ids) else ids
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


def _marching_cubes(volume: np.ndarray, kernel: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [n,3], in nodes, and outward faces [f,3] of the zero level of [x,y,z] values, negative inside."""
    if kernel == "mcubes":
        import mcubes

        vertices, faces = mcubes.marching_cubes(volume, 0.0)
        return vertices, faces[:, ::-1]
    from skimage.measure import marching_cubes

    # skimage calls a solid of negative values "ascent", but then turns its faces inward.
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
    return vertices, faces


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


def clean(
    mesh: trimesh.Trimesh,
    min_component: float,
    cells_at: Callable[[np.ndarray], np.ndarray] | None = None,
    least_parts: int = 1,
) -> trimesh.Trimesh:
    """Keep the main components, and drop small ones and cavities.

    Args:
        mesh: closed components, faces outward.
        min_component: least area of a component, as a share of the largest one's.
        cells_at: world points [n,3] to the numbers [n] of the cells of a picture that they are seen in, faces being no
            larger than cells. A component is then kept where it covers cells that no larger one covers, however small
            it is, and dropped where it covers none. None: the area decides.
        least_parts: how many of the largest components stay whatever their area.

    Returns:
        The mesh that is left.

    Raises:
        InputError: where the mesh has no faces.
    """
    if len(mesh.faces) == 0:
        raise InputError(
            "the fit found no surface (empty isosurface): check that masks and cameras agree, or use more optim.steps"
        )
    corners = np.asarray(mesh.vertices)[mesh.faces]
    component = _component_of_faces(np.asarray(mesh.faces), len(mesh.vertices))
    area = np.bincount(component, weights=mesh.area_faces)
    # Six times a closed component's volume: negative for a cavity, which no view can have seen.
    volume = np.bincount(
        component, weights=np.einsum("fc,fc->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    )
    solid = volume > 0 if (volume > 0).any() else np.ones(len(volume), dtype=bool)
    ranked = np.sort(area[solid])[::-1]
    least = min(min_component * ranked[0], ranked[min(least_parts, len(ranked)) - 1])
    kept = solid & (area >= least)
    if cells_at is not None:
        kept = solid & _needed_components(cells_at(corners.mean(axis=1)), component, area * solid)
    if not kept.all():
        log.info("dropped %d of %d components (smaller than %.0f %%, or cavities)", (~kept).sum(), len(kept),
                 100 * min_component)  # fmt: skip
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces[kept[component]], process=False)
        mesh.remove_unreferenced_vertices()
    return mesh


def _needed_components(cells: np.ndarray, component: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Which components [c] cover enough cells that larger ones do not; cells [f] and component [f] of the faces."""
    needed = np.zeros(len(area), dtype=bool)
    covered = np.zeros(0, dtype=np.int64)
    for part in np.argsort(-area):
        own = np.unique(cells[component == part])
        new = np.setdiff1d(own, covered, assume_unique=True)
        if not needed.any() or len(new) > max(_NEW_SHARE * len(own), _NEW_CELLS):
            needed[part] = True
            covered = np.union1d(covered, own)
    return needed


def health(mesh: trimesh.Trimesh) -> dict[str, float | int | bool]:
    """What a user asks of a mesh before printing, simulating or editing it.

    Args:
        mesh: any triangle mesh.

    Returns:
        Counts of vertices, faces and components; watertight: each edge is traversed as often one way as the other;
        boundary_edges (one face); non_manifold_edges (more than two); euler = V - E + F; genus, the number of handles,
        where the mesh is watertight; degenerate_faces; area and volume in world units^2 and ^3. The edges of
        watertight, boundary_edges and non_manifold_edges are counted with vertices at one place as one, as programs
        that weld by position see them.
    """
    faces = np.asarray(mesh.faces)
    edges = len(np.unique(np.sort(mesh.edges, axis=1), axis=0))
    components = len(np.unique(_component_of_faces(faces, len(mesh.vertices)))) if len(faces) else 0
    euler = len(np.unique(faces)) - edges + len(faces)
    forward, back = _welded_edges(mesh)
    sharers = forward + back
    watertight = bool(len(faces) and (forward == back).all())
    report: dict[str, float | int | bool] = {
        "vertices": len(mesh.vertices),
        "faces": len(faces),
        "components": components,
        "watertight": watertight,
        "boundary_edges": int((sharers == 1).sum()),
        "non_manifold_edges": int((sharers > 2).sum()),
        "euler": euler,
        "degenerate_faces": int((mesh.area_faces < _FLAT).sum()),
        "area": float(mesh.area),
        "volume": float(mesh.volume),
    }
    return report | ({"genus": components - euler // 2} if watertight else {})


def _welded_edges(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    """How often each edge is traversed from its lower vertex to its higher [e], and back [e], after welding."""
    places = np.asarray(mesh.vertices, np.float32)  # as GLB stores them
    _, place = np.unique(places, axis=0, return_inverse=True)
    edges = place.reshape(-1)[np.asarray(mesh.edges)]
    edges = edges[edges[:, 0] != edges[:, 1]]
    _, index = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    up = edges[:, 0] < edges[:, 1]
    count = int(index.max(initial=-1)) + 1
    index = index.reshape(-1)
    return np.bincount(index[up], minlength=count), np.bincount(index[~up], minlength=count)


def _component_of_faces(faces: np.ndarray, vertices: int) -> np.ndarray:
    """[f] the connected component of each of faces [f,3]."""
    rows, columns = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), (vertices, vertices))
    labels = connected_components(links, directed=False)[1][faces[:, 0]]
    return np.unique(labels, return_inverse=True)[1].reshape(-1)
