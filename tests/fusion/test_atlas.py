import logging
import subprocess

import numpy as np
import pytest
import torch
import trimesh

from nova3d.errors import InputError
from nova3d.fusion import atlas as atlases
from nova3d.fusion import reconstruct
from nova3d.fusion.atlas import unwrap
from nova3d.rendering.raster import nearest_faces
from nova3d.utils import compat


def spring() -> trimesh.Trimesh:
    """A coil whose turns lie above each other: seen along its axis a connected ribbon covers itself twice over."""
    t = np.linspace(0, 6 * np.pi, 241)
    rail = [np.stack([r * np.cos(t), 0.03 * t, r * np.sin(t)], axis=1) for r in (0.2, 0.4)]
    n = len(t)
    i = np.arange(n - 1)
    faces = np.concatenate([np.stack([i, i + n, i + 1], 1), np.stack([i + 1, i + n, i + n + 1], 1)])
    return trimesh.Trimesh(np.concatenate(rail), faces, process=False)


def signed_areas(atlas: atlases.Atlas) -> np.ndarray:
    a, b, c = np.moveaxis(atlas.uv[atlas.faces], 1, 0)
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def drawn_twice(atlas: atlases.Atlas, size: int) -> int:
    """Texels where the first face drawn is not the last one, but for shared edges."""
    corners = torch.from_numpy(atlas.uv[atlas.faces] * size)
    shrunk = corners + 1e-4 * (corners.mean(dim=1, keepdim=True) - corners)
    rank = torch.arange(len(corners))[:, None].expand(-1, 3).double()
    first, last = (nearest_faces(shrunk, z, size, size, False) for z in (1 + rank, len(rank) + 1 - rank))
    return int((first != last).sum())


def solids() -> dict[str, trimesh.Trimesh]:
    knot = trimesh.creation.torus(0.3, 0.08, 48, 24)
    rough = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    rough.vertices += np.random.default_rng(0).normal(scale=0.004, size=rough.vertices.shape)
    return {"box": trimesh.creation.box((0.5, 0.9, 0.2)), "torus": knot, "rough": rough, "spring": spring()}


@pytest.mark.parametrize("name", ["box", "torus", "rough", "spring"])
def test_projected_charts_are_whole_upright_and_apart(name):
    mesh = solids()[name]
    atlas = unwrap(mesh, 256)
    np.testing.assert_array_equal(atlas.source[atlas.faces], mesh.faces)
    assert atlas.kind == "projected"
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1
    areas = signed_areas(atlas)
    assert (areas > 0).all()  # none mirrored, none folded
    density = np.sqrt(areas / mesh.area_faces)
    assert density.min() > 0.5 * density.max()  # texels are spread evenly: at most cos 70 degrees one way
    assert drawn_twice(atlas, 256) == 0
    assert areas.sum() > 0.15
    expected = {"box": 6, "torus": 40, "rough": 100, "spring": 40}[name]
    assert (6 if name == "box" else 2) <= atlas.charts <= expected


def test_margins_keep_charts_apart():
    mesh = trimesh.creation.box()
    atlas = unwrap(mesh, 512)
    chart = atlases.project_charts(mesh, 512, 2)[1]
    boxes = [atlas.uv[atlas.faces[chart == c]].reshape(-1, 2) * 512 for c in range(6)]
    for i, a in enumerate(boxes):
        assert a.min() >= 1.99
        for b in boxes[:i]:
            gap = np.maximum(a.min(axis=0) - b.max(axis=0), b.min(axis=0) - a.max(axis=0)).max()
            assert gap >= 3.99


def test_a_texture_too_small_for_its_charts_still_gets_them():
    boxes = [trimesh.creation.box((0.02,) * 3, trimesh.transformations.translation_matrix(p)) for p in
             np.random.default_rng(0).uniform(-0.4, 0.4, (60, 3))]  # fmt: skip
    atlas = unwrap(trimesh.util.concatenate(boxes), 16)
    assert atlas.charts == 360
    assert (signed_areas(atlas) > 0).all()
    assert drawn_twice(atlas, 512) == 0
    assert atlas.uv.max() <= 1


@pytest.mark.extras
def test_xatlas_runs_in_its_own_process():
    pytest.importorskip("xatlas")
    mesh = solids()["torus"]
    atlas = unwrap(mesh, 256, "xatlas")
    assert atlas.kind == "xatlas"
    assert atlas.charts > 1
    np.testing.assert_array_equal(atlas.source[atlas.faces], mesh.faces)
    assert drawn_twice(atlas, 256) == 0


@pytest.mark.extras
def test_xatlas_is_ended_in_time_and_replaced(caplog):
    pytest.importorskip("xatlas")
    mesh = trimesh.creation.icosphere(subdivisions=5)
    with caplog.at_level(logging.WARNING):
        atlas = unwrap(mesh, 64, "xatlas", seconds=0.05)
    assert atlas.kind == "projected"
    assert [r.message for r in caplog.records] == ["xatlas did not end within 0.05 s: atlas by projections"]


def test_xatlas_failing_is_logged_and_replaced(monkeypatch, caplog):
    def broken(*arguments, **options):
        raise subprocess.CalledProcessError(139, "xatlas")

    monkeypatch.setattr(compat, "has", lambda package: True)
    monkeypatch.setattr(subprocess, "run", broken)
    assert unwrap(trimesh.creation.box(), 64, "xatlas").kind == "projected"
    assert "139" in caplog.text


def test_an_unknown_atlas_is_refused():
    with pytest.raises(InputError, match="projected, xatlas"):
        unwrap(trimesh.creation.box(), kind="spherical")


def test_a_missing_xatlas_is_said_in_one_line_before_the_fit(shapes, f_views, monkeypatch):
    monkeypatch.setattr(compat, "has", lambda package: package != "xatlas")
    message = "texture.atlas 'xatlas' needs xatlas: pip install 'nova3d[xatlas]', or use projected"
    with pytest.raises(InputError) as refused:
        unwrap(trimesh.creation.box(), 64, "xatlas")
    assert str(refused.value) == message
    with monkeypatch.context() as patch, pytest.raises(InputError) as early:
        patch.setattr("nova3d.fusion.reconstruction.fit", None)
        reconstruct(f_views, shapes.short_config(texture={"atlas": "xatlas"}))
    assert str(early.value) == message
