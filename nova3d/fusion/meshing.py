"""From the field to a clean triangle mesh: marching cubes near the surface, main parts, few faces, and its health."""

import logging
from collections.abc import Callable

import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.config import ExtractConfig
from nova3d.fusion.decimation import decimate
from nova3d.fusion.isosurface import isosurface

log = logging.getLogger(__name__)

_FLAT = 1e-12  # world units^2: a face with less area has no direction


def extract(sdf: Callable[[Tensor], Tensor], box: Tensor, config: ExtractConfig, radius: float) -> trimesh.Trimesh:
    """The zero level of `sdf` ([n,3] world -> [n], negative inside) within the box [2,3], cleaned and decimated.

    Closed, manifold, faces outward (counter-clockwise from outside). Raises InputError where the level set is empty.
    """
    step = 2 * radius / config.resolution
    vertices, faces = isosurface(sdf, box, step, max(1, config.resolution // config.coarse))
    mesh = clean(trimesh.Trimesh(vertices, faces, process=False), config.min_component)
    return clean(decimate(mesh, config.faces), config.min_component)


def clean(mesh: trimesh.Trimesh, min_component: float) -> trimesh.Trimesh:
    """Keep parts with at least `min_component` of the largest part's area, drop cavities.

    Raises InputError where the mesh has no faces.
    """
    if len(mesh.faces) == 0:
        raise InputError(
            "the fit found no surface (empty isosurface): check that masks and cameras agree, or use more optim.steps"
        )
    corners = np.asarray(mesh.vertices)[mesh.faces]
    part = _parts(np.asarray(mesh.faces), len(mesh.vertices))
    area = np.bincount(part, weights=mesh.area_faces)
    # Six times a closed part's volume: negative for a bubble inside the solid, which no view can have seen.
    volume = np.bincount(part, weights=np.einsum("fc,fc->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])))
    solid = volume > 0 if (volume > 0).any() else np.ones(len(volume), dtype=bool)
    kept = solid & (area >= min_component * area[solid].max())
    if not kept.all():
        log.info("dropped %d of %d parts (smaller than %.0f %%, or cavities)", (~kept).sum(), len(kept),
                 100 * min_component)  # fmt: skip
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces[kept[part]], process=False)
        mesh.remove_unreferenced_vertices()
    return mesh


def health(mesh: trimesh.Trimesh) -> dict[str, float | int | bool]:
    """What a user asks of a mesh before printing, simulating or editing it.

    Counts of vertices, faces and components; watertight: every edge has two faces, turned alike; boundary_edges (one
    face), non_manifold_edges (more than two); euler = V - E + F, and genus, the number of handles, where it is
    watertight; degenerate_faces; area and volume in world units^2 and ^3.
    """
    faces = np.asarray(mesh.faces)
    _, sharers = np.unique(np.sort(mesh.edges, axis=1), axis=0, return_counts=True)
    components = len(np.unique(_parts(faces, len(mesh.vertices)))) if len(faces) else 0
    euler = len(np.unique(faces)) - len(sharers) + len(faces)
    watertight = bool(len(faces) and (sharers == 2).all() and mesh.is_winding_consistent)
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


def _parts(faces: np.ndarray, vertices: int) -> np.ndarray:
    """[f] the connected part that each of faces [f,3] belongs to."""
    rows, columns = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), (vertices, vertices))
    labels = connected_components(links, directed=False)[1][faces[:, 0]]
    return np.unique(labels, return_inverse=True)[1].reshape(-1)
