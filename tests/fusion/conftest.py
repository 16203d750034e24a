"""Tiny objects with known surfaces, drawn by the project's own renderer."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import Cameras, orbit
from nova3d.fusion import FusionConfig
from nova3d.images import composite
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(mesh: trimesh.Trimesh, cameras: Cameras) -> ViewSet:
    raster = rasterize(from_trimesh([mesh]), cameras, supersample=2, light="flat")
    return ViewSet(composite(raster.rgba), raster.normals, raster.rgba[..., 3], cameras)


def letter_f() -> trimesh.Trimesh:
    """An F that reads right from the front (+Z), coloured by face: front red, back blue, the rest grey."""
    boxes = [
        trimesh.creation.box((0.2, 0.9, 0.3), trimesh.transformations.translation_matrix((-0.2, 0, 0))),
        trimesh.creation.box((0.45, 0.2, 0.3), trimesh.transformations.translation_matrix((0.1, 0.35, 0))),
        trimesh.creation.box((0.3, 0.2, 0.3), trimesh.transformations.translation_matrix((0.03, 0.0, 0))),
    ]
    mesh: Any = trimesh.util.concatenate(boxes)
    mesh.unmerge_vertices()
    colours = np.full((len(mesh.vertices), 4), 128, dtype=np.uint8)
    z = np.repeat(mesh.face_normals[:, 2], 3)
    colours[z > 0.5] = [220, 30, 30, 255]
    colours[z < -0.5] = [30, 30, 220, 255]
    colours[:, 3] = 255
    mesh.visual.vertex_colors = colours
    return mesh


def sphere(radius: float = 0.35) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    mesh.visual.vertex_colors = [90, 160, 60, 255]
    return mesh


def tiny_config() -> FusionConfig:
    """Seconds on one thread, at 48 px."""
    config = FusionConfig()
    config.encoding.levels, config.encoding.finest, config.encoding.log2_table = 5, 48, 13
    config.field.hidden = config.field.colour_hidden = 32
    config.hull.resolution, config.hull.fit_steps = 48, 60
    config.sampling.rays, config.sampling.samples, config.sampling.random_points = 96, 10, 64
    config.sampling.probes = 48
    config.optim.steps = 100
    config.conflict.polish_steps, config.conflict.polish_rays = 300, 512
    config.extract.resolution, config.extract.coarse, config.extract.faces = 64, 32, 1500
    config.texture.size = 128
    return config


@pytest.fixture(scope="session")
def f_views() -> ViewSet:
    return draw(letter_f(), orbit(8, size=48))


@pytest.fixture(scope="session")
def f_result(f_views):
    from nova3d.fusion import reconstruct

    torch.set_num_threads(1)
    return reconstruct(f_views, tiny_config())


def short_config(**sections: dict[str, Any]) -> FusionConfig:
    """A dozen steps and a coarse mesh, for tests of anything but quality; sections={"key": value} change it."""
    config = tiny_config()
    config.optim.steps, config.hull.fit_steps, config.conflict.polish_steps = 12, 20, 20
    config.extract.resolution, config.extract.faces, config.texture.size = 32, 300, 32
    for section, values in sections.items():
        setattr(config, section, replace(getattr(config, section), **values))
    return config


@pytest.fixture(scope="session")
def short_result(f_views):
    """The mesh of `short_config`, as it is."""
    from nova3d.fusion import reconstruct

    torch.set_num_threads(1)
    return reconstruct(f_views, short_config())


@pytest.fixture(scope="session")
def shapes() -> SimpleNamespace:
    """The makers above, for tests that need their own."""
    return SimpleNamespace(
        draw=draw, orbit=orbit, letter_f=letter_f, sphere=sphere, tiny_config=tiny_config, short_config=short_config
    )
