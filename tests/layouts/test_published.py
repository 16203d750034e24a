"""Each published layout, written here from true renders by its own conventions, must come back as the truth."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.views import ViewSet

from .foreign import ASSETS, coloured, rgba, same_cameras, save, uint8

Truth = Callable[..., ViewSet]
Compare = Callable[..., float]
Angle = Callable[[Tensor, Tensor], Tensor]

# World to camera, OpenGL camera axes, as published beside Wonder3D (fixed_poses/000_<view>_RT.txt), rounded. Its
# world is Blender's: +Z up, the front camera on -Y.
H = math.sqrt(0.5)
WONDER3D = {
    "front": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "front_right": [[H, H, 0], [0, 0, 1], [H, -H, 0]],
    "right": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "back": [[-1, 0, 0], [0, 0, 1], [0, 1, 0]],
    "left": [[0, -1, 0], [0, 0, 1], [-1, 0, 0]],
    "front_left": [[H, -H, 0], [0, 0, 1], [-H, -H, 0]],
}
ERA3D_MORE = {"back_right": [[-H, H, 0], [0, 0, 1], [H, H, 0]], "back_left": [[-H, -H, 0], [0, 0, 1], [-H, H, 0]]}
TO_OURS = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # Blender's world to ours


def published_azimuth(w2c: list[list[float]]) -> float:
    """Where the published camera stands in our frame: its back axis, turned to +Y up."""
    back = TO_OURS @ np.array(w2c, dtype=float).T[:, 2]
    return math.degrees(math.atan2(back[0], back[2])) % 360


def inside(views: ViewSet) -> Tensor:
    return (views.mask > 0.99) & (views.normals.norm(dim=-1) > 0.5)


def six(truth: Truth, span: float, names: tuple[str, ...], size: int = 48) -> ViewSet:
    every = {**WONDER3D, **ERA3D_MORE}
    return truth([(published_azimuth(every[n]), 0.0) for n in names], size, 1.3, size / span, "orthographic")


def write_wonder3d(folder: Path, views: ViewSet, names: tuple[str, ...]) -> None:
    front = torch.tensor(WONDER3D["front"], dtype=torch.float32)
    back_to_theirs = torch.from_numpy(TO_OURS.T.copy()).float()
    for i, name in enumerate(names):
        # World normals of Blender's frame, seen from the front camera, OpenGL axes.
        seen = views.normals[i] @ back_to_theirs.T @ front.T
        alpha = views.mask[i][..., None]
        save(folder / f"normals_000_{name}.png", torch.cat([coloured(seen), alpha], dim=-1))
        save(folder / f"rgb_000_{name}.png", views.rgb[i])
        save(folder / f"masked_colors/rgb_000_{name}.png", rgba(views, i))
        save(folder / f"normals/normals_000_{name}.png", coloured(seen))


def test_the_published_poses_are_where_the_names_say() -> None:
    got = {name: round(published_azimuth(w2c)) for name, w2c in {**WONDER3D, **ERA3D_MORE}.items()}
    assert got == layouts.published.AZIMUTHS


@pytest.mark.parametrize("count", [4, 6])
def test_wonder3d(tmp_path: Path, truth: Truth, hull_iou: Compare, angle_deg: Angle, count: int) -> None:
    names = layouts.published.RIGS[count]
    views = six(truth, 1.35, names)
    write_wonder3d(tmp_path, views, names)
    assert layouts.detect(tmp_path) == "wonder3d"
    got = layouts.read(tmp_path)
    same_cameras(got, views)
    assert (got.mask - views.mask).abs().max() < 0.5 / 255 + 1e-6
    assert (got.rgb - views.rgb).abs().max() < 1.5 / 255  # on white already: soft edges are not whitened twice
    assert angle_deg(got.normals, views.normals)[inside(views)].max() < 1.0
    assert (got.normals[got.mask == 0] == 0).all()
    assert hull_iou(got, views) > 0.98
    mirrored = ViewSet(views.rgb, views.normals, views.mask.flip(2), views.cameras)
    assert hull_iou(got, mirrored) < 0.8  # the check itself tells left from right


def test_wonder3d_without_normals_reads_the_masked_colours(tmp_path: Path, truth: Truth) -> None:
    names = layouts.published.RIGS[6]
    views = six(truth, 1.35, names)
    write_wonder3d(tmp_path, views, names)
    for path in tmp_path.glob("normals_000_*"):
        path.unlink()
    got = layouts.read(tmp_path)
    assert not got.has_normals
    assert (got.mask - views.mask).abs().max() < 0.5 / 255 + 1e-6


def test_wonder3d_missing_views_are_named(tmp_path: Path, truth: Truth) -> None:
    names = layouts.published.RIGS[6]
    write_wonder3d(tmp_path, six(truth, 1.35, names), names)
    (tmp_path / "normals_000_back.png").unlink()
    with pytest.raises(InputError, match=r"incomplete: normals_000_back\.png missing"):
        layouts.read(tmp_path)
    (tmp_path / "rgb_000_left.png").unlink()
    with pytest.raises(InputError, match=r"rgb_000_left\.png missing"):
        layouts.read(tmp_path)


def test_an_input_azimuth_turns_cameras_and_normals_together(tmp_path: Path, truth: Truth, angle_deg: Angle) -> None:
    names = layouts.published.RIGS[6]
    views = six(truth, 1.35, names)
    write_wonder3d(tmp_path, views, names)
    got = layouts.read(tmp_path, assume=layouts.Assume(azimuth_deg=30))
    assert math.degrees(got.cameras.azimuth_elevation()[0, 0]) == pytest.approx(30, abs=1e-3)
    back = got.rotated_to(0)
    same_cameras(back, views)
    assert angle_deg(back.normals, views.normals)[inside(views)].max() < 1.0


@pytest.mark.parametrize("count", [4, 6, 8])
def test_era3d(tmp_path: Path, truth: Truth, hull_iou: Compare, angle_deg: Angle, count: int) -> None:
    names = layouts.published.RIGS[count]
    views = six(truth, 1.0, names)
    for i, name in enumerate(names):
        alpha = views.mask[i][..., None]
        save(tmp_path / f"normals_{name}_masked.png", torch.cat([coloured(views.normals[i]), alpha], dim=-1))
        save(tmp_path / f"color_{name}_masked.png", rgba(views, i))
    assert layouts.detect(tmp_path) == "era3d"
    got = layouts.read(tmp_path)
    same_cameras(got, views)
    assert angle_deg(got.normals, views.normals)[inside(views)].max() < 1.0
    assert hull_iou(got, views) > 0.98


def test_era3d_side_by_side(tmp_path: Path, truth: Truth, hull_iou: Compare, angle_deg: Angle) -> None:
    names = layouts.published.RIGS[6]
    views = six(truth, 1.25, names)  # at its own span of 1 the llama touches the border, which cannot be keyed
    row = [views.rgb[0]]
    for i in range(6):
        row += [views.rgb[i], coloured(views.normals[i])]
    save(tmp_path / "llama.png", torch.cat(row, dim=1))
    assert layouts.detect(tmp_path) == "era3d"
    got = layouts.read(tmp_path, assume=layouts.Assume(span=1.25))
    same_cameras(got, views)
    assert hull_iou(got, views, keyed=True) > 0.97
    assert angle_deg(got.normals, views.normals)[inside(views)].max() < 1.0  # not the colours, and in order
    with pytest.raises(InputError, match="sample 1 does not exist"):
        layouts.read(tmp_path, assume=layouts.Assume(sample=1))


def write_envision3d(root: Path, views: ViewSet) -> Path:
    first, second = root / "s1_val_out/llama", root / "s2_val_out/llama"
    for k in range(32):
        if k % 4 == 0:
            save(first / f"rgb{k}.png", views.rgb[k])
            save(first / f"masked_rgb/rgb{k}.png", rgba(views, k))
            # X to the front, Y to the right, Z up: ours is right, up, front.
            stored = views.normals[k][..., [2, 0, 1]]
            save(first / f"normal{k}.png", torch.cat([coloured(stored), views.mask[k][..., None]], dim=-1))
        else:
            save(second / f"rgb{k}.png", views.rgb[k])
            save(second / f"s2_masked_rgb/rgb{k}.png", rgba(views, k))
    return first


def test_envision3d(tmp_path: Path, truth: Truth, hull_iou: Compare, angle_deg: Angle) -> None:
    # camera_poses/<k>.txt: x = 1.5 cos, y = 1.5 sin of 11.25 k, +Z up, looking at the origin; view 0 is on +X, and
    # +Y is to its right.
    views = truth([(11.25 * k, 0.0) for k in range(32)], 48, 1.5, 1422.4 / 1024 * 48)
    first = write_envision3d(tmp_path, views)
    assert layouts.detect(first) == "envision3d"
    got = layouts.read(first)
    same_cameras(got, views)
    anchors = list(range(0, 32, 4))
    known = inside(views)[anchors]
    assert angle_deg(got.normals[anchors], views.normals[anchors])[known].max() < 1.0
    assert (got.normals[1] == 0).all()
    assert hull_iou(got, views) > 0.97
    (tmp_path / "s2_val_out/llama/rgb7.png").unlink()
    with pytest.raises(InputError, match=r"rgb7\.png missing"):
        layouts.read(first)
    (tmp_path / "s2_val_out").rename(tmp_path / "elsewhere")
    assert len(layouts.read(first)) == 8


def test_syncdreamer_on_published_silhouettes(
    tmp_path: Path, share_in_hull: Callable[[ViewSet, trimesh.Trimesh], float]
) -> None:
    """The 16 published GSO-30 silhouettes of one object, side by side, must carve that object's mesh."""
    sheet = np.asarray(Image.open(ASSETS / "gso30-sample/alpha.png"))
    parts = [sheet[256 * r : 256 * r + 256, 256 * c : 256 * c + 256] for r in range(4) for c in range(4)]
    strip = 255 - np.repeat(np.concatenate(parts, axis=1)[..., None], 3, axis=-1)  # dark on white
    Image.fromarray(strip).save(tmp_path / "0.png")
    assert layouts.detect(tmp_path) == "syncdreamer"
    got = layouts.read(tmp_path, size=128)
    assert (got.cameras.width, len(got)) == (128, 16)
    mesh = trimesh.load(ASSETS / "gso30-sample/mesh.glb", force="mesh")
    published = json.loads((ASSETS / "gso30-sample/cameras.json").read_text())
    w2c = np.array(published["w2c"])
    # The mesh stands in the frame of cameras.json, whose first camera is not at our azimuth 0: turn it there.
    first = -w2c[0, :, :3].T @ w2c[0, :, 3]
    yaw = trimesh.transformations.rotation_matrix(-math.atan2(first[0], first[2]), [0, 1, 0])
    assert share_in_hull(got, mesh.copy().apply_transform(yaw)) > 0.97
    assert share_in_hull(got, mesh) < 0.9  # not true of the mesh as it stands
    centres = np.stack([-m[:, :3].T @ m[:, 3] for m in w2c]) @ yaw[:3, :3].T
    np.testing.assert_allclose(got.cameras.c2w[:, :3, 3].numpy(), centres, atol=1e-4)
    assert got.cameras.intrinsics[0, 0] == pytest.approx(published["K"][0][0] / 2, abs=1e-3)


def test_syncdreamer_samples(tmp_path: Path, truth: Truth, caplog: pytest.LogCaptureFixture) -> None:
    views = truth([(22.5 * k, 30.0) for k in range(16)], 32, 1.5, 280 / 256 * 32)
    for sample in (0, 2, 10):
        save(tmp_path / f"{sample}.png", torch.cat(list(views.rgb * (1 - 0.01 * sample)), dim=1))
    with caplog.at_level(logging.INFO):
        got = layouts.read(tmp_path, assume=layouts.Assume(sample=2))
    assert got.rgb[0, 0, 0, 0] == 1  # background, whatever its grey was
    assert "3 samples, number 2 is read: 10.png" in caplog.text
    assert "plain background is keyed out" in caplog.text
    same_cameras(got, views)


def orbit21(truth: Truth) -> ViewSet:
    return truth([(360 / 21 * k, 0.0) for k in range(21)], 32, 2.0, 16 / math.tan(math.radians(33.8 / 2)))


def test_sv3d_frames(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    views = orbit21(truth)
    for k in range(21):  # frame k is at azimuth 360 (k + 1) / 21: the input view comes last
        save(tmp_path / f"{k}.png", views.rgb[(k + 1) % 21])
    assert layouts.detect(tmp_path) == "sv3d"
    got = layouts.read(tmp_path)
    same_cameras(got, views)
    assert (got.rgb[0] - views.rgb[0]).abs().mean() < 0.01
    assert hull_iou(got, views, keyed=True) > 0.97
    up = layouts.read(tmp_path, assume=layouts.Assume(elevation_deg=10))
    assert math.degrees(up.cameras.azimuth_elevation()[0, 1]) == pytest.approx(10, abs=1e-3)


def test_sv3d_gif(tmp_path: Path, truth: Truth) -> None:
    views = orbit21(truth)
    frames = [Image.fromarray(uint8(views.rgb[(k + 1) % 21])) for k in range(21)]
    frames[0].save(tmp_path / "000000.gif", save_all=True, append_images=frames[1:], duration=100)
    assert layouts.detect(tmp_path) == "sv3d"
    got = layouts.read(tmp_path)
    assert (got.rgb - views.rgb).abs().mean() < 0.02


def test_v3d_frames(tmp_path: Path, truth: Truth, hull_iou: Compare) -> None:
    # get_uniform_poses: x = 2 cos, y = 2 sin of 360 k / 18, +Z up; +Y is to the right of the first camera.
    views = truth([(20.0 * k, 0.0) for k in range(18)], 32, 2.0, 16 / math.tan(math.radians(30)))
    for k in range(18):
        save(tmp_path / f"{k:02d}.png", views.rgb[k])
    assert layouts.detect(tmp_path) == "v3d"
    got = layouts.read(tmp_path)
    same_cameras(got, views)
    assert hull_iou(got, views, keyed=True) > 0.97
