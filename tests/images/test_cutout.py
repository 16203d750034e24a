"""What is object in a picture: alpha, a plain background, the network, a mask; and what is doubtful."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nova3d import images
from nova3d.errors import InputError
from nova3d.images import cutout

RED = (200, 40, 40)


def scene(size: int = 200, at: tuple[float, float] = (0.5, 0.5), radius: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [size,size,3] of a red disc on white, and where it is; `at` (x, y) and `radius` are shares of the side."""
    y, x = np.mgrid[:size, :size] + 0.5
    inside = (x - at[0] * size) ** 2 + (y - at[1] * size) ** 2 < (radius * size) ** 2
    return np.where(inside[..., None], np.uint8(RED), np.uint8(255)), inside


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | int) -> np.ndarray:
    """RGBA of colours and an alpha in 0...255."""
    return np.concatenate([rgb, np.broadcast_to(np.uint8(alpha), rgb.shape[:2])[..., None]], axis=-1)


def found(cut: images.CutOut) -> np.ndarray:
    return (cut.mask > 127).numpy()


def test_alpha_that_does_not_separate_is_ignored() -> None:
    rgb, inside = scene()
    stray = with_alpha(rgb, 255)
    stray[0, 0, 3] = 254
    hole = with_alpha(rgb, 255)
    hole[3:6, 3:6, 3] = 0
    for picture in (with_alpha(rgb, 255), stray, hole, with_alpha(rgb, 253), with_alpha(rgb, 90)):
        cut = images.cut_out(picture)
        assert cut.method == "plain" and np.array_equal(found(cut), inside)
    assert any("opaque" in warning for warning in images.cut_out(stray).warnings)
    with pytest.raises(InputError, match="no transparency that separates"):
        images.cut_out(stray, "alpha")


def test_alpha_that_separates_is_used() -> None:
    rgb, inside = scene()
    cut = images.cut_out(with_alpha(rgb * 0 + 255, np.where(inside, 255, 0)))
    assert cut.method == "alpha" and np.array_equal(found(cut), inside) and cut.warnings == []


@pytest.mark.parametrize("level", [40, 90, 150])
def test_a_glass_object_is_an_object(level: int) -> None:
    rgb, inside = scene()
    alpha = np.where(inside, level, 0)
    alpha[90:100, 90:100] = 255  # a solid part
    cut = images.cut_out(with_alpha(rgb, alpha))
    assert np.array_equal(found(cut), inside) and bool((cut.rgba[..., 3][torch.from_numpy(inside)] == 1).all())
    assert any("semi-transparent" in warning for warning in cut.warnings)


def test_specks_do_not_set_the_frame() -> None:
    rgb, inside = scene()
    corners = with_alpha(rgb, np.where(inside, 255, 0))
    corners[:2, :2] = corners[-2:, -2:] = (0, 0, 0, 255)
    dust = rgb.copy()
    dust[4:7, 5:8] = 0
    for picture in (corners, dust):
        cut = images.cut_out(picture)
        assert np.array_equal(found(cut), inside) and any("speck" in warning for warning in cut.warnings)
        clean = images.cut_out(with_alpha(rgb, np.where(inside, 255, 0))).rgba
        torch.testing.assert_close(images.frame_object(cut.rgba, 64)[..., 3], images.frame_object(clean, 64)[..., 3])


def test_small_parts_within_and_large_ones_beside_stay() -> None:
    rgb, inside = scene(radius=0.2)
    alpha = np.where(inside, 255, 0)
    alpha[60:150, 175:190] = 255  # another part
    alpha[62:64, 62:64] = 255  # small, in the box of the largest: an ornament
    cut = images.cut_out(with_alpha(rgb, alpha))
    assert np.array_equal(found(cut), alpha > 0)
    assert [warning for warning in cut.warnings if "2 objects" in warning]


def test_a_large_picture_s_specks_are_found_at_less_than_its_resolution() -> None:
    alpha = np.zeros((2500, 2600), np.uint8)
    alpha[1000:2000, 1000:2001] = 255
    alpha[100:110, 100:110] = 255
    cut = images.cut_out(with_alpha(np.zeros((2500, 2600, 3), np.uint8), alpha))
    alpha[100:110, 100:110] = 0
    assert np.array_equal(cut.mask.numpy(), alpha)


def test_doubts_are_said(caplog: pytest.LogCaptureFixture) -> None:
    rgb, inside = scene(at=(0.5, 1.0))
    cut = images.cut_out(with_alpha(rgb, np.where(inside, 255, 0)))
    assert cut.warnings == ["The object touches the lower border: what lies beyond is unknown."]
    assert cut.warnings[0] in caplog.text
    full = images.cut_out(rgb, "none")
    assert bool((full.mask == 255).all())
    assert "upper and the lower and the left and the right border" in full.warnings[0] and "100 %" in full.warnings[1]
    rgb, inside = scene(size=60)
    small = images.cut_out(rgb)
    assert small.warnings == ["The object is only 36 pixels long; 64 or more are wanted."]
    share = round(float(inside.mean()), 4)
    assert small.facts() == {"method": "plain", "width": 60, "height": 60, "share": share, "warnings": small.warnings}


def test_a_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    rgb, inside = scene()
    pixels = np.random.default_rng(0).integers(0, 256, rgb.shape, dtype=np.uint8)
    white = np.where(inside, 255, 0).astype(np.uint8)
    Image.fromarray(white).save(tmp_path / "mask.png")
    Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "labels.png")
    masks = (
        tmp_path / "mask.png",
        tmp_path / "labels.png",
        white,
        with_alpha(rgb * 0, white),
        white.astype(np.uint16) * 257,
    )
    for mask in masks:
        cut = images.cut_out(pixels, mask=mask)
        assert cut.method == "mask" and np.array_equal(found(cut), inside)
    with pytest.raises(InputError, match=r"mask.png' has 200x200 pixels, its picture 100x200"):
        images.cut_out(pixels[:, :100], mask=tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"^mask 'absent\.png' does not exist$"):
        images.cut_out(pixels, mask="absent.png")
    with pytest.raises(InputError, match="no object in 'picture': the mask is empty"):
        images.cut_out(pixels, mask=white * 0)


def gradient(size: int = 200) -> np.ndarray:
    """A soft studio background: grey that falls off to one corner."""
    y, x = np.mgrid[:size, :size] / size
    return np.repeat((235 - 120 * (x + y) / 2)[..., None], 3, axis=-1).astype(np.uint8)


def test_the_network_cuts_out_of_a_gradient_and_at_the_border() -> None:
    for at in ((0.5, 0.5), (0.5, 0.95)):
        rgb, inside = scene(at=at)
        picture = np.where(inside[..., None], rgb, gradient())
        cut = images.cut_out(picture)
        overlap = (found(cut) & inside).sum() / (found(cut) | inside).sum()
        assert cut.method == "model" and overlap > 0.93
        assert any("lower border" in warning for warning in cut.warnings) == (at[1] > 0.9)


def test_the_rim_of_what_the_network_cuts_out_has_the_object_s_colours() -> None:
    rgb, inside = scene()
    cut = images.cut_out(np.where(inside[..., None], rgb, gradient()), "model")
    rim = (cut.rgba[..., 3] > 0) & (cut.rgba[..., 3] < 0.9)
    assert int(rim.sum()) > 50
    assert (cut.rgba[..., :3][rim] - torch.tensor(RED) / 255).abs().max() < 0.05


def test_where_the_network_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutout.u2net, "saliency", lambda rgb: torch.zeros(320, 320))
    with pytest.raises(InputError, match="no object in 'picture': the network finds none"):
        images.cut_out(gradient())


def test_methods_that_do_not_apply(tmp_path: Path) -> None:
    rgb, inside = scene(at=(0.5, 1.0))
    with pytest.raises(InputError, match="touches the border"):
        images.cut_out(rgb, "plain")
    with pytest.raises(InputError, match="cutout 'best' is not one of auto, alpha, plain, model, none"):
        images.cut_out(rgb, "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing stands out"):
        images.cut_out(rgb * 0 + 200)
    assert np.array_equal(found(images.cut_out(with_alpha(rgb, np.where(inside, 255, 0)), "none")), inside)


def test_a_large_picture_is_cropped_and_its_object_reduced() -> None:
    y, x = torch.meshgrid(torch.arange(3000), torch.arange(4500), indexing="ij")
    inside = (x >= 600) & (x < 3100) & (y >= 300) & (y < 2700)
    colours = torch.stack([x * 255 // 4500, y * 255 // 3000, x * 0 + 90], dim=-1).to(torch.uint8)
    picture = torch.cat([colours, (inside * 255).to(torch.uint8)[..., None]], dim=-1)
    cut = images.cut_out(picture)
    assert cut.mask.shape == (3000, 4500) and max(cut.rgba.shape) < 2100
    direct, through = images.frame_object(picture, 128), images.frame_object(cut.rgba, 128)
    assert (images.premultiply(direct) - images.premultiply(through)).abs().max() < 0.02
    assert images.cut_out(picture, crop=False).rgba.shape == (3000, 4500, 4)


def test_plain_matte_of_bytes_is_that_of_floats() -> None:
    rgb = np.random.default_rng(0).integers(225, 256, (60, 70, 3), dtype=np.uint8)
    rgb[0] = rgb[-1] = rgb[:, 0] = rgb[:, -1] = 240
    as_bytes = torch.from_numpy(rgb)
    floats: Tensor = as_bytes.float() / 255
    assert torch.equal(images.matte_plain_background(as_bytes), images.matte_plain_background(floats))


def test_the_matte_of_a_large_picture_is_that_of_every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:2100, :2000]
    inside = (np.hypot(x - 900, y - 1000) < 500) & (np.hypot(x - 1000, y - 900) > 90)  # a disc with a hole
    inside |= (abs(x - 900) < 2) & (y > 300) & (y < 1900)  # a rod through it
    inside |= (x > 1990) & (y > 2090)  # and something in a corner
    rgb = torch.from_numpy(np.where(inside, 40, 250)[..., None].repeat(3, -1).astype(np.uint8))
    found = images.matte_plain_background(rgb)
    monkeypatch.setattr(cutout, "_CROP_PIXELS", 1 << 30)
    assert torch.equal(found, images.matte_plain_background(rgb))
    hole = np.hypot(x - 1000, y - 900) <= 90
    assert torch.equal(found > 0, torch.from_numpy(inside | hole))  # enclosed background is object
    assert not images.matte_plain_background(torch.full((2100, 2000, 3), 250, dtype=torch.uint8)).any()
