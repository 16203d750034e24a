import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
from nova3d.fusion.config import HullConfig
from nova3d.fusion.optimize import fit, open_levels
from nova3d.fusion.sampling import visual_hull
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
    ply = trimesh.load(f_result.save(tmp_path / "f.ply"))
    assert ply.is_watertight
    with pytest.raises(InputError, match="must end"):
        f_result.save(tmp_path / "f.stl")


def short(shapes, **sections) -> FusionConfig:
    config = shapes.tiny_config()
    config.optim.steps, config.hull.fit_steps = 12, 20
    config.extract.resolution, config.extract.faces, config.texture.size = 32, 300, 32
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


def test_same_seed_same_mesh(shapes, f_views):
    first, second = (reconstruct(f_views, short(shapes)) for _ in range(2))
    np.testing.assert_array_equal(first.mesh.vertices, second.mesh.vertices)
    np.testing.assert_array_equal(first.mesh.faces, second.mesh.faces)
    other = reconstruct(f_views, short(shapes, optim={"seed": 1}))
    assert not np.array_equal(first.mesh.vertices, other.mesh.vertices)


@pytest.mark.parametrize(
    "sections",
    [
        {"conflict": {"enabled": False}, "pose": {"enabled": False}},
        {"field": {"init": "sphere"}, "texture": {"mode": "vertex"}},
        {"conflict": {"start": 0.0, "detach": False}, "pose": {"start": 0.0, "normals_follow": True}},
    ],
)
def test_every_switch_runs(shapes, f_views, sections, tmp_path):
    result = reconstruct(f_views, short(shapes, **sections))
    assert len(result.mesh.faces) > 0
    if not sections.get("conflict", {}).get("enabled", True):
        assert float(result.conflict.abs().max()) == 0
        torch.testing.assert_close(result.cameras.c2w, f_views.cameras.c2w)
    assert result.save(tmp_path / "x.glb").stat().st_size > 0


@pytest.mark.parametrize(("count", "tallest"), [(1, 1.2), (3, 0.95)])
def test_any_number_of_perspective_views(shapes, count, tallest):
    views = shapes.draw(shapes.sphere(), orbit(count, 15.0, 32, "perspective", radius=2.2))
    result = reconstruct(views, short(shapes, optim={"steps": 40}, hull={"fit_steps": 60}))
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
    config = short(shapes, hull={"tolerance": 0.15})
    config.optim.steps = 40
    result = reconstruct(broken, config)
    assert result.report["components"] == 1
    assert result.report["volume"] > 0.03


def test_empty_views_are_refused_and_one_empty_view_is_left_out(shapes, f_views, caplog):
    empty = replace(f_views, mask=torch.zeros_like(f_views.mask))
    with pytest.raises(InputError, match="no object"):
        reconstruct(empty, short(shapes))
    mask = f_views.mask.clone()
    mask[3] = 0
    hull = visual_hull(replace(f_views, mask=mask), HullConfig(resolution=32), 0.6)
    assert "[3]" in caplog.text
    assert bool((hull.distance < 0).any())


def test_contradicting_masks_are_refused(shapes, f_views):
    half = f_views.mask.shape[1] // 2
    mask = torch.zeros_like(f_views.mask)
    mask[0, : half - 4], mask[1:, half + 4 :] = 1.0, 1.0
    with pytest.raises(InputError, match="no common object"):
        reconstruct(replace(f_views, mask=mask), short(shapes))


def test_hull_of_a_sphere_has_its_distance(shapes):
    views = shapes.draw(shapes.sphere(), orbit(16, size=64))
    hull = visual_hull(views, HullConfig(resolution=49), 0.6)
    x = torch.tensor([[0.0, 0, 0.5], [0.45, 0, 0], [0.0, 0, 0]])
    torch.testing.assert_close(hull.signed(x), torch.tensor([0.15, 0.1, -0.35]), atol=0.03, rtol=0)


def test_levels_open_over_the_run():
    config = FusionConfig()
    assert open_levels(0.0, config) == config.encoding.start_levels
    assert open_levels(config.encoding.open_until, config) == open_levels(1.0, config) == config.encoding.levels


def test_progress_runs_to_one_and_can_stop_the_run(shapes, f_views):
    shares, messages = [], []
    reconstruct(f_views, short(shapes), progress=lambda share, text: (shares.append(share), messages.append(text)))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert "loss" in messages[0]
    assert "left" in messages[0]

    def stop(share: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(f_views, short(shapes), progress=stop)


def test_perturbed_poses_are_found_again(shapes):
    cameras = orbit(8, size=64)
    views = shapes.draw(shapes.letter_f(), cameras)
    turn = torch.zeros(8, 3)
    turn[1:, 1] = torch.tensor([1.0, -1, 1, -1, 1, -1, 1]) * np.radians(4)
    from nova3d.fusion.poses import rotation_matrix

    wrong = cameras.c2w.clone()
    wrong[:, :3] = rotation_matrix(turn) @ wrong[:, :3]
    config = shapes.tiny_config()
    config.optim.steps, config.encoding.levels, config.encoding.finest = 200, 3, 24
    config.encoding.start_levels = 3.0
    config.pose.lr, config.pose.start, config.pose.stop = 3e-3, 0.02, 1.0
    config.hull.dilate, config.conflict.enabled = 0.05, False
    state, _ = fit(replace(views, cameras=replace(cameras, c2w=wrong)), config)
    relative = state.cameras.c2w[1:, :3, :3] @ cameras.c2w[1:, :3, :3].mT
    cosine = ((torch.diagonal(relative, dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1)
    assert torch.rad2deg(cosine.acos()).mean() < 2.0  # from 4 degrees
    assert bool((state.cameras.c2w[0] == cameras.c2w[0]).all())


def test_planted_conflict_is_found(shapes):
    views = shapes.draw(shapes.sphere(), orbit(8, size=48))
    rgb = views.rgb.clone()
    rgb[2, 18:30, 18:30] = torch.tensor([1.0, 0.0, 1.0])
    config = shapes.tiny_config()
    config.optim.steps, config.conflict.start, config.optim.lr_mlp = 250, 0.2, 3e-3
    config.pose.enabled = False
    state, _ = fit(replace(views, rgb=rgb), config)
    from nova3d.fusion.reconstruction import conflict_maps

    h = conflict_maps(state, shapes.sphere(), views.cameras)
    planted = torch.zeros_like(views.mask, dtype=torch.bool)
    planted[2, 18:30, 18:30] = True
    clean = (views.mask > 0.9) & ~planted
    assert h[planted].mean() > 3 * h[clean].mean()
    assert h[clean].mean() < 0.3


@pytest.mark.parametrize("name", ["draft", "cpu", "paper"])
def test_presets_load(name):
    config = configs.load(FusionConfig, ROOT / f"configs/fusion/{name}.yaml")
    assert config.optim.steps >= 100


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts/reconstruct.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_script_writes_everything_and_says_where(f_views, tmp_path):
    f_views.save(tmp_path / "views")
    out = tmp_path / "new" / "f.glb"
    small = ["optim.steps=10", "hull.resolution=32", "hull.fit_steps=20", "extract.resolution=32", "texture.size=32"]
    small += ["extract.faces=300", "sampling.rays=64", "--device", "cpu"]
    done = run_script("--views", str(tmp_path / "views"), "--out", str(out), *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert "component" in done.stdout
    folder = tmp_path / "new" / "f_fusion"
    assert len(list((folder / "conflict").iterdir())) == 8
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 8
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["optim"]["steps"] == 10
    assert record["report"]["components"] == 1


@pytest.mark.parametrize(
    ("views", "out", "word"),
    [("missing", "x.glb", "does not exist"), ("views", "x.stl", "must end"), ("views", "file/x.glb", "cannot write")],
)
def test_script_refuses_bad_input_in_one_line(f_views, tmp_path, views, out, word):
    f_views.save(tmp_path / "views")
    (tmp_path / "file").write_text("")
    done = run_script("--views", str(tmp_path / views), "--out", str(tmp_path / out))
    assert done.returncode == 2
    assert word in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
