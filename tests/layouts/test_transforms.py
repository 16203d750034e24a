import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nova3d import cameras, layouts
from nova3d.errors import InputError
from nova3d.layouts import Assume
from nova3d.transforms import cameras_from_transforms, cameras_to_transforms, write_transforms
from nova3d.views import ViewSet

from .foreign import rgba, save, uint8

Truth = Callable[..., ViewSet]

SIZE, FOCAL, RADIUS = 40, 50.0, 2.0
POSES = [(0.0, 0.0), (80.0, 20.0), (170.0, -15.0), (260.0, 35.0), (310.0, 5.0)]
# Our points in a world with +Z up: x, y, z -> x, -z, y.
TO_Z_UP = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)


@pytest.fixture
def views(truth: Truth) -> ViewSet:
    return truth(POSES, SIZE, RADIUS, FOCAL)


def write(folder: Path, views: ViewSet, to_theirs: np.ndarray = TO_Z_UP, **changes: Any) -> dict[str, Any]:
    """A nerfstudio file of RGBA pictures; keys set to None are left out. Returns what was written."""
    frames = []
    for i in range(len(views)):
        save(folder / f"images/frame_{i:05d}.png", rgba(views, i))
        c2w = to_theirs @ views.cameras.c2w[i].double().numpy()
        frames.append({"file_path": f"images/frame_{i:05d}.png", "transform_matrix": c2w.tolist()})
    camera = {"w": SIZE, "h": SIZE, "fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2}
    data = {"camera_model": "OPENCV", **camera, "k1": 0.0, "p2": 0, "frames": frames, **changes}
    data = {key: value for key, value in data.items() if value is not None}
    (folder / "transforms.json").write_text(json.dumps(data))
    return data


def same(got: ViewSet, views: ViewSet) -> None:
    torch.testing.assert_close(got.cameras.c2w, views.cameras.c2w, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.cameras.intrinsics, views.cameras.intrinsics, atol=1e-3, rtol=0)
    assert (got.mask - views.mask).abs().max() <= 0.5 / 255 + 1e-6
    assert (got.rgb - (views.rgb * views.mask[..., None] + 1 - views.mask[..., None])).abs().max() < 2 / 255


def test_nerfstudio(tmp_path: Path, views: ViewSet, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, views, applied_transform=[[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], applied_scale=3.0)
    assert layouts.detect(tmp_path) == "transforms"
    with caplog.at_level(logging.INFO):
        loaded = layouts.load(tmp_path)
    same(loaded.views, views)
    assert not loaded.views.has_normals
    assert "up axis is taken to be +Z" in caplog.text
    # A point of the file's world, +Z up, is where the placement says.
    theirs = torch.tensor([[0.1, 0.2, 0.4]])
    torch.testing.assert_close(loaded.placement.apply(theirs), torch.tensor([[0.1, 0.4, -0.2]]))
    ours = trimesh.Trimesh([[0.1, 0.4, -0.2]], process=False)
    torch.testing.assert_close(torch.tensor(loaded.placement.mesh_to_source(ours).vertices).float(), theirs)


def test_the_file_itself_and_the_synthetic_sets_name(tmp_path: Path, views: ViewSet) -> None:
    write(tmp_path, views)
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    same(layouts.read(tmp_path), views)
    same(layouts.read(tmp_path / "transforms_train.json"), views)


def test_field_of_view_without_sizes_or_suffixes(
    tmp_path: Path, views: ViewSet, caplog: pytest.LogCaptureFixture
) -> None:
    """As the synthetic NeRF set and instant-ngp write it."""
    angle = 2 * math.atan(SIZE / 2 / FOCAL)
    data = write(tmp_path, views, **dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model")))
    for frame in data["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
        frame["rotation"] = 0.1
    (tmp_path / "transforms.json").write_text(json.dumps(data | {"camera_angle_x": angle, "aabb_scale": 4}))
    with caplog.at_level(logging.INFO):
        same(layouts.read(tmp_path), views)
    assert "no principal point" in caplog.text


def test_intrinsics_of_a_frame_go_before_the_files(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views)
    data["frames"][2] |= {"fl_x": 60.0, "cx": 21.5}
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    got = layouts.read(tmp_path).cameras.intrinsics
    assert got[2].tolist() == [60.0, 50.0, 21.5, 20.0]
    assert got[1].tolist() == [50.0, 50.0, 20.0, 20.0]


def test_smaller_copies_of_the_pictures_keep_the_field_of_view(tmp_path: Path, views: ViewSet) -> None:
    write(tmp_path, views, w=4 * SIZE, h=4 * SIZE, fl_x=4 * FOCAL, fl_y=4 * FOCAL, cx=2 * SIZE, cy=2 * SIZE)
    same(layouts.read(tmp_path), views)


def test_mask_files(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views)
    for i, frame in enumerate(data["frames"]):
        Image.fromarray(uint8(views.mask[i])).save(tmp_path / f"images/mask_{i}.png")
        Image.fromarray(uint8(views.rgb[i] * 0.5)).save(tmp_path / frame["file_path"])  # RGB on grey
        frame["mask_path"] = f"images/mask_{i}.png"
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    got = layouts.read(tmp_path)
    assert (got.mask - views.mask).abs().max() <= 0.5 / 255 + 1e-6
    del data["frames"][3]["mask_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"frames \[3\] have no mask_path"):
        layouts.read(tmp_path)


def test_rgb_on_one_colour_is_keyed_and_a_photograph_refused(
    tmp_path: Path, views: ViewSet, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path, views)
    green = torch.tensor([0.0, 0.8, 0.1])
    for i, frame in enumerate(data["frames"]):
        alpha = views.mask[i][..., None]
        save(tmp_path / frame["file_path"], views.rgb[i] * alpha + green * (1 - alpha))
    with caplog.at_level(logging.INFO):
        got = layouts.read(tmp_path)
    assert ((got.mask > 0.5) == (views.mask > 0)).float().mean() > 0.99
    assert "5 of 5 pictures have no mask" in caplog.text
    save(tmp_path / "images/frame_00003.png", torch.rand(SIZE, SIZE, 3))
    with pytest.raises(InputError, match=r"frame_00003\.png' has no transparency and its background is not of one"):
        layouts.read(tmp_path)


def test_pictures_of_several_sizes(tmp_path: Path, views: ViewSet, truth: Truth) -> None:
    data = write(tmp_path, views, **dict.fromkeys(("w", "h", "fl_x", "fl_y", "cx", "cy")))
    large = truth(POSES[1:2], 2 * SIZE, RADIUS, 2 * FOCAL)
    save(tmp_path / data["frames"][1]["file_path"], rgba(large, 0))
    angle = 2 * math.atan(SIZE / 2 / FOCAL)
    (tmp_path / "transforms.json").write_text(json.dumps(data | {"camera_angle_x": angle}))
    got = layouts.read(tmp_path)
    torch.testing.assert_close(got.cameras.intrinsics, views.cameras.intrinsics, atol=1e-3, rtol=0)
    assert (got.mask[1] - views.mask[1]).abs().mean() < 0.02
    Image.new("RGBA", (SIZE, SIZE // 2)).save(tmp_path / data["frames"][3]["file_path"])
    with pytest.raises(InputError, match=r"frame_00003\.png' is 40x20 and .* of different shapes"):
        layouts.read(tmp_path)


def test_size_is_the_longer_side(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views, h=SIZE // 2, cy=SIZE / 4)
    for i, frame in enumerate(data["frames"]):
        save(tmp_path / frame["file_path"], rgba(views, i)[SIZE // 4 : -SIZE // 4])
    got = layouts.read(tmp_path, size=20)
    assert (got.cameras.width, got.cameras.height) == (20, 10)
    assert got.cameras.intrinsics[0].tolist() == [25.0, 25.0, 10.0, 5.0]
    point = torch.tensor([[0.1, 0.05, 0.2]])
    expected = (views.cameras.project(point)[0] - torch.tensor([0.0, SIZE / 4])) / 2
    torch.testing.assert_close(got.cameras.project(point)[0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("up", ["y", "cameras"])
def test_other_up_axes(tmp_path: Path, views: ViewSet, up: str) -> None:
    tilt = np.eye(4)
    if up == "cameras":  # a capture whose world leans: the cameras' own up says where up is
        tilt[1:3, 1:3] = [[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]
    write(tmp_path, views, tilt)
    got = layouts.load(tmp_path, assume=Assume(up=up))
    ups = got.views.cameras.c2w[:, :3, 1].mean(dim=0)
    if up == "y":
        same(got.views, views)
    else:
        torch.testing.assert_close(ups / ups.norm(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-5, rtol=0)
    point = torch.tensor([[0.3, 0.1, -0.2]])  # in the file's world
    before = views.cameras.project(point @ torch.from_numpy(tilt[:3, :3]).float())[0]
    torch.testing.assert_close(got.views.cameras.project(got.placement.apply(point))[0], before, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="up 'x' is not one of"):
        layouts.read(tmp_path, assume=Assume(up="x"))


def test_a_front_view_comes_first_at_azimuth_zero(tmp_path: Path, views: ViewSet) -> None:
    write(tmp_path, views)
    got = layouts.load(tmp_path, assume=Assume(front=2))
    assert got.views.cameras.azimuth_elevation()[0, 0] == pytest.approx(0, abs=1e-5)
    assert torch.equal(got.views.mask[0], layouts.read(tmp_path).mask[2])
    point = torch.tensor([[0.3, 0.1, -0.2]])
    theirs = point @ torch.from_numpy(TO_Z_UP[:3, :3]).float().T
    expected = views.cameras.project(point)[0][[2, 3, 4, 0, 1]]
    torch.testing.assert_close(got.views.cameras.project(got.placement.apply(theirs))[0], expected, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match=r"front view 5 is not one of the 5 views \(0 to 4\)"):
        layouts.read(tmp_path, assume=Assume(front=5))


def scaled(matrix: list[list[float]]) -> list[list[float]]:
    return (np.array(matrix) @ np.diag([2.0, 2, 2, 1])).tolist()


def mirrored(matrix: list[list[float]]) -> list[list[float]]:
    return (np.array(matrix) @ np.diag([-1.0, 1, 1, 1])).tolist()


def sheared(matrix: list[list[float]]) -> list[list[float]]:
    return (np.array(matrix) @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])).tolist()


def transposed(matrix: list[list[float]]) -> list[list[float]]:
    return np.array(matrix).T.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(k1=0.01), r"lens distortion \(k1\) is not supported; undistort first"),
        (lambda d: d["frames"][1].update(p2=0.2), r"lens distortion \(p2\)"),
        (lambda d: d.update(camera_model="OPENCV_FISHEYE"), "camera_model 'OPENCV_FISHEYE' is not one of"),
        (lambda d: d.update(is_fisheye=True), "'is_fisheye' is set"),
        (lambda d: d.update(from_na=True), "'from_na'"),
        (lambda d: d.pop("fl_x"), "frame 0: no intrinsics: give fl_x"),
        (lambda d: d.update(fl_x="long"), "frame 0: fl_x is not a number: 'long'"),
        (lambda d: d.update(fl_y=float("nan")), "frame 0: fl_y is not a finite number"),
        (lambda d: d.update(fl_x=-3), "must be positive"),
        (lambda d: (d.pop("fl_x"), d.update(camera_angle_x=4)), "camera_angle_x must be between 0 and pi"),
        (lambda d: d.update(w=80), "the picture is 40x40, w and h say 80x40"),
        (lambda d: d.update(frames={"0": 1}), "'frames' must be a list of objects"),
        (lambda d: d.update(frames=[1]), "'frames' must be a list of objects"),
        (lambda d: d.update(frames=[]), "no frames"),
        (lambda d: d["frames"][1].pop("transform_matrix"), "frame 1: key 'transform_matrix' is missing"),
        (lambda d: d["frames"][1].update(transform_matrix="no"), "frame 1: transform_matrix is not a 4x4 matrix"),
        (lambda d: d["frames"][1].update(transform_matrix=[[1, 2]]), "frame 1: transform_matrix must be a finite 4x4"),
        (lambda d: d["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan")), "frame 1: .* finite"),
        (lambda d: d["frames"][1].pop("file_path"), "frame 1: key 'file_path' is missing"),
        (lambda d: d["frames"][1].update(file_path=["images/frame_00001.png"]), "frame 1: key 'file_path'"),
        (lambda d: d["frames"][1].update(file_path="images/none"), r"incomplete: images/none\.png missing"),
        (lambda d: _pose(d, scaled), r"frame 1: transform_matrix is not rigid: it is scaled by 2"),
        (lambda d: _pose(d, mirrored), "frame 1: .* mirrored"),
        (lambda d: _pose(d, sheared), "frame 1: .* sheared"),
        (lambda d: _pose(d, transposed), "frame 1: .* is it transposed"),
    ],
)
def test_a_bad_file_is_one_clear_line(
    tmp_path: Path, views: ViewSet, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = write(tmp_path, views)
    change(data)
    # JSON has no NaN, but 1e999 is read as infinity.
    (tmp_path / "transforms.json").write_text(json.dumps(data).replace("NaN", "1e999"))
    with pytest.raises(InputError, match=message) as caught:
        layouts.read(tmp_path)
    assert "\n" not in str(caught.value)


def _pose(data: dict[str, Any], change: Callable[[list[list[float]]], list[list[float]]]) -> None:
    data["frames"][1]["transform_matrix"] = change(data["frames"][1]["transform_matrix"])


def test_broken_pictures_are_named(tmp_path: Path, views: ViewSet) -> None:
    write(tmp_path, views)
    path = tmp_path / "images/frame_00002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"frame_00002\.png' cannot be read as an image"):
        layouts.read(tmp_path)
    Image.fromarray(np.zeros((SIZE, SIZE), dtype=np.uint16)).save(path)
    with pytest.raises(InputError, match="8 bits per channel"):
        layouts.read(tmp_path)
    path.unlink()
    (tmp_path / "images/frame_00004.png").unlink()
    with pytest.raises(InputError, match=r"incomplete: images/frame_00002\.png, images/frame_00004\.png missing"):
        layouts.read(tmp_path)
    (tmp_path / "transforms.json").write_text('{"fl_x": NaN}')
    with pytest.raises(InputError, match="NaN is not a JSON number"):
        layouts.read(tmp_path)
    (tmp_path / "transforms.json").write_text("[1]")
    with pytest.raises(InputError, match=r"transforms\.json' must hold a JSON object, not a list"):
        layouts.read(tmp_path)


def turned(degrees: float) -> np.ndarray:
    """A world whose up axis leans by so many degrees from +Z, around X."""
    angle, world = math.radians(degrees), np.eye(4)
    world[1:3, 1:3] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return world @ TO_Z_UP


@pytest.mark.parametrize("up", [[0, 1, 0], [0, 0, 1], [0, 0, 2.5], [1, 2, 3], [0, -1, 0]])
def test_the_key_up_says_where_up_is(tmp_path: Path, views: ViewSet, up: list[float]) -> None:
    axis = np.array(up) / np.linalg.norm(up)
    helper = np.eye(3)[np.abs(axis).argmin()]
    x = np.cross(axis, helper) / np.linalg.norm(np.cross(axis, helper))
    world = np.eye(4)
    world[:3, :3] = np.stack([x, axis, np.cross(x, axis)], axis=1)  # +Y of ours is `up` in the file
    write(tmp_path, views, world, up=up)
    got = layouts.load(tmp_path)
    lean = got.views.cameras.c2w[:, 1, 0].abs().max()  # of the cameras' horizontal axes
    assert lean < 1e-4 and float(got.views.cameras.c2w[:, 1, 1].mean()) > 0.5
    assert layouts.load(tmp_path, assume=Assume(up="z")).views.cameras.c2w[:, 1, 0].abs().max() > 0.1 or up[:2] == [
        0,
        0,
    ]


@pytest.mark.parametrize("up", [[0, 0, 0], [0, 1], "z", [0, 1, float("1e300")], {"y": 1}, [True, "a", 0]])
def test_a_key_up_that_is_no_axis_is_one_line(tmp_path: Path, views: ViewSet, up: object) -> None:
    write(tmp_path, views, up=up)
    with pytest.raises(InputError, match=r"up (is not|must be) a vector of three") as caught:
        layouts.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_leaning_world_is_set_upright_by_its_cameras(tmp_path: Path, views: ViewSet, caplog) -> None:
    for degrees in (0.0, 10.0, 40.0, 90.0, 135.0):
        folder = tmp_path / str(degrees)
        folder.mkdir()
        write(folder, views, turned(degrees))
        with caplog.at_level(logging.INFO):
            got = layouts.load(folder)
        rise = math.degrees(float(got.views.cameras.c2w[:, 1, 0].abs().max()))
        assert rise < 1e-2 if degrees in (0.0, 40.0, 90.0, 135.0) else rise < 15
        assert ("the cameras lean" in caplog.text) == (degrees > 15)
        caplog.clear()


def test_cameras_without_a_common_up_are_refused(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views)
    for i, frame in enumerate(data["frames"]):  # each rolled by another angle
        roll, angle = np.eye(4), 1.3 * i + 0.7
        roll[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ roll).tolist()
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="no up axis in common: give it as the key 'up'"):
        layouts.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"equirectangular": True},
        {"latlong": True},
        {"ftheta_p0": 0.1, "ftheta_width": 8},
        {"is_fisheye": True},
        {"k5": 0.01},
        {"camera_model": "EQUIRECTANGULAR"},
        {"camera_model": "OPENCV", "orthographic": True},
        {"fl_x": 1e300},
        {"fl_x": 1e-300},
        {"fl_x": True},
        {"fl_x": 10**400},
        {"w": 1e300, "h": 1e300},
        {"w": -32},
        {"cx": 1e300},
    ],
)
def test_lenses_and_numbers_that_are_not_read_are_refused(tmp_path: Path, views: ViewSet, changes: dict) -> None:
    write(tmp_path, views, **changes)
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [1e300, 10**400, [1], "a", None])
def test_a_pose_of_other_numbers_is_refused(tmp_path: Path, views: ViewSet, value: object) -> None:
    data = write(tmp_path, views)
    data["frames"][2]["transform_matrix"][0][3] = value
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"frame 2: transform_matrix|not valid JSON"):
        layouts.load(tmp_path)


def test_paths_of_windows_other_formats_and_masks_of_0_and_1(tmp_path: Path, views: ViewSet) -> None:
    expected = layouts.read(written(tmp_path / "plain", views))
    folder = tmp_path / "windows"
    data = write(made(folder), views)
    for i, frame in enumerate(data["frames"]):
        picture = Image.open(folder / frame["file_path"])
        mask = (views.mask[i] > 0.5).numpy().astype(np.uint8)
        Image.fromarray(mask).save(folder / f"images/mask{i}.png")
        picture.convert("RGB").save(folder / f"images/{i}.tif")
        frame |= {"file_path": f"images\\{i}.tif", "mask_path": f"images/mask{i}.png"}
    (folder / "transforms.json").write_text(json.dumps(data))
    got = layouts.read(folder)
    assert torch.equal(got.mask, (views.mask > 0.5).float())
    inside = got.mask * (expected.mask > 0.999) > 0
    torch.testing.assert_close(got.rgb[inside], expected.rgb[inside], atol=1e-5, rtol=0)
    data["frames"][0]["file_path"] = "images/absent.tif"
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"frame 0: 'images/absent\.tif' does not exist"):
        layouts.read(folder)
    data["frames"][0]["file_path"] = "a\0.png"
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="frame 0: file_path holds a NUL"):
        layouts.read(folder)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def written(folder: Path, views: ViewSet) -> Path:
    write(made(folder), views)
    return folder


def test_our_own_file_is_in_other_tools_words(tmp_path: Path, truth: Truth) -> None:
    """nerfstudio's name of the camera, instant-ngp's switch, and the world's up; all of them are read back."""
    own = cameras.orbit(4, size=SIZE)
    path = write_transforms(tmp_path / "transforms.json", cameras_to_transforms(own))
    content = json.loads(path.read_text())
    assert (content["camera_model"], content["orthographic"], content["up"]) == ("ORTHOPHOTO", True, [0.0, 1.0, 0.0])
    for change in ({}, {"camera_model": "ORTHOGRAPHIC"}, {"camera_model": None}):
        found = {k: v for k, v in (content | change).items() if v is not None}
        assert cameras_from_transforms(found).model == "orthographic"
    pinhole = json.loads(write_transforms(path, {"camera_model": "PINHOLE", "frames": []}).read_text())
    assert pinhole["camera_model"] == "PINHOLE" and "orthographic" not in pinhole


@pytest.mark.parametrize("said", ["of the turned picture", "of the stored pixels", "nothing"])
def test_exif_orientation_and_the_size_in_the_file(tmp_path: Path, views: ViewSet, said: str) -> None:
    """Pixels are stored 40 wide and 20 high, and shown 20 wide and 40 high."""
    data = write(tmp_path, views)
    wide = np.zeros((SIZE // 2, SIZE, 4), np.uint8)
    wide[4:9, 6:30] = (200, 10, 10, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    for frame in data["frames"]:
        Image.fromarray(wide).save(tmp_path / frame["file_path"], exif=exif)
    width, height = (SIZE, SIZE // 2) if said == "of the stored pixels" else (SIZE // 2, SIZE)
    data |= {"w": width, "h": height, "cx": width / 2, "cy": height / 2}
    if said == "nothing":
        data = {key: value for key, value in data.items() if key not in ("w", "h", "cx", "cy")}
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    got = layouts.read(tmp_path)
    shown = wide if said == "of the stored pixels" else np.rot90(wide, -1)
    assert (got.cameras.width, got.cameras.height) == (shown.shape[1], shown.shape[0])
    assert np.array_equal(got.mask[0].numpy() > 0.5, shown[..., 3] > 0)


@pytest.mark.parametrize("rig", [cameras.preset("ortho16", 12), cameras.preset("persp16", 12)])
def test_our_own_folder_holds_what_nerfstudio_reads(tmp_path: Path, rig: cameras.Cameras) -> None:
    """The fields and the ray formulas of nerfstudio 1.1.5's data parser and cameras, followed here by hand."""
    v, n = len(rig), rig.width
    empty = torch.zeros(v, n, n, 3)
    ViewSet(empty + 1, empty, torch.zeros(v, n, n), rig).save(tmp_path)
    meta = json.loads((tmp_path / "transforms.json").read_text())
    fx, fy, cx, cy = (float(meta[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
    assert (int(meta["h"]), int(meta["w"])) == (n, n)
    assert not {"k1", "k2", "k3", "k4", "p1", "p2", "distortion_params", "orientation_override"} & meta.keys()
    frames = sorted(meta["frames"], key=lambda frame: str(tmp_path / frame["file_path"]))  # it sorts them by path
    assert frames == meta["frames"] and all((tmp_path / frame["file_path"]).is_file() for frame in frames)
    poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
    assert poses.shape == (v, 4, 4)
    middle = torch.arange(n) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    across = torch.stack([(x - cx) / fx, -(y - cy) / fy], dim=-1)
    if meta["camera_model"] == "ORTHOPHOTO":  # origins are a grid in the camera's plane
        local = torch.cat([across, torch.zeros(n, n, 1), torch.ones(n, n, 1)], dim=-1)
        origins = torch.einsum("vij,hwj->vhwi", poses, local)[..., :3]
        directions = -poses[:, None, None, :3, 2].expand(v, n, n, 3)
    else:
        assert meta["camera_model"] in ("PINHOLE", "OPENCV")
        local = torch.cat([across, -torch.ones(n, n, 1)], dim=-1)
        origins = poses[:, None, None, :3, 3].expand(v, n, n, 3)
        directions = torch.nn.functional.normalize(torch.einsum("vij,hwj->vhwi", poses[:, :3, :3], local), dim=-1)
    ours = rig.rays()
    torch.testing.assert_close(origins, ours[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(directions, ours[1], atol=1e-5, rtol=0)


def test_pictures_are_refused_by_their_sizes_together(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views)
    many = {"frames": [data["frames"][0]] * 1000}  # of 1,600 pixels each
    (tmp_path / "transforms.json").write_text(json.dumps({**data, **many}))
    with pytest.raises(InputError, match=r"1000 pictures have 1\.6 million pixels together; at most 1\.2 million"):
        layouts.load(tmp_path, assume=Assume(max_megapixels=0.3))
    (tmp_path / "transforms.json").write_text(json.dumps({**data, "frames": data["frames"][:3]}))
    with pytest.raises(InputError, match="40x40 pixels"):
        layouts.load(tmp_path, assume=Assume(max_megapixels=0.00159))
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    same(layouts.read(tmp_path, assume=Assume(max_megapixels=0.002)), views)
    with pytest.raises(InputError, match="together"):  # scaled up, they count as large as they become
        layouts.read(tmp_path, size=400, assume=Assume(max_megapixels=0.1))


@pytest.mark.parametrize("layout", ["nova3d", "transforms"])
@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".png", "a\0b.png"])
def test_names_that_no_file_can_have_are_one_line(tmp_path: Path, views: ViewSet, layout: str, name: str) -> None:
    data = write(tmp_path, views)
    data["frames"][1] |= {"file_path": name}
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        layouts.load(tmp_path, layout)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_mark_before_the_json_is_passed_over(tmp_path: Path, views: ViewSet) -> None:
    data = write(tmp_path, views)
    (tmp_path / "transforms.json").write_text(json.dumps(data), encoding="utf-8-sig")
    same(layouts.read(tmp_path), views)
