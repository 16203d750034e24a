from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from nova3d import config as configs
from nova3d.cameras import orbit
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.fusion import FusionConfig, reconstruct
from nova3d.fusion.optimize import open_levels
from nova3d.views import ViewSet

ROOT = Path(__file__).resolve().parents[2]


def chamfer(a: trimesh.Trimesh, b: trimesh.Trimesh) -> float:
    p, q = (trimesh.sample.sample_surface(m, 5000, seed=0)[0] for m in (a, b))
    return float((cKDTree(p).query(q)[0].mean() + cKDTree(q).query(p)[0].mean()) / 2)


def test_letter_f_comes_out_whole_closed_and_not_mirrored(shapes, f_result):
    report = f_result.report
    assert report["components"] == 1
    assert report["watertight"]
    assert report["volume"] > 0
    true = chamfer(f_result.solid, shapes.letter_f())
    for axis in range(3):
        mirrored = shapes.letter_f()
        mirrored.vertices[:, axis] *= -1
        if axis != 2:  # the F is symmetric front to back
            assert chamfer(f_result.solid, mirrored) > 2 * true
    assert true < 0.025  # a pixel is 0.031


def test_letter_f_keeps_its_colours_through_glb(f_result, f_views, tmp_path):
    path = f_result.save(tmp_path / "f.glb")
    again = render_object(path, f_views.cameras, light="flat", normalise=False)
    both = (again.mask > 0.9) & (f_views.mask > 0.9)
    assert (again.mask - f_views.mask).abs().mean() < 0.03
    assert (again.rgb - f_views.rgb)[both].abs().mean() < 0.06
    front = again.rgb[0][both[0]].mean(dim=0)
    assert front[0] > 2 * front[2]  # red in front, blue behind
    facing = (again.normals * f_views.normals).sum(-1)[both]
    assert facing.mean() > 0.85


def test_result_is_complete(f_result, f_views, tmp_path):
    assert f_result.conflict.shape == f_views.mask.shape
    assert bool(((f_result.conflict >= 0) & (f_result.conflict <= 1)).all())
    assert len(f_result.cameras) == len(f_views)
    assert f_result.history[-1]["loss"] < f_result.history[0]["loss"]
    assert set(f_result.timings) == {"fit", "mesh", "conflict", "texture"}
    assert 0 < f_result.report["unseen_share"] < 0.6
    ply: Any = trimesh.load(f_result.save(tmp_path / "f.ply"))
    assert ply.is_watertight
    stl: Any = trimesh.load(f_result.save(tmp_path / "f.stl"))
    assert stl.is_watertight and len(stl.faces) == len(ply.faces)
    np.testing.assert_allclose(stl.bounds, ply.bounds, atol=1e-6)
    with pytest.raises(InputError, match="must end"):
        f_result.save(tmp_path / "f.step")


def test_same_seed_same_mesh(shapes, f_views, short_result):
    second = reconstruct(f_views, shapes.short_config())
    np.testing.assert_array_equal(short_result.mesh.vertices, second.mesh.vertices)
    np.testing.assert_array_equal(short_result.mesh.faces, second.mesh.faces)
    other = reconstruct(f_views, shapes.short_config(optim={"seed": 1}))
    assert not np.array_equal(short_result.mesh.vertices, other.mesh.vertices)


@pytest.mark.parametrize(
    "sections",
    [
        {"conflict": {"mode": "none"}, "pose": {"enabled": False}},
        {"field": {"init": "sphere"}, "texture": {"mode": "vertex"}},
        {"conflict": {"start": 0.0, "detach": False}, "pose": {"start": 0.0, "normals_follow": True}},
        {"conflict": {"mode": "trimmed"}, "encoding": {"backend": "torch"}, "field": {"normals": "tetrahedral"}},
        {"conflict": {"mode": "closed_form"}, "loss": {"normal": [0.0, 1.0, 0.2, 1.0], "normal_keep": 0.8}},
    ],
)
def test_every_switch_runs(shapes, f_views, sections, tmp_path):
    result = reconstruct(f_views, shapes.short_config(**sections))
    assert len(result.mesh.faces) > 0
    if sections.get("conflict", {}).get("mode") == "none":
        assert float(result.conflict.abs().max()) == 0
        torch.testing.assert_close(result.cameras.c2w, f_views.cameras.c2w)
    assert result.save(tmp_path / "x.glb").stat().st_size > 0


@pytest.mark.parametrize(("count", "tallest"), [(3, 0.95), (6, 0.85)])
def test_any_number_of_perspective_views(shapes, count, tallest):
    views = shapes.draw(shapes.sphere(), orbit(count, 15.0, 32, "perspective", radius=2.2))
    result = reconstruct(views, shapes.short_config(optim={"steps": 40}, hull={"fit_steps": 60}))
    assert result.report["components"] == 1
    extent = result.solid.bounds[1] - result.solid.bounds[0]
    assert 0.5 < extent[1] < tallest  # 0.7, loosely: few views leave the hull wide


def test_survives_blurry_contradicting_views(shapes):
    views = shapes.draw(shapes.letter_f(), orbit(8, size=48))
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randint(-3, 4, (8, 2), generator=generator).tolist()
    rolled = [
        torch.stack([torch.roll(image, tuple(s), (0, 1)) for image, s in zip(images, shifts, strict=True)])
        for images in (views.rgb, views.normals, views.mask)
    ]
    noise = torch.rand(rolled[2].shape, generator=generator) * 0.6
    broken = ViewSet(rolled[0], rolled[1], (rolled[2] - noise).clamp(0, 1), views.cameras)
    result = reconstruct(broken, shapes.short_config(hull={"tolerance": 0.15}, optim={"steps": 40}))
    assert result.report["components"] == 1
    assert result.report["volume"] > 0.03


def test_levels_open_over_the_run():
    config = FusionConfig()
    assert open_levels(0.0, config) == config.encoding.start_levels
    assert open_levels(config.encoding.open_until, config) == open_levels(1.0, config) == config.encoding.levels


def test_progress_runs_to_one_and_can_stop_the_run(shapes, f_views):
    shares, messages = [], []

    def progress(done: int, total: int, stage: str) -> None:
        shares.append(done / total)
        messages.append(stage)

    reconstruct(f_views, shapes.short_config(), progress=progress)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert messages[0].startswith("fitting, step 1/") and "loss" in messages[0]

    def stop(done: int, total: int, stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(f_views, shapes.short_config(), progress=stop)


@pytest.mark.parametrize("name", ["draft", "cpu", "paper"])
def test_presets_load(name):
    config = configs.load(FusionConfig, ROOT / f"configs/fusion/{name}.yaml")
    assert config.optim.steps >= 100


def texture_of(mesh: Any) -> np.ndarray:
    return np.asarray(mesh.visual.material.baseColorTexture)


def test_trust_that_tells_no_view_apart_changes_nothing(shapes, f_views, short_result):
    plain = short_result
    every = replace(f_views, trusted=(True,) * len(f_views))
    detail = replace(shapes.draw(shapes.letter_f(), orbit(8, size=96)[[0]]), trusted=(True,))
    trusted = reconstruct(every, shapes.short_config(), detail=detail)
    assert np.array_equal(plain.mesh.vertices, trusted.mesh.vertices)
    assert np.array_equal(texture_of(plain.mesh), texture_of(trusted.mesh))
    assert plain.report.keys() == trusted.report.keys()


def test_a_trusted_view_paints_the_front_at_its_own_resolution(shapes, f_views):
    dark = f_views.rgb * 0.6 + 0.4 * (1 - f_views.mask[..., None])
    views = replace(f_views, rgb=torch.cat([f_views.rgb[:1], dark[1:]]), trusted=(True,) + (False,) * 7)
    detail = replace(shapes.draw(shapes.letter_f(), orbit(8, size=192)[[0]]), trusted=(True,))
    result = reconstruct(views, shapes.short_config(texture={"size": 64}), detail=detail)
    assert max(texture_of(result.mesh).shape) > 64
    assert 0.15 < result.report["trusted_share"] < 0.5 and result.report["mirrored_share"] == 0
    again = shapes.draw(result.mesh, detail.cameras)
    inside = (again.mask[0] > 0.99) & (detail.mask[0] > 0.99)
    # The front is red of one level. The other views show it at 0.6 of that.
    assert float((again.rgb - detail.rgb)[0][inside].abs().median()) < 0.01
    back = shapes.draw(result.mesh, f_views.cameras[[4]]).rgb[0][f_views.mask[4] > 0.99]
    found = back.median(dim=0).values
    assert float(found[2]) > 0.45 and float(found[2]) > 2 * float(
        found[:2].max()
    )  # blue as before, though the front says nothing of blue


def test_a_folder_in_the_place_of_views_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"views must be a ViewSet, got str: ViewSet\.load\(FOLDER\)"):
        reconstruct("views")  # type: ignore[arg-type]
