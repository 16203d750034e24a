"""The scene of a glTF file as parts: nodes, animation at time 0, instances, skins, morph targets, primitives."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nova3d.rendering.file_access import LIMITS, Limits
from nova3d.rendering.gltf import Document, number, vector
from nova3d.rendering.gltf_materials import Materials
from nova3d.rendering.parts import FileFacts, Part, Scene

Floats = NDArray[np.float64]
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_TINY = 1e-12


def read_gltf(path: Path, limits: Limits = LIMITS, finish: bool = False) -> Scene:
    """Read a glTF file as it stands at time 0 of its first animation; without one, as its nodes stand.

    Args:
        path: a .glb or .gltf file.
        limits: what it may cost.
        finish: whether to read what only a path tracer draws.

    Returns:
        The triangles of the default scene.

    Raises:
        RenderError, InputError: for a broken file and for what is not read, with the name of it.
        ValueError, KeyError, TypeError, AttributeError, IndexError: for JSON of another shape than glTF's.
    """
    document = Document(path, limits)
    reader = _Reader(document, Materials(document, finish))
    parts = reader.parts()
    named = dict.fromkeys(part.material.missing for part in parts if part.material.missing)
    facts = FileFacts(len(document.entries("animations")), len(document.entries("skins")), tuple(named))
    return Scene(parts, facts)


@dataclass(frozen=True)
class _Shape:
    """A primitive before it is placed, with its morph targets applied."""

    part: Part
    joints: NDArray[np.int64] | None
    weights: Floats | None


class _Reader:
    def __init__(self, document: Document, materials: Materials):
        self.document, self.materials = document, materials
        self.nodes = [document.entry("nodes", k) for k in range(len(document.entries("nodes")))]
        self.parent = self._parents()
        self.posed = self._first_keys()
        self.world = self._world()
        self.triangles = 0

    def parts(self) -> list[Part]:
        """The triangles of the default scene, placed, in the order of its nodes."""
        shapes: dict[Any, list[_Shape]] = {}
        # A shape that is used often is placed at once: sixty thousand nodes may name one mesh.
        parts: list[Part] = []
        places: dict[int, tuple[Part, list[Floats]]] = {}  # matrices [k,4,4] of each node
        for index in self._visible():
            node = self.nodes[index]
            if "mesh" not in node:
                continue
            weights = self._morph_weights(index)
            key = (node["mesh"], tuple(weights))
            if key not in shapes:
                shapes[key] = list(self._shapes(self.document.entry("meshes", node["mesh"]), weights))
            for shape in shapes[key]:
                if "skin" in node and shape.joints is not None and shape.weights is not None:
                    self._count(len(shape.part.faces))
                    parts.append(self._apply_skin(shape, self.document.entry("skins", node["skin"])))
                    continue
                matrices = self._matrices(index, len(shape.part.faces))
                places.setdefault(id(shape.part), (shape.part, []))[1].append(matrices)
        return [_instantiate(part, np.concatenate(matrices)) for part, matrices in places.values()] + parts

    def _count(self, triangles: int) -> None:
        self.triangles += triangles
        if self.triangles > self.document.limits.triangles:
            raise ValueError(f"it has more than {self.document.limits.triangles} triangles")

    # Nodes

    def _parents(self) -> dict[int, int]:
        """The parent of each node that has one; raises ValueError where the nodes do not form a tree."""
        parent: dict[int, int] = {}
        for index, node in enumerate(self.nodes):
            for child in node.get("children", []):
                self.document.entry("nodes", child)
                if parent.setdefault(child, index) != index:
                    raise ValueError(f"nodes[{child}] has two parents")
        seen: set[int] = set()
        for index in parent:
            path = set()
            while index in parent and index not in seen:
                if index in path:
                    raise ValueError(f"nodes[{index}] is below itself")
                path.add(index)
                index = parent[index]
            seen |= path
        return parent

    def _world(self) -> list[Floats]:
        """Every node's transform to the world."""
        world: list[Floats | None] = [None] * len(self.nodes)
        for index in range(len(self.nodes)):
            chain = [index]
            while world[chain[-1]] is None and chain[-1] in self.parent:
                chain.append(self.parent[chain[-1]])
            for node in reversed(chain):
                if world[node] is None:
                    local = self._local(node)
                    above = world[self.parent[node]] if node in self.parent else None
                    world[node] = local if above is None else above @ local
        return [matrix for matrix in world if matrix is not None]

    def _local(self, index: int) -> Floats:
        node, posed = self.nodes[index], self.posed.get(index, {})
        if "matrix" in node and not posed:
            return vector(node["matrix"], (0.0,) * 16, f"the matrix of nodes[{index}]").reshape(4, 4).T
        move = posed.get("translation", vector(node.get("translation"), (0.0, 0.0, 0.0), "a translation"))
        turn = posed.get("rotation", vector(node.get("rotation"), (0.0, 0.0, 0.0, 1.0), "a rotation"))
        size = posed.get("scale", vector(node.get("scale"), (1.0, 1.0, 1.0), "a scale"))
        return _transforms(move[None], turn[None], size[None])[0]

    def _visible(self) -> Iterator[int]:
        """The nodes of the default scene, parents before children."""
        scenes = self.document.entries("scenes")
        if scenes:
            listed = self.document.entry("scenes", self.document.tree.get("scene", 0)).get("nodes", [])
        else:
            listed = [k for k in range(len(self.nodes)) if k not in self.parent]
        for index in listed:
            self.document.entry("nodes", index)
        below = self._below(set(listed))
        stack = [k for k in dict.fromkeys(listed) if k not in below][::-1]
        while stack:
            index = stack.pop()
            node = self.nodes[index]
            if node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True) is False:
                continue
            yield index
            stack += node.get("children", [])[::-1]

    def _below(self, listed: set[int]) -> set[int]:
        """The nodes below one of those listed."""
        found: set[int] = set()
        stack = [child for index in listed for child in self.nodes[index].get("children", [])]
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack += self.nodes[index].get("children", [])
        return found

    def _first_keys(self) -> dict[int, dict[str, Floats]]:
        """What the first animation sets at time 0: {node: {path: value}}."""
        posed: dict[int, dict[str, Floats]] = {}
        widths = {"translation": 3, "rotation": 4, "scale": 3, "weights": 1}
        for animation in self.document.entries("animations")[:1]:
            for channel in animation["channels"]:
                target = channel["target"]
                if "node" not in target or target.get("path") not in widths:
                    continue
                sampler = animation["samplers"][channel["sampler"]]
                times = self.document.numbers(sampler["input"], (1,))[:, 0]
                values = self.document.numbers(sampler["output"], (widths[target["path"]],))
                if len(times) == 0 or len(values) % len(times):
                    raise ValueError("an animation has no value for each of its times")
                keys = values.reshape(len(times), -1).astype(np.float64)
                if sampler.get("interpolation") == "CUBICSPLINE":  # in-tangent, value, out-tangent
                    keys = np.split(keys, 3, axis=1)[1]
                self.document.entry("nodes", target["node"])
                posed.setdefault(target["node"], {})[target["path"]] = _keyframe_at_zero(times, keys)
        return posed

    # Meshes

    def _morph_weights(self, index: int) -> list[float]:
        posed = self.posed.get(index, {}).get("weights")
        if posed is not None:
            return [float(weight) for weight in posed]
        node = self.nodes[index]
        given = node.get("weights", self.document.entry("meshes", node["mesh"]).get("weights", []))
        return [number(weight, 0.0, "a morph weight") for weight in given]

    def _shapes(self, mesh: dict[str, Any], weights: list[float]) -> Iterator[_Shape]:
        for primitive in mesh["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            if mode in (0, 1, 2, 3):  # points and lines have no surface
                continue
            if mode not in (_TRIANGLES, _STRIP, _FAN):
                raise ValueError(f"a primitive has mode {mode}")
            if "KHR_draco_mesh_compression" in primitive.get("extensions", {}) and "POSITION" not in primitive.get(
                "attributes", {}
            ):
                raise ValueError("a primitive is compressed with KHR_draco_mesh_compression, which is not read")
            if "POSITION" in primitive["attributes"]:
                yield self._shape(primitive, mode, weights)

    def _shape(self, primitive: dict[str, Any], mode: int, weights: list[float]) -> _Shape:
        attributes = primitive["attributes"]
        material, coordinates = self.materials.get(primitive.get("material"))
        stated = self.document.count(attributes["POSITION"])
        if "indices" in primitive:
            corners = self.document.integers(primitive["indices"])[:, 0]
        else:
            corners = np.arange(self._within(stated), dtype=np.int64)
        faces, rows = _used(_faces(corners, mode, stated), stated)
        count = stated if rows is None else len(rows)
        for name in ("NORMAL", "COLOR_0", f"TEXCOORD_{coordinates.number}", "JOINTS_0", "WEIGHTS_0"):
            if name in attributes and self.document.count(attributes[name]) != stated:
                given = self.document.count(attributes[name])
                raise ValueError(f"a primitive has {stated} positions and {given} of {name}")
        positions = self._attribute(primitive, "POSITION", (3,), weights, rows)
        assert positions is not None
        uv = self._attribute(primitive, f"TEXCOORD_{coordinates.number}", (2,), weights, rows)
        textured = material.picture is not None or material.finish is not None
        colours = self._attribute(primitive, "COLOR_0", (3, 4), weights, rows)
        if colours is not None and colours.shape[1] == 3:
            colours = np.concatenate([colours, np.ones((count, 1), colours.dtype)], axis=1)
        normals = self._attribute(primitive, "NORMAL", (3,), weights, rows)
        part = Part(
            positions=positions.astype(np.float64),
            faces=faces,
            material=material,
            normals=normals,
            uv=None if not textured else coordinates.apply(np.zeros((count, 2)) if uv is None else uv),
            colours=None if colours is None else colours.clip(0, 1),
        )
        joints, influence = self._influence(attributes, count, rows)
        return _Shape(part, joints, influence)

    def _within(self, corners: int) -> int:
        """A number of corners; raises ValueError where their triangles are too many."""
        if corners > 3 * self.document.limits.triangles:
            raise ValueError(f"it has more than {self.document.limits.triangles} triangles")
        return corners

    def _attribute(
        self,
        primitive: dict[str, Any],
        name: str,
        widths: tuple[int, ...],
        weights: list[float],
        rows: NDArray[np.int64] | None,
    ) -> NDArray[np.floating] | None:
        """A vertex attribute, or `rows` of it, with its morph targets added; None where the primitive lacks it."""
        if name not in primitive["attributes"]:
            return None
        colour = name.startswith("COLOR")
        values: NDArray[np.floating] = self.document.numbers(primitive["attributes"][name], widths, colour, rows)
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and name in target:
                given, wanted = (self.document.count(k) for k in (target[name], primitive["attributes"][name]))
                if given != wanted:
                    raise ValueError(f"a morph target has {given} of {name} for {wanted} vertices")
                moved = self.document.numbers(target[name], widths, rows=rows)
                if moved.shape != values.shape:
                    raise ValueError(f"a morph target has {moved.shape[1]} numbers of {name}, not {values.shape[1]}")
                values = values + weight * moved.astype(np.float64)
        return values

    def _influence(
        self, attributes: dict[str, Any], count: int, rows: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64] | None, Floats | None]:
        """Joints [n,k] and weights [n,k], of sum 1, of a skinned primitive."""
        sets = [k for k in range(8) if f"JOINTS_{k}" in attributes and f"WEIGHTS_{k}" in attributes]
        if not sets:
            return None, None
        joints = np.concatenate([self.document.integers(attributes[f"JOINTS_{k}"], 4, rows) for k in sets], axis=1)
        weights = np.concatenate(
            [self.document.numbers(attributes[f"WEIGHTS_{k}"], (4,), True, rows) for k in sets], axis=1
        ).astype(np.float64)
        if len(joints) != count or len(weights) != count:
            raise ValueError(f"a primitive has {count} positions and {len(joints)} sets of joints")
        weights = np.where(np.isfinite(weights), weights, 0).clip(0)
        total = weights.sum(axis=1, keepdims=True)
        weights[total[:, 0] < _TINY, 0] = 1.0  # a vertex without a joint follows the first
        return joints, weights / np.where(total < _TINY, 1.0, total)

    # Placing

    def _matrices(self, index: int, triangles: int) -> Floats:
        """The transforms [k,4,4] of a node's mesh, of `triangles`, to the world: its own, or one for each instance."""
        instances = self.nodes[index].get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if instances is None:
            self._count(triangles)
            return self.world[index][None]
        return self.world[index] @ self._instances(instances.get("attributes", {}), triangles)

    def _instances(self, attributes: dict[str, Any], triangles: int) -> Floats:
        """The transforms [k,4,4] of EXT_mesh_gpu_instancing, for a mesh of `triangles`."""
        named = [name for name in ("TRANSLATION", "ROTATION", "SCALE") if name in attributes]
        counts = {self.document.count(attributes[name]) for name in named}
        if len(counts) != 1:
            raise ValueError("the attributes of EXT_mesh_gpu_instancing have no common number of instances")
        count = counts.pop()
        self._count(max(1, triangles) * count)
        read = {
            name: self.document.numbers(attributes[name], (width,)).astype(np.float64)
            for name, width in (("TRANSLATION", 3), ("ROTATION", 4), ("SCALE", 3))
            if name in attributes
        }
        return _transforms(
            read.get("TRANSLATION", np.zeros((count, 3))),
            read.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1))),
            read.get("SCALE", np.ones((count, 3))),
        )

    def _apply_skin(self, shape: _Shape, skin: dict[str, Any]) -> Part:
        """The part posed by its joints. The transform of its own node does not count (glTF 2.0, 3.7.3.3)."""
        assert shape.joints is not None and shape.weights is not None
        joints = skin["joints"]
        for joint in joints:
            self.document.entry("nodes", joint)
        used = np.where(shape.weights > 0, shape.joints, 0)
        if not joints or int(used.max(initial=0)) >= len(joints):
            raise ValueError(f"a vertex follows joint {int(used.max(initial=0))} of a skin of {len(joints)}")
        pose = np.stack([self.world[joint] for joint in joints])
        if "inverseBindMatrices" in skin:
            inverse = self.document.numbers(skin["inverseBindMatrices"], (16,)).astype(np.float64)
            if len(inverse) < len(joints):
                raise ValueError(f"a skin has {len(joints)} joints and {len(inverse)} inverse bind matrices")
            pose = pose @ inverse[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
        blended = np.zeros((len(used), 4, 4))
        for slot in range(used.shape[1]):  # one slot at a time: [n,k,4,4] would take k times the memory
            blended += shape.weights[:, slot, None, None] * pose[used[:, slot]]
        part = shape.part
        positions = np.einsum("nij,nj->ni", blended[:, :3, :3], part.positions) + blended[:, :3, 3]
        normals = part.normals
        if normals is not None:
            normals = np.einsum("nij,nj->ni", _cofactors(blended[:, :3, :3]), normals)
        return replace(part, positions=positions, normals=normals)


def _faces(corners: NDArray[np.int64], mode: int, count: int) -> NDArray[np.int64]:
    """Triangles [f,3] of a primitive's corners; raises ValueError where one is past its vertices."""
    if len(corners) and int(corners.max()) >= count:
        raise ValueError(f"a primitive names vertex {int(corners.max())} of its {count}")
    if mode == _TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([corners[1:-1], corners[2:], np.full(len(corners) - 2, corners[0])], axis=1)
    faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    faces[1::2] = faces[1::2][:, [0, 2, 1]]
    bridges = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 0] == faces[:, 2])
    return faces[~bridges]


def _used(faces: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Faces among the vertices that they use, and which of the `count` those are; None where they use all.

    Many primitives may share one long list of vertices. Each then reads its own of it.
    """
    if 3 * len(faces) < count:
        rows, index = np.unique(faces, return_inverse=True)
        return index.reshape(faces.shape), rows
    mask = np.zeros(count, bool)
    mask[faces] = True
    if mask.all():
        return faces, None
    return (np.cumsum(mask) - 1)[faces], np.flatnonzero(mask)


def _instantiate(part: Part, matrices: Floats) -> Part:
    """A part at each of the affine transforms [k,4,4]; a mirror keeps the faces turned outwards."""
    if len(matrices) == 1 and np.array_equal(matrices[0], np.eye(4)):
        return part
    count, size = len(matrices), len(part.positions)
    linear = matrices[:, :3, :3]
    positions = part.positions @ linear.transpose(0, 2, 1) + matrices[:, None, :3, 3]
    normals = None
    if part.normals is not None:
        normals = (part.normals @ _cofactors(linear).transpose(0, 2, 1)).reshape(-1, 3)
    faces = np.tile(part.faces, (count, 1, 1))
    mirrored = np.linalg.det(linear) < 0
    faces[mirrored] = faces[mirrored][:, :, ::-1]
    faces += size * np.arange(count)[:, None, None]
    return replace(
        part,
        positions=positions.reshape(-1, 3),
        faces=faces.reshape(-1, 3),
        normals=normals,
        uv=None if part.uv is None else np.tile(part.uv, (count, 1)),
        colours=None if part.colours is None else np.tile(part.colours, (count, 1)),
    )


def _cofactors(linear: Floats) -> Floats:
    """The matrices [n,3,3] that turn normals as `linear` [n,3,3] moves points, up to a positive factor."""
    a, b, c = linear[:, :, 0], linear[:, :, 1], linear[:, :, 2]
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=2)
    return cofactors * np.where(np.linalg.det(linear) < 0, -1.0, 1.0)[:, None, None]


def _transforms(move: Floats, turn: Floats, size: Floats) -> Floats:
    """[n,4,4] of translations [n,3], quaternions [n,4] (x, y, z, w) and scales [n,3]."""
    length = np.linalg.norm(turn, axis=1, keepdims=True)
    x, y, z, w = np.where(length < _TINY, [0.0, 0.0, 0.0, 1.0], turn / np.maximum(length, _TINY)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.tile(np.eye(4), (len(move), 1, 1))
    matrices[:, :3, :3] = np.moveaxis(np.array(rows), 2, 0) * size[:, None]
    matrices[:, :3, 3] = move
    return matrices


def _keyframe_at_zero(times: NDArray[np.floating], keys: Floats) -> Floats:
    """The value at time 0: that of the last key that is not later, or of the first."""
    return keys[max(0, int(np.searchsorted(times, 0.0, side="right")) - 1)]
