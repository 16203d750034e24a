"""Colours of one source made to fit those of another over a whole surface (after Perez et al. 2003).

Where two sources of colour show the same surface, their difference is known. A colour transform takes what they differ
by everywhere, such as a gain or a hue. The rest is extended over the surface as smoothly as can be, so that no border
shows where one source ends. It is a difference of logarithms, which is a factor of colours: what makes a grey lamp
black leaves black black, and what brightens a red front does not turn a blue back purple.

Shapes: n vertices, m points.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy.sparse import csc_array, diags_array, eye_array
from scipy.sparse.linalg import splu
from torch import Tensor

_TRANSFORM_SPREAD = 0.3  # standard deviation of the transform's entries from those of the identity, before looking
_PATCHES = 20  # independent patches of surface that the points are taken for: neighbours have like errors
_RANGE = 4.0  # standard deviations of the colours, beyond which the transform is not extrapolated
_NOISE = 0.05  # standard deviation of colours between two views of one surface, at least
_DARK = 0.1  # added to colours before the logarithm, so that black is as far from grey as it looks
_STIFFNESS = 0.03  # world units over which differences that contradict each other are averaged
_ANCHOR = 1e-6  # weight of the mean difference, for parts of the surface where nothing is known
_COTANGENT = (0.02, 10.0)  # least and greatest weight of an edge, for slivers


@dataclass(frozen=True)
class SurfacePoints:
    """m points of a mesh.

    Attributes:
        corners: [m,3] int64, the mesh's vertices around each.
        weights: [m,3] float64, barycentric.
        points: [m,3] float32.
        normals: [m,3] float32, unit vectors, interpolated.
    """

    corners: np.ndarray
    weights: np.ndarray
    points: Tensor
    normals: Tensor

    @staticmethod
    def of(mesh: trimesh.Trimesh, corners: np.ndarray, weights: np.ndarray) -> "SurfacePoints":
        """Points by their corners and weights, as the attributes are."""
        points = torch.from_numpy(np.einsum("mk,mkc->mc", weights, mesh.vertices[corners])).float()
        normals = torch.from_numpy(np.einsum("mk,mkc->mc", weights, mesh.vertex_normals[corners])).float()
        return SurfacePoints(corners, weights, points, F.normalize(normals, dim=-1))

    @staticmethod
    def spread(mesh: trimesh.Trimesh, count: int, seed: int = 0) -> "SurfacePoints":
        """`count` points at random, equally dense everywhere on the surface."""
        places, face = trimesh.sample.sample_surface(mesh, count, seed=seed)[:2]
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], places)
        return SurfacePoints.of(mesh, np.asarray(mesh.faces)[face], np.asarray(weights))

    def interpolate(self, values: Tensor) -> Tensor:
        """Values [n,c] float32 at the mesh's vertices to the points, [m,c] float32."""
        return torch.from_numpy(np.einsum("mk,mkc->mc", self.weights, values.numpy()[self.corners])).float()


@dataclass(frozen=True)
class ColourTransform:
    """An affine transform of colours that is not extrapolated.

    Attributes:
        mean: [3] float32, of the colours it was found on.
        whiten: [3,3] float32, to coordinates in which those colours have the standard deviation 1.
        change: [3,3] float32, from there to what is added to a colour.
        shift: [3] float32, what is added to the mean.
    """

    mean: Tensor
    whiten: Tensor
    change: Tensor
    shift: Tensor

    @staticmethod
    def identity() -> "ColourTransform":
        """What changes nothing."""
        return ColourTransform(torch.zeros(3), torch.eye(3), torch.zeros(3, 3), torch.zeros(3))

    def apply(self, colours: Tensor) -> Tensor:
        """Transform colours [m,3]. Further from the mean than _RANGE deviations, no more is added than there."""
        apart = ((colours - self.mean) @ self.whiten).clamp(-_RANGE, _RANGE)
        return colours + apart @ self.change + self.shift


@dataclass(frozen=True)
class Levelling:
    """What is done to a source's colours: a transform, then a factor that varies over the surface.

    Attributes:
        transform: of all colours alike.
        offset: [n,3] float32, the factor's logarithm at the mesh's vertices.
    """

    transform: ColourTransform
    offset: Tensor

    def apply(self, colours: Tensor, offset: Tensor) -> Tensor:
        """Level colours [m,3] in [0,1] at points where `offset`, interpolated, is [m,3]."""
        return ((_logarithm(self.transform.apply(colours)) + offset).exp() - _DARK).clamp(0, 1)


def level(mesh: trimesh.Trimesh, samples: SurfacePoints, colours: Tensor, target: Tensor, weight: Tensor) -> Levelling:
    """Find what makes colours fit a target, where there is one, and continues it over the rest of the surface.

    Args:
        mesh: the welded surface.
        samples: points that cover it evenly.
        colours: [m,3] float32 in [0,1] there, of the source that is levelled.
        target: [m,3] float32 in [0,1] of the source that it is levelled to.
        weight: [m] float32 in [0,1], how far the target counts; 0 where it is not known.

    Returns:
        The levelling; it changes nothing where no target is known.
    """
    known = weight > 0
    if not bool(known.any()):
        return Levelling(ColourTransform.identity(), torch.zeros(len(mesh.vertices), 3))
    transform = colour_transform(colours[known], target[known], weight[known])
    return Levelling(
        transform, extend(mesh, samples, _logarithm(target) - _logarithm(transform.apply(colours)), weight)
    )


def _logarithm(colours: Tensor) -> Tensor:
    return (colours.clamp(0, 1) + _DARK).log()


def colour_transform(colours: Tensor, target: Tensor, weight: Tensor) -> ColourTransform:
    """The affine transform of colours that fits a target best, as far as the data speak for one.

    Least squares with a normal prior around the identity. It is taken by the share of the target's variance that it
    explains, so that nothing is done where colours and target have nothing in common.

    Args:
        colours: [m,3] float32 in [0,1].
        target: [m,3] float32 in [0,1].
        weight: [m] float32, positive.

    Returns:
        The transform, which takes the colours near the target.
    """
    share = (weight / weight.sum()).double()[:, None]
    c, t = colours.double(), target.double()
    mean_c, mean_t = (share * c).sum(dim=0), (share * t).sum(dim=0)
    c, t = c - mean_c, t - mean_t
    noise = (share * (t - c).square()).sum(dim=0).mean().clamp_min(_NOISE**2)  # what the identity leaves
    moments = (share * c).mT @ c
    prior = noise / _PATCHES / _TRANSFORM_SPREAD**2 * torch.eye(3, dtype=torch.float64)
    change = torch.linalg.solve(moments + prior, (share * c).mT @ (t - c))
    unexplained = (share * (t - c - c @ change).square()).sum() / (share * t.square()).sum().clamp_min(1e-8)
    explained = (1 - unexplained).clamp(0, 1)
    variance, axes = torch.linalg.eigh(moments)
    deviation = variance.clamp_min(1e-8).sqrt()
    parts = (mean_c, axes / deviation, (axes * deviation).mT @ change * explained, (mean_t - mean_c) * explained)
    return ColourTransform(*(part.float() for part in parts))


def extend(mesh: trimesh.Trimesh, samples: SurfacePoints, values: Tensor, weight: Tensor) -> Tensor:
    """Continue values that are known on a part of a surface: the smoothest field near them, harmonic elsewhere.

    It minimises the integral of |grad f|^2 + weight (f - values)^2 / _STIFFNESS^2 over the surface, with linear finite
    elements.

    Args:
        mesh: the welded surface of n vertices.
        samples: points that cover it evenly.
        values: [m,c] float32 there.
        weight: [m] float32, 0 where no value is known, above 0 somewhere.

    Returns:
        [n,c] float32 at the vertices. A part of the surface without known values takes their mean.
    """
    n, m = len(mesh.vertices), len(weight)
    pull = weight.double().numpy() / float(weight.max()) * float(mesh.area) / m / _STIFFNESS**2
    rows = np.repeat(np.arange(m), 3)
    sampling = csc_array((samples.weights.ravel(), (rows, samples.corners.ravel())), (m, n))
    given = values.double().numpy()
    mean = (pull[:, None] * given).sum(axis=0) / pull.sum()
    system = _stiffness(mesh) + sampling.T @ (sampling * pull[:, None])
    anchor = _ANCHOR * float(system.diagonal().max())
    right = sampling.T @ (pull[:, None] * given) + anchor * mean
    return torch.from_numpy(splu(csc_array(system + anchor * eye_array(n))).solve(right)).float()


def _stiffness(mesh: trimesh.Trimesh) -> csc_array:
    """[n,n] the quadratic form of the integral of |grad f|^2: half the cotangents of the angles opposite an edge."""
    n, faces = len(mesh.vertices), np.asarray(mesh.faces)
    cotangents = 1 / np.tan(np.asarray(mesh.face_angles).clip(1e-3, np.pi - 1e-3))
    i, j = faces[:, [1, 2, 0]].ravel(), faces[:, [2, 0, 1]].ravel()  # the edge opposite each corner
    half = cotangents.ravel().clip(*_COTANGENT) / 2
    graph = csc_array((np.tile(half, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), (n, n))
    return csc_array(diags_array(graph.sum(axis=1)) - graph)
