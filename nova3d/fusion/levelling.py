"""Colours of one source made to fit those of another over a whole surface (after Perez et al. 2003).

Where two sources of colour show the same surface, their difference is known. A colour transform takes what they differ
by everywhere, such as a gain or a hue. The rest is extended over the surface as smoothly as can be, so that no border
shows where one source ends. Shapes: n vertices, e edges.
"""

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

_TRANSFORM_SPREAD = 0.3  # standard deviation of the transform's entries from those of the identity, before looking
_PATCHES = 50  # independent patches of surface that the vertices are taken for: neighbours have like errors
_STIFFNESS = 0.05  # world units over which differences that contradict each other are averaged
_ANCHOR = 1e-6  # weight of the mean difference, for parts of the surface where nothing is known


@dataclass(frozen=True)
class Levelling:
    """What is done to a source's colours c: c @ matrix + shift + an offset that varies over the surface.

    Attributes:
        matrix: [3,3] float32.
        shift: [3] float32.
        offset: [n,3] float32, at the mesh's vertices.
    """

    matrix: Tensor
    shift: Tensor
    offset: Tensor

    def apply(self, colours: Tensor, offset: Tensor) -> Tensor:
        """Level colours [m,3] at points whose interpolated `offset` is [m,3]; not clipped."""
        return colours @ self.matrix + self.shift + offset


def level(mesh: trimesh.Trimesh, colours: Tensor, target: Tensor, weight: Tensor) -> Levelling:
    """Find what makes colours at a mesh's vertices fit a target, where there is one, and continues it elsewhere.

    Args:
        mesh: the welded surface.
        colours: [n,3] float32 of the source that is levelled.
        target: [n,3] float32 of the source that it is levelled to.
        weight: [n] float32, how far the target counts; 0 where it is not known, above 0 somewhere.

    Returns:
        The levelling.
    """
    known = weight > 0
    matrix, shift = colour_transform(colours[known], target[known], weight[known])
    difference = (target - colours @ matrix - shift) * known[:, None]
    return Levelling(matrix, shift, extend(mesh, difference, weight))


def colour_transform(colours: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The affine transform of colours that fits a target best, as far as the data speak for one.

    Least squares with a normal prior around the identity: where colours and target have little in common, the
    transform is little more than a shift of the mean.

    Args:
        colours: [n,3] float32.
        target: [n,3] float32.
        weight: [n] float32, positive.

    Returns:
        matrix [3,3] and shift [3], float32, so that colours @ matrix + shift is near the target.
    """
    share = (weight / weight.sum()).double()[:, None]
    c, t = colours.double(), target.double()
    mean_c, mean_t = (share * c).sum(dim=0), (share * t).sum(dim=0)
    c, t = c - mean_c, t - mean_t
    noise = (share * (t - c).square()).sum(dim=0).mean()  # what the identity leaves
    ridge = noise / _PATCHES / _TRANSFORM_SPREAD**2
    eye = torch.eye(3, dtype=torch.float64)
    moments = (share * c).mT @ c + (ridge + 1e-9) * eye
    matrix = eye + torch.linalg.solve(moments, (share * c).mT @ (t - c))
    return matrix.float(), (mean_t - mean_c @ matrix).float()


def extend(mesh: trimesh.Trimesh, values: Tensor, weight: Tensor) -> Tensor:
    """Continue values that are known on a part of a surface: the smoothest field near them, harmonic elsewhere.

    It minimises the sum of weight (f - values)^2 over the vertices and of (f_i - f_j)^2 / length over the edges.

    Args:
        mesh: the welded surface.
        values: [n,c] float32 at its vertices.
        weight: [n] float32, 0 where no value is known, above 0 somewhere.

    Returns:
        [n,c] float32. A part of the surface without known values takes their mean.
    """
    n = len(mesh.vertices)
    edges, length = np.asarray(mesh.edges_unique), np.asarray(mesh.edges_unique_length)
    conductance = 1 / np.maximum(length, 1e-3 * max(float(length.mean()), 1e-9))
    i, j = edges.T
    graph = coo_array((np.tile(conductance, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), (n, n)).tocsc()
    laplacian = diags_array(graph.sum(axis=1)) - graph
    known = weight.double().numpy() / float(weight.max())
    # A vertex stands for the surface around it, so that the smoothing has one width whatever the mesh's density.
    pull = known * np.asarray(graph.sum(axis=1)) * (float(length.mean()) / _STIFFNESS) ** 2
    given = values.double().numpy()
    mean = (pull[:, None] * given).sum(axis=0) / pull.sum()
    anchor = _ANCHOR * float(pull.max())
    system = csc_array(laplacian + diags_array(pull + anchor))
    return torch.from_numpy(splu(system).solve(pull[:, None] * given + anchor * mean)).float()
