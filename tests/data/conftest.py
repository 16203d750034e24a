"""Meshes and shards the data tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nova3d import cameras
from nova3d.data.shards import ShardWriter, encode_views
from nova3d.rendering import render_object

RADIUS = 0.5


def coloured_box(extents: tuple[float, float, float], seed: int = 0) -> trimesh.Trimesh:
    """A box whose six sides have different plain colours."""
    mesh = trimesh.creation.box(extents)
    mesh.unmerge_vertices()
    rng = np.random.default_rng(seed)
    sides = rng.integers(30, 226, (6, 3))
    side = [int(np.abs(n).argmax() * 2 + (n[np.abs(n).argmax()] > 0)) for n in mesh.face_normals]
    colours = np.repeat(sides[side], 3, axis=0)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.c_[colours, np.full(len(colours), 255)])
    return mesh


@pytest.fixture(scope="session")
def sphere_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finely divided sphere of radius 0.5 as GLB, with exact vertex normals."""
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS)
    smooth = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.vertices / RADIUS, process=False)
    path = tmp_path_factory.mktemp("meshes") / "sphere.glb"
    path.write_bytes(trimesh.exchange.gltf.export_glb(trimesh.Scene(smooth), include_normals=True))
    return path


@pytest.fixture(scope="session")
def lopsided_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three coloured boxes without any symmetry, about the origin."""
    parts = [coloured_box((0.3, 0.8, 0.2), 0), coloured_box((0.5, 0.2, 0.2), 1), coloured_box((0.15, 0.15, 0.3), 2)]
    parts[1].apply_translation((0.2, 0.2, 0.05))
    parts[2].apply_translation((-0.05, -0.25, 0.2))
    path = tmp_path_factory.mktemp("meshes") / "lopsided.ply"
    trimesh.util.concatenate(parts).export(path)
    return path


@pytest.fixture
def write_shards(lopsided_file: Path) -> Callable[..., Path]:
    """Writes `count` renders of the same object, 4 views of 24 pixels, into shards of two; returns the folder."""

    def write(folder: Path, count: int = 3) -> Path:
        rig = cameras.orbit(4, size=24)
        views = render_object(lopsided_file, rig, supersample=2)
        writer = ShardWriter(folder, rig, samples_per_shard=2)
        for index in range(count):
            writer.add(f"object{index}", encode_views(f"object{index}", views, {"uid": f"object{index}"}))
        writer.close({"record": {}})
        return folder

    return write


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
