"""Detection, our own folders, the placement of an object, and what fusion refuses."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from nova3d import cameras as rigs
from nova3d import layouts
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.layouts import Assume, check_for_fusion, normalise
from nova3d.views import ViewSet

from .foreign import save

Make = Callable[..., ViewSet]
Truth = Callable[..., ViewSet]

RING = [(45.0 * k, 0.0) for k in range(8)]
SPHERE = [(72.0 * k, (-1) ** k * 25.0) for k in range(5)]


def test_our_own_folder_passes_unchanged(tmp_path: Path, truth: Truth) -> None:
    truth(RING, 48, 1.5, 48 / 1.5, "orthographic").save(tmp_path)
    ours = ViewSet.load(tmp_path)
    assert layouts.detect(tmp_path) == "nova3d"
    loaded = layouts.load(tmp_path)
    for name in ("rgb", "normals", "mask"):
        assert torch.equal(getattr(loaded.views, name), getattr(ours, name))
    assert torch.equal(loaded.views.cameras.c2w, ours.cameras.c2w)
    assert torch.equal(loaded.views.cameras.intrinsics, ours.cameras.intrinsics)
    assert loaded.placement.is_identity
    placed, placement = normalise(loaded.views)
    assert placed is loaded.views
    assert placement.is_identity
    with pytest.raises(InputError, match="nothing may be assumed"):
        layouts.read(tmp_path, assume=Assume(span=2))


def test_our_own_folder_at_another_size(tmp_path: Path, truth: Truth, angle_deg: Callable) -> None:
    large, small = (truth(RING, s, 1.5, s / 1.5, "orthographic") for s in (48, 24))
    large.save(tmp_path)
    got = layouts.read(tmp_path, size=24)
    torch.testing.assert_close(got.cameras.intrinsics, small.cameras.intrinsics)
    assert (got.mask - small.mask).abs().mean() < 0.03
    sure = (small.mask == 1) & (got.normals.norm(dim=-1) > 0.5) & (small.normals.norm(dim=-1) > 0.5)
    assert angle_deg(got.normals, small.normals)[sure].median() < 10  # a llama on 24 pixels
    lengths = got.normals.norm(dim=-1)
    assert ((lengths < 1e-6) | ((lengths - 1).abs() < 1e-5)).all()
    with pytest.raises(InputError, match="size must be positive"):
        layouts.read(tmp_path, size=0)


def test_views_without_normals_survive_our_folder(tmp_path: Path, make_views: Make) -> None:
    bare = replace(make_views(), normals=torch.zeros(4, 24, 24, 3))
    assert not bare.has_normals
    back = layouts.read(bare.save(tmp_path))
    assert not back.has_normals
    assert torch.equal(back.mask, bare.mask)


def test_an_orthographic_file_without_normals_is_in_our_frame(tmp_path: Path, make_views: Make) -> None:
    import json
    import shutil

    views = make_views()
    views.save(tmp_path)
    shutil.rmtree(tmp_path / "normal")
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    for frame in transforms["frames"]:
        del frame["normal_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(transforms))
    assert layouts.detect(tmp_path) == "transforms"
    got = layouts.read(tmp_path)
    assert torch.equal(got.cameras.c2w, views.cameras.c2w)
    assert torch.equal(got.cameras.intrinsics, views.cameras.intrinsics)
    assert got.cameras.model == "orthographic"


def test_folders_that_are_nothing(tmp_path: Path) -> None:
    for call in (layouts.detect, layouts.read):
        with pytest.raises(InputError, match=r"none' does not exist"):
            call(tmp_path / "none")
        with pytest.raises(InputError, match="is empty"):
            call(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"none of the known layouts \(nova3d, transforms, wonder3d"):
        layouts.read(tmp_path)
    with pytest.raises(InputError, match=r"layout 'wonder4d' is not one of auto, nova3d, "):
        layouts.read(tmp_path, "wonder4d")
    for name in layouts.LAYOUTS:
        with pytest.raises(InputError) as caught:
            layouts.read(tmp_path, name, assume=Assume(cameras="ortho8") if name == "frames" else None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assume", "message"),
    [
        (Assume(radius=-1), "radius must be positive"),
        (Assume(fov_deg=200), "fov_deg must be between"),
        (Assume(elevation_deg=math.nan), "elevation_deg must be a finite number"),
        (Assume(span=1.0), "'span' means nothing"),
        (Assume(cameras="ortho9"), "has 9 views, the folder has 21"),
        (Assume(cameras="persp21", radius=2), "either the preset"),
        (Assume(cameras="persp21x"), "camera preset 'persp21x'"),
    ],
)
def test_bad_assumptions(tmp_path: Path, assume: Assume, message: str) -> None:
    for k in range(21):
        save(tmp_path / f"{k}.png", torch.ones(8, 8, 3))
    with pytest.raises(InputError, match=message):
        layouts.read(tmp_path, assume=assume)


def placed(views: ViewSet, scale: float, shift: torch.Tensor) -> ViewSet:
    """The same pictures of an object that is `scale` larger and moved by `shift`, seen by cameras that moved along."""
    c2w, intrinsics = views.cameras.c2w.clone(), views.cameras.intrinsics.clone()
    c2w[:, :3, 3] = scale * c2w[:, :3, 3] + shift
    if views.cameras.model == "orthographic":
        intrinsics[:, :2] /= scale
    return replace(views, cameras=replace(views.cameras, c2w=c2w, intrinsics=intrinsics))


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 30.0, 60.0])
def test_a_true_rig_of_one_height_is_left_alone(truth: Truth, elevation: float) -> None:
    """Seen from one height, an object's hull has cones that no view shows; they are not taken for the object."""
    views = truth([(22.5 * k, elevation) for k in range(16)], 48, 1.5, 48.0, flat=True)
    got, placement = normalise(views)
    assert got is views
    assert placement.is_identity
    moved, placement = normalise(placed(views, 3.0, torch.tensor([0.5, -4.0, 1.0])))
    assert 3 * placement.scale == pytest.approx(1, abs=0.12)
    truly = placement.apply(torch.tensor([[0.5, -4.0, 1.0]]))[0]
    assert truly[[0, 2]].abs().max() < 0.06
    assert truly[1].abs() < 0.15  # how low or high it is, the cones leave open
    check_for_fusion(moved)


@pytest.mark.parametrize(("scale", "poses"), [(4.0, RING), (0.05, SPHERE), (30.0, SPHERE)])
@pytest.mark.parametrize("model", ["perspective", "orthographic"])
def test_normalise_finds_the_object(
    truth: Truth, caplog: pytest.LogCaptureFixture, scale: float, poses: list, model: str
) -> None:
    focal = 70.0 if model == "perspective" else 40.0
    views = truth(poses, 48, 2.0, focal, model)
    shift = torch.tensor([0.7, -2.0, 1.3]) * scale
    with caplog.at_level(logging.INFO):
        got, placement = normalise(placed(views, scale, shift))
    assert "cameras moved so that it is 1 wide" in caplog.text
    # The object's longest side is 1 and it is centred; the hull and a grid's cell are a little larger than it.
    assert placement.scale * scale == pytest.approx(1, abs=0.07)
    corner = torch.tensor([[0.0, 0.0, 0.0]])
    assert placement.apply(corner * scale + shift).abs().max() < 0.05
    # Same pictures: a point of the source's world falls on the same pixels.
    points = torch.tensor([[0.2, 0.3, -0.4], [0.0, -0.5, 0.1]])
    pixels, _ = got.cameras.project(placement.apply(points * scale + shift))
    torch.testing.assert_close(pixels, views.cameras.project(points)[0], atol=5e-3, rtol=0)
    assert torch.equal(got.rgb, views.rgb)
    back = placement.mesh_to_source(trimesh.Trimesh(placement.apply(points).numpy(), process=False))
    torch.testing.assert_close(torch.tensor(back.vertices).float(), points, atol=1e-5, rtol=0)
    check_for_fusion(got)


def test_a_large_object_around_the_origin_is_not_taken_for_one_that_fits(truth: Truth) -> None:
    _, placement = normalise(placed(truth(RING, 48, 2.0, 40.0, "orthographic"), 1.5, torch.zeros(3)))
    assert 1.5 * placement.scale == pytest.approx(1, abs=0.07)


def test_an_object_cut_off_by_the_picture_is_told(truth: Truth, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        normalise(truth(RING, 48, 2.0, 150.0))
    assert "reaches the border of views 0, 1" in caplog.text
    caplog.clear()
    normalise(truth(RING, 48, 2.0, 70.0))
    assert not caplog.text


def test_a_placement_takes_the_mesh_back_to_its_source() -> None:
    matrix = torch.tensor([[0.0, 0, 2, 1], [0, 2, 0, 0], [-2, 0, 0, 3], [0, 0, 0, 1]], dtype=torch.float64)
    placement = layouts.Placement(matrix)
    assert placement.scale == pytest.approx(2)
    mesh = trimesh.creation.box((1, 2, 3))
    back = placement.mesh_to_source(mesh)
    again = placement.apply(torch.tensor(back.vertices))
    torch.testing.assert_close(again, torch.tensor(mesh.vertices))
    assert back.volume == pytest.approx(6 / 8)  # smaller by the scale, and not turned inside out
    both = layouts.Placement(torch.diag(torch.tensor([3.0, 3, 3, 1], dtype=torch.float64))) @ placement
    torch.testing.assert_close(both.apply(torch.ones(1, 3)), 3 * placement.apply(torch.ones(1, 3)))


def test_cameras_that_cannot_see_the_object(truth: Truth) -> None:
    views = truth(RING, 48, 2.0, 70.0)
    turned = views.cameras.c2w.clone()
    turned[:, :3, 1:3] *= -1  # OpenCV axes in an OpenGL file
    away = replace(views, cameras=replace(views.cameras, c2w=turned))
    with pytest.raises(InputError, match="look away from the object"):
        normalise(away)
    with pytest.raises(InputError, match="look away from the origin"):
        check_for_fusion(away)
    halves = torch.zeros_like(views.mask)  # every other view of a level ring shows it higher: nothing in common
    halves[0::2, 8:18, 15:30] = 1
    halves[1::2, 30:40, 15:30] = 1
    with pytest.raises(InputError, match="no common object"):
        normalise(replace(views, mask=halves))
    one_side = placed(truth(RING, 48, 2.0, 40.0, "orthographic")[[0, 0, 0]], 1.0, torch.tensor([5.0, 0.0, 0.0]))
    with pytest.raises(InputError, match="look along one line"):
        normalise(one_side)
    with pytest.raises(InputError, match="1 of 1 views show an object"):
        normalise(views[[0]])


def _with(views: ViewSet, name: str, index: tuple, value: float) -> ViewSet:
    values = getattr(views, name).clone()
    values[index] = value
    return replace(views, **{name: values})


def _posed(views: ViewSet, view: int, change: torch.Tensor) -> ViewSet:
    c2w = views.cameras.c2w.clone()
    c2w[view] = c2w[view] @ change
    return replace(views, cameras=replace(views.cameras, c2w=c2w))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: _with(v, "rgb", (2, 3, 3, 0), math.nan), "rgb of views 2 holds numbers that are not finite"),
        (lambda v: _with(v, "normals", (1, 3, 3, 0), math.inf), "normals of views 1 holds"),
        (lambda v: _with(v, "mask", (0, 1, 1), 2.0), "mask of views 0 is not in the range 0 to 1"),
        (lambda v: _with(v, "normals", (3, 12, 12), 0.2), "normals of views 3 are neither unit"),
        (lambda v: _posed(v, 1, torch.diag(torch.tensor([-1.0, 1, 1, 1]))), "pose of view 1 .* mirrored"),
        (lambda v: _posed(v, 1, torch.diag(torch.tensor([3.0, 3, 3, 1]))), "pose of view 1 .* scaled by 3"),
        (lambda v: v[[0]], "one view does not tell a shape"),
        (lambda v: replace(v, mask=torch.zeros_like(v.mask)), "every mask is empty"),
        (lambda v: replace(v, mask=torch.ones_like(v.mask)), "background was not removed"),
        (lambda v: replace(v, rgb=v.rgb[[0] * 4], mask=v.mask[[0] * 4]), "one and the same picture"),
        (lambda v: replace(v, cameras=v.cameras[[0] * 4]), "look from one side"),
        (lambda v: _posed(v, 2, torch.diag(torch.tensor([-1.0, 1, -1, 1]))), r"views \[2\] look away"),
        (lambda v: placed(v, 1.0, torch.tensor([0.0, 0.0, -1.4])), r"views \[0\] stand in the box"),
        (lambda v: placed(v, 1.0, torch.tensor([0.0, 9.0, 0.0])), r"views \[0, 1, 2, 3\] show the object outside"),
    ],
)
def test_fusion_refuses(make_views: Make, spoil: Callable[[ViewSet], ViewSet], message: str) -> None:
    good = make_views()
    check_for_fusion(good)
    with pytest.raises(InputError, match=message) as caught:
        check_for_fusion(spoil(good))
    assert "\n" not in str(caught.value)


def test_a_perspective_camera_within_the_object_is_refused(make_views: Make) -> None:
    near = replace(make_views(), cameras=rigs.orbit(4, size=24, model="perspective", radius=0.4))
    with pytest.raises(InputError, match="stand in the box"):
        check_for_fusion(near)


def test_poor_but_possible_views_are_told(make_views: Make, caplog: pytest.LogCaptureFixture) -> None:
    views = make_views()[[0, 1]]
    with caplog.at_level(logging.INFO):
        check_for_fusion(replace(views, normals=torch.zeros_like(views.normals)))
    assert "only 2 views" in caplog.text
    assert "no normals" in caplog.text


def test_views_of_our_own_presets_pass(truth: Truth) -> None:
    for name in ("ortho16", "persp16", "syncdreamer16", "envision32"):
        rig = rigs.preset(name, 24)
        disc = ((rig.pixel_centres() - 12).norm(dim=-1) < 6).float().expand(len(rig), 24, 24)
        shade = torch.rand(len(rig), 24, 24, 3)
        check_for_fusion(ViewSet(shade, torch.zeros_like(shade), disc, rig))


def test_normalise_moves_near_orthographic_cameras_back(truth: Truth) -> None:
    views = truth(RING, 48, 1.5, 32.0, "orthographic")
    near = views.cameras.c2w.clone()
    near[:, :3, 3] *= 0.1
    got, placement = normalise(replace(views, cameras=replace(views.cameras, c2w=near)))
    assert placement.is_identity
    points = torch.tensor([[0.2, 0.3, -0.4]])
    torch.testing.assert_close(got.cameras.project(points)[0], views.cameras.project(points)[0], atol=1e-3, rtol=0)
    assert (got.cameras.project(points)[1] > 0).all()
    assert isinstance(got.cameras, Cameras)
    check_for_fusion(got)


def test_an_assumed_azimuth_is_that_of_view_0_wherever_the_orbit_starts() -> None:
    pictures = [torch.ones(8, 8, 4) for _ in range(2)]
    for picture in pictures:
        picture[:2, :, 3] = 0
    orbit = layouts.Orbit([10.0, 100.0], "orthographic")
    views, _ = layouts.orbit_views("x", pictures, ["a", "b"], orbit, None, Assume(azimuth_deg=30.0))
    azimuths = torch.rad2deg(views.cameras.azimuth_elevation()[:, 0])
    torch.testing.assert_close(azimuths, torch.tensor([30.0, 120.0]))
