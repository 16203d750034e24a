import base64
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from nova3d import cameras
from nova3d.errors import InputError
from nova3d.images import read_image
from nova3d.views import ViewSet, load_detail, match_detail, yaw_rotation

Make = Callable[..., ViewSet]


def test_save_load_round_trip(tmp_path: Path, make_views: Make, angle_deg: Callable[[Tensor, Tensor], Tensor]) -> None:
    original = make_views()
    original.save(tmp_path / "new/folder", record={"stage": "test"})
    back = ViewSet.load(tmp_path / "new/folder")
    assert torch.equal(back.mask, original.mask)
    assert (back.rgb - original.rgb).abs().max() <= 0.5 / 255 + 1e-6
    inside = original.mask > 0
    assert angle_deg(back.normals, original.normals)[inside].max() < 0.5
    assert (back.normals[~inside] == 0).all()
    assert torch.equal(back.cameras.c2w, original.cameras.c2w)
    assert json.loads((tmp_path / "new/folder/record.json").read_text()) == {"stage": "test"}
    with Image.open(tmp_path / "new/folder/rgb/000.png") as opened:
        assert json.loads(opened.info["nova3d"]) == {"stage": "test"}


def test_soft_edges_survive_the_round_trip(tmp_path: Path, make_views: Make) -> None:
    solid = make_views()
    alpha = torch.rand(solid.mask.shape, generator=torch.Generator().manual_seed(1))
    colour = torch.rand(solid.rgb.shape, generator=torch.Generator().manual_seed(2))
    soft = replace(solid, mask=alpha, rgb=colour * alpha[..., None] + 1 - alpha[..., None])
    back = ViewSet.load(soft.save(tmp_path))
    assert (back.mask - alpha).abs().max() <= 0.5 / 255 + 1e-6
    assert (back.rgb - soft.rgb).abs().max() <= 1.5 / 255  # alpha and colour are rounded one after the other


def test_a_folder_without_alpha_suffixes_or_normal_paths_loads(tmp_path: Path, make_views: Make) -> None:
    original = make_views()
    original.save(tmp_path)
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    for frame in transforms["frames"]:
        del frame["normal_path"]
        frame["file_path"] = frame["file_path"].removesuffix(".png")
        with Image.open(tmp_path / f"{frame['file_path']}.png") as opened:
            pixels = np.array(opened)
        pixels[pixels[..., 3] == 0] = 255
        Image.fromarray(pixels[..., :3].copy()).save(tmp_path / f"{frame['file_path']}.png")
    (tmp_path / "transforms.json").write_text(json.dumps(transforms))
    back = ViewSet.load(tmp_path)
    assert torch.equal(back.mask, original.mask)  # taken from the normal maps
    assert (back.rgb - original.rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_a_broken_folder_names_the_first_thing_wrong(tmp_path: Path, make_views: Make) -> None:
    def fails(message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            ViewSet.load(tmp_path / "views")
        assert "\n" not in str(caught.value)

    fails("views' does not exist")
    folder = make_views().save(tmp_path / "views")
    good = (folder / "transforms.json").read_text()

    Image.new("RGB", (12, 24)).save(folder / "normal/003.png")
    fails(r"normal/003\.png' is 12x24, transforms\.json says 24x24")
    (folder / "normal/003.png").write_text("not a picture")
    fails(r"normal/003\.png' cannot be read as an image")
    (folder / "rgb/002.png").unlink()
    fails(r"rgb/002\.png' does not exist")
    (folder / "transforms.json").write_text("{")
    fails(r"transforms\.json' is not valid JSON")
    (folder / "transforms.json").write_text("[]")
    fails(r"transforms\.json' must hold a JSON object, not a list")
    (folder / "transforms.json").write_text(good.replace('"fl_x"', '"fl"'))
    fails("'fl_x' is missing")
    (folder / "transforms.json").unlink()
    fails(r"has no transforms\.json")


def test_no_normals_is_zeros_and_survives(tmp_path: Path, make_views: Make) -> None:
    views = make_views()
    assert views.has_normals
    bare = replace(views, normals=torch.zeros_like(views.normals))
    assert not bare.has_normals
    back = ViewSet.load(bare.save(tmp_path))
    assert not back.has_normals
    assert torch.equal(back.mask, views.mask)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 3), ("P", 3), ("RGBA", 4), ("LA", 4)])
def test_pictures_of_every_mode_are_read(tmp_path: Path, mode: str, channels: int) -> None:
    Image.new("L", (6, 4), 51).convert(mode).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert picture.shape == (4, 6, channels)
    assert picture[..., :3].unique().tolist() == pytest.approx([0.2])


def test_deep_and_truncated_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png' has mode I;16: save it with 8 bits"):
        read_image(tmp_path / "deep.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png' cannot be read as an image"):
        read_image(tmp_path / "cut.png")


def test_an_output_that_cannot_be_written_is_one_clear_line(tmp_path: Path, make_views: Make) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write views to '.*file/out'"):
        make_views().save(tmp_path / "file/out")
    with pytest.raises(InputError, match=r"cannot write views to '.*file'"):
        make_views().save(tmp_path / "file")


def test_shapes_are_checked(make_views: Make) -> None:
    views = make_views()
    with pytest.raises(ValueError, match="shapes disagree"):
        replace(views, rgb=views.rgb[:, :-1])
    with pytest.raises(ValueError, match="shapes disagree"):
        replace(views, cameras=cameras.orbit(5, size=24))
    assert len(views[[2]]) == 1
    assert torch.equal(views[[3, 1]].rgb, views.rgb[[3, 1]])


@settings(max_examples=30)
@given(
    st.integers(0, 15),
    st.sampled_from(cameras.PRESETS[:3]),
    st.lists(st.tuples(*[st.floats(-0.5, 0.5)] * 3), min_size=1, max_size=8),
)
def test_turning_the_world_with_the_views_changes_no_picture(
    index: int, preset: str, coordinates: list[tuple[float, float, float]]
) -> None:
    rig = cameras.preset(preset, size=4)
    blank = torch.zeros(16, 4, 4, 3)
    views = ViewSet(torch.ones_like(blank), blank, blank[..., 0], rig)
    turned = views.rotated_to(index)
    points = torch.tensor(coordinates)
    turn = yaw_rotation(-rig.azimuth_elevation()[index, 0])
    order = [(index + k) % 16 for k in range(16)]
    pixels, depth = rig.project(points)
    turned_pixels, turned_depth = turned.cameras.project(points @ turn.T)
    torch.testing.assert_close(turned_pixels, pixels[order], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(turned_depth, depth[order], atol=1e-4, rtol=1e-4)
    # and the turned rig is the orbit again, so that a model sees the cameras it knows
    torch.testing.assert_close(turned.cameras.c2w, rig.c2w, atol=1e-5, rtol=0)


def test_turning_keeps_normals_in_camera_frames_and_colours(make_views: Make) -> None:
    from nova3d import normals

    views = make_views()
    turned = views.rotated_to(3)
    assert torch.equal(turned.rgb[0], views.rgb[3])
    before, after = (normals.to_camera(v.normals, v.cameras.c2w) for v in (views, turned))
    torch.testing.assert_close(after, before[[3, 0, 1, 2]], atol=1e-5, rtol=0)
    back = turned.rotated_to(1)
    torch.testing.assert_close(back.normals, views.normals, atol=1e-5, rtol=0)


def test_which_views_are_trusted_is_kept(tmp_path: Path, make_views: Make) -> None:
    views = replace(make_views(), trusted=(True, False, False, True))
    assert views[[3, 1]].trusted == (True, False) and views[1:].trusted == (False, False, True)
    assert views.resized(12).trusted == views.to("cpu").trusted == views.trusted
    assert views.rotated_to(1).trusted == (False, False, True, True)
    assert ViewSet.load(views.save(tmp_path / "some")).trusted == views.trusted
    assert views.trusted_among_others.tolist() == [True, False, False, True]
    assert views[[0, 3]].trusted_among_others.tolist() == views[[1, 2]].trusted_among_others.tolist() == [False, False]
    assert make_views()[[0]].trusted == ViewSet.load(make_views().save(tmp_path / "none")).trusted == ()
    with pytest.raises(ValueError, match="trusted has 3 values for 4 views"):
        replace(views, trusted=(True,) * 3)
    transforms = json.loads((tmp_path / "some/transforms.json").read_text())
    transforms["frames"][2]["trusted"] = "yes"
    (tmp_path / "some/transforms.json").write_text(json.dumps(transforms))
    with pytest.raises(InputError, match="frame 2: trusted must be true or false, not 'yes'"):
        ViewSet.load(tmp_path / "some")


def test_a_detail_stays_with_its_views(tmp_path: Path, make_views: Make) -> None:
    views = replace(make_views(), trusted=(False, False, True, False))
    detail = views[[2]].resized(48)
    folder = views.save(tmp_path, detail=detail)
    back = load_detail(folder)
    assert back is not None and torch.equal(back.mask, (detail.mask * 255).round() / 255) and back.trusted == (True,)
    assert match_detail(ViewSet.load(folder), back) == [2]
    for wrong in (views[[1]].resized(48), replace(detail, cameras=detail.cameras.resized(24, 48).resized(48, 48)[[0]])):
        moved = replace(wrong.cameras, intrinsics=wrong.cameras.intrinsics + 1)
        with pytest.raises(InputError, match="view 0 of the detail has the camera of none of the trusted views"):
            match_detail(views, replace(wrong, cameras=moved))
    with pytest.raises(InputError, match="none of the trusted views"):
        match_detail(views, views[[1]].resized(48))
    views.save(tmp_path)
    assert load_detail(folder) is None  # it was of the views before


def test_resized_views_are_of_the_same_things(make_views: Make) -> None:
    views = make_views()
    assert views.resized(24) is views
    assert views.resized(None) is views
    small = views.resized(12)
    assert small.mask.shape == (4, 12, 12)
    assert float(small.mask.mean()) == pytest.approx(float(views.mask.mean()), abs=0.01)
    assert torch.equal(small.cameras.c2w, views.cameras.c2w)
    point = torch.tensor([[0.1, 0.2, 0.3]])
    torch.testing.assert_close(small.cameras.project(point)[0], views.cameras.project(point)[0] / 2)
    known = small.normals.norm(dim=-1)
    assert ((known < 1e-6) | ((known - 1).abs() < 1e-5)).all()
    assert (known[small.mask == 0] == 0).all()
    facing = replace(views, normals=views.mask[..., None] * torch.tensor([0.0, 0.0, 1.0]))
    assert (facing.resized(12).normals[:, 6, 6] == torch.tensor([0.0, 0.0, 1.0])).all()


def test_resized_normals_are_of_the_object_alone() -> None:
    rgba = torch.ones(1, 8, 8, 4)
    rgba[:, :, 5:, 3] = 0  # cuts the third of four columns in half
    up, right = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    surface = up.expand(1, 8, 8, 3).clone()
    surface[:, :, 5:] = right  # said of the background: to be ignored
    views = ViewSet.from_rgba(rgba, surface, cameras.orbit(1, size=8), size=4)
    assert (views.normals[0, :, :3] == up).all()
    assert (ViewSet.from_rgba(rgba, surface, cameras.orbit(1, size=8)).normals[0, :, 5:] == 0).all()
    assert (ViewSet.from_rgba(rgba, None, cameras.orbit(1, size=8), size=4).normals == 0).all()
    surface[:, :, :5:2] = -up  # normals that contradict each other have no mean
    assert (ViewSet.from_rgba(rgba, surface, cameras.orbit(1, size=8), size=4).normals[0, :, 1] == 0).all()


def test_yaw_grows_with_azimuth() -> None:
    front, right = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(yaw_rotation(torch.tensor(math.pi / 2)) @ front, right, atol=1e-6, rtol=0)


def test_a_view_set_says_in_one_line_what_it_is(make_views: Make) -> None:
    views = make_views()
    v, h, w = views.mask.shape
    assert repr(views) == f"ViewSet({v} views, {w} x {h} px, {views.cameras.model}, with normals, cpu)"
    bare = replace(views, normals=views.normals * 0, trusted=(True, *[False] * (v - 1)))
    assert repr(bare) == f"ViewSet({v} views, {w} x {h} px, {views.cameras.model}, no normals, 1 trusted, cpu)"


def test_a_contact_sheet_has_every_view_and_its_normals_below_it(make_views: Make) -> None:
    views = make_views()
    v, h, w = views.mask.shape
    columns = v // 2 + 1  # the last row is not full
    sheet = views.contact_sheet(columns)
    assert sheet.shape == (4 * (h + 2) + 2, columns * (w + 2) + 2, 3)
    for i in (0, columns - 1, columns, v - 1):
        row, left = i // columns, 2 + (i % columns) * (w + 2)
        colour, normal = (sheet[2 + k * (h + 2) :][:h, left : left + w] for k in (2 * row, 2 * row + 1))
        assert torch.equal(colour, views.rgb[i])
        inside = views.mask[i] == 1
        torch.testing.assert_close(normal[inside], (views.normals[i][inside] + 1) / 2)
        assert (normal[views.mask[i] == 0] == 1).all()
    assert (sheet[2 + 2 * (h + 2) :, -w:] == 1).all()
    bare = replace(views, normals=views.normals * 0)
    assert bare.contact_sheet(v).shape == (h + 4, v * (w + 2) + 2, 3)


def test_a_notebook_shows_a_strip_of_the_views(make_views: Make) -> None:
    views = make_views()
    html = views._repr_html_()
    shown = re.fullmatch(
        r'<figure [^>]*><img src="data:image/png;base64,([^"]+)" alt="the views" style="max-width:100%">(.*)</figure>',
        html,
    )
    assert shown is not None and shown[2] == f"<figcaption>{views!r}</figcaption>"
    with Image.open(io.BytesIO(base64.b64decode(shown[1]))) as opened:
        assert opened.size == (len(views) * 66 + 2, 2 * 66 + 2)


def test_views_are_refused_by_their_sizes_before_one_is_decoded(tmp_path: Path, make_views: Make) -> None:
    views = make_views()
    views.save(tmp_path)
    count, side = len(views), views.cameras.width
    enough = count * side * side / 4e6
    assert len(ViewSet.load(tmp_path, max_megapixels=max(enough, side * side / 1e6))) == count
    with pytest.raises(InputError, match=f"{count} pictures .* together.* raise max_megapixels"):
        ViewSet.load(tmp_path, max_megapixels=enough * 0.99)
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps(transforms | {"w": 50000, "h": 50000}))
    with pytest.raises(InputError, match="at most 128 million"):
        ViewSet.load(tmp_path)
