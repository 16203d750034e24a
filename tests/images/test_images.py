import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nova3d import images
from nova3d.errors import InputError


def draw(cells: list[tuple[int, int]], scale: int, size: tuple[int, int], corner: tuple[int, int]) -> Tensor:
    """RGBA [h,w,4]: red cells of `scale` pixels, the first at `corner` (x, y), on full transparency."""
    picture = torch.zeros(size[1], size[0], 4)
    for column, row in cells:
        x, y = corner[0] + column * scale, corner[1] + row * scale
        picture[y : y + scale, x : x + scale] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    return picture


def cells_of(alpha: Tensor, side: float) -> list[tuple[int, int]]:
    """The filled cells of a 3x5 letter whose five rows span `side` pixels at the centre of alpha [s,s]."""
    s, cell = alpha.shape[0], side / 5
    filled = []
    for row in range(5):
        for column in range(3):
            x, y = s / 2 + (column - 1) * cell, s / 2 + (row - 2) * cell
            if alpha[int(y), int(x)] > 0.5:
                filled.append((column, row))
    return filled


@pytest.mark.parametrize("scale", [4, 20, 43])
def test_a_letter_survives_framing_unmirrored(letter_f: list[tuple[int, int]], scale: int) -> None:
    picture = draw(letter_f, scale, (400, 300), (150, 60))
    framed = images.frame_object(picture, 90)
    assert framed.shape == (90, 90, 4)
    assert sorted(cells_of(framed[..., 3], 60)) == sorted(letter_f)  # two thirds of 90 pixels


@pytest.mark.parametrize("size", [320, 180, 100, 64, 40])
@pytest.mark.parametrize("corner", [(0, 0), (130, 150), (399, 399)])
def test_framing_centres_and_scales_exactly(size: int, corner: tuple[int, int]) -> None:
    picture = draw([(0, 0), (1, 0)], 100, (600, 500), corner)
    alpha = images.frame_object(picture, size, foreground_ratio=0.5)[..., 3]
    at = torch.arange(size) + 0.5
    centre = torch.stack([(alpha.sum(0) * at).sum(), (alpha.sum(1) * at).sum()]) / alpha.sum()
    torch.testing.assert_close(centre, torch.full((2,), size / 2), atol=1e-3, rtol=0)
    # half as long as the picture and a quarter as high
    assert float(alpha.sum()) / (size * size / 8) == pytest.approx(1, abs=1e-3)


def test_framing_never_mixes_in_the_hidden_colour() -> None:
    picture = draw([(0, 0)], 40, (100, 100), (30, 30))
    picture[..., 1][picture[..., 3] == 0] = 1.0  # bright green under the transparency
    framed = images.frame_object(picture, 17)
    assert framed[..., 1].max() < 1e-3
    assert framed[..., 0][framed[..., 3] > 0.01].min() > 0.99


def triangle_weights(n: int, m: int) -> Tensor:
    """[m,n] weights that resample n pixels to m: a triangle as wide as two of the larger pixels, float64."""
    scale = n / m
    wide = max(scale, 1.0)
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * scale
    weights = (1 - (torch.arange(n, dtype=torch.float64) + 0.5 - centre[:, None]).abs() / wide).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("width", "height"), [(16, 12), (9, 12), (40, 7), (24, 18), (31, 45)])
def test_resizing_is_a_weighted_mean_of_premultiplied_colours(width: int, height: int) -> None:
    picture = torch.rand(18, 24, 4, generator=torch.Generator().manual_seed(0))
    picture[:9, ..., 3] *= 0.1  # mostly transparent: its colours count little
    across, down = triangle_weights(24, width), triangle_weights(18, height)
    alpha = torch.einsum("yi,xj,ij->yx", down, across, picture[..., 3].double())
    colour = torch.einsum("yi,xj,ijc->yxc", down, across, (picture[..., :3] * picture[..., 3:]).double())
    resized = images.resize(picture, width, height)
    assert resized.shape == (height, width, 4)
    torch.testing.assert_close(resized[..., 3], alpha.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(resized[..., :3], (colour / alpha[..., None]).float(), atol=1e-4, rtol=0)


def test_resizing_never_mixes_in_the_hidden_colour() -> None:
    picture = draw([(0, 0)], 40, (100, 100), (30, 30))
    picture[..., 1][picture[..., 3] == 0] = 1.0  # bright green under the transparency
    resized = images.resize(picture, 17)
    assert resized.shape == (17, 17, 4)
    assert resized[..., 1].max() < 1e-3
    assert resized[..., 0][resized[..., 3] > 0.01].min() > 0.99


def test_resizing_keeps_pictures_of_that_size_and_works_on_stacks() -> None:
    pictures = torch.rand(3, 10, 14, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.resize(pictures, 14, 10), pictures)
    stack = images.resize(pictures, 6, 4)
    for i in range(3):
        torch.testing.assert_close(stack[i], images.resize(pictures[i], 6, 4))


def write(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_plain_background_is_cut_out_and_a_hole_of_its_colour_kept(tmp_path: Path) -> None:
    pixels = np.full((40, 50, 3), 245, np.uint8)
    pixels[10:30, 15:40] = (40, 80, 160)
    pixels[18:22, 25:30] = 245  # not connected to the border: part of the object
    rgba = images.read_rgba(write(tmp_path / "plain.png", pixels))
    expected = torch.zeros(40, 50)
    expected[10:30, 15:40] = 1
    assert torch.equal(rgba[..., 3], expected)
    torch.testing.assert_close(rgba[15, 20, :3], torch.tensor([40.0, 80.0, 160.0]) / 255)


def test_alpha_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[4:16, 4:16, 3] = 200
    rgba = images.read_rgba(write(tmp_path / "cut.png", pixels))
    torch.testing.assert_close(rgba, torch.from_numpy(pixels).float() / 255)


def test_a_turned_phone_picture_is_set_upright(tmp_path: Path) -> None:
    pixels = np.full((20, 40, 3), 255, np.uint8)
    pixels[5:15, 2:12] = 0  # on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown after a clockwise quarter turn
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    alpha = images.read_rgba(tmp_path / "phone.png")[..., 3]
    assert alpha.shape == (40, 20)
    assert torch.nonzero(alpha)[:, 0].max() < 20  # on top


def busy(_: Path) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)


def transparent(_: Path) -> np.ndarray:
    return np.zeros((30, 30, 4), np.uint8)


def one_pixel(_: Path) -> np.ndarray:
    pixels = np.zeros((30, 30, 4), np.uint8)
    pixels[3, 4] = 255
    return pixels


def blank(_: Path) -> np.ndarray:
    return np.full((30, 30, 3), 200, np.uint8)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (busy, ["background is not of one colour", "rembg"]),
        (transparent, ["no object"]),
        (one_pixel, ["only 1x1 pixels", "at least"]),
        (blank, ["no object"]),
    ],
)
def test_bad_pictures_say_what_to_do(tmp_path: Path, make, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "picture.png", make(tmp_path))
    with pytest.raises(InputError) as caught:
        images.read_rgba(path)
    for part in ["picture.png", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.png' does not exist"):
        images.read_rgba(tmp_path / "absent.png")
    with pytest.raises(InputError, match="does not exist"):
        images.read_rgba(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text\.png' cannot be read as an image"):
        images.read_rgba(tmp_path / "text.png")
    whole = write(tmp_path / "whole.png", busy(tmp_path)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png' cannot be read as an image"):
        images.read_rgba(tmp_path / "cut.png")


def test_a_picture_too_large_to_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "large.png", busy(tmp_path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"large\.png"):
        images.read_rgba(path)


def test_composite_and_grid() -> None:
    half = torch.tensor([[[1.0, 0.0, 0.0, 0.5]]])
    torch.testing.assert_close(images.composite(half), torch.tensor([[[1.0, 0.5, 0.5]]]))
    tiles = torch.stack([torch.full((2, 3, 3), i / 10) for i in range(3)])
    sheet = images.grid(tiles, columns=2, padding=1)
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 3)
    torch.testing.assert_close(sheet[1:3, 5:8], tiles[1])
    torch.testing.assert_close(sheet[4:6, 1:4], tiles[2])
    assert (sheet[4:6, 5:8] == 1).all()  # the empty place


def test_saved_picture_holds_the_pixels_and_the_text(tmp_path: Path) -> None:
    picture = torch.rand(5, 7, 4, generator=torch.Generator().manual_seed(0))
    images.save_image(tmp_path / "x.png", picture, {"nova3d": "made here"})
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.info["nova3d"] == "made here"
        assert np.abs(np.asarray(opened) / 255 - picture.numpy()).max() <= 0.5 / 255 + 1e-6


def test_animation_has_all_frames(tmp_path: Path) -> None:
    images.save_animation(tmp_path / "turn.gif", torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 8, 8, 3))
    with Image.open(tmp_path / "turn.gif") as opened:
        assert opened.n_frames == 4  # type: ignore[attr-defined]


def test_a_video_without_pyav_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"writing the video .*turn.mp4' needs PyAV: `pip install 'nova3d\[video\]'`"):
        images.save_animation(tmp_path / "turn.mp4", torch.zeros(2, 8, 8, 3))
    assert not list(tmp_path.iterdir())


def test_premultiplied_colours_come_back() -> None:
    picture = torch.rand(5, 7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(images.unpremultiply(images.premultiply(picture)), picture, atol=1e-6, rtol=1e-5)
    picture[..., 3] = 0
    assert (images.unpremultiply(images.premultiply(picture)) == 0).all()


def test_an_interrupted_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError("disk full")

    images.save_image(tmp_path / "x.png", torch.zeros(4, 4, 3))
    images.save_animation(tmp_path / "y.gif", torch.zeros(2, 4, 4, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(OSError, match="disk full"):
            images.save_image(tmp_path / "x.png", torch.zeros(4, 4, 3))
        with pytest.raises(OSError, match="disk full"):
            images.save_animation(tmp_path / "y.gif", torch.zeros(2, 4, 4, 3))
    assert images.read_image(tmp_path / "x.png").shape == (4, 4, 3)
    assert len(images.read_frames(tmp_path / "y.gif")) >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "y.gif"]


def test_uncomposite_is_what_composite_was_made_of():
    alpha = torch.tensor([0.0, 0.2, 0.5, 1.0])[:, None]
    rgb = torch.tensor([[0.3, 0.6, 0.9]]).expand(4, 3)
    rgba = images.uncomposite(images.composite(torch.cat([rgb, alpha], dim=-1)), alpha)
    assert torch.allclose(rgba[1:], torch.cat([rgb, alpha], dim=-1)[1:], atol=1e-6) and rgba[0].tolist() == [0, 0, 0, 0]


def write_header(path: Path, width: int, height: int) -> Path:
    """A PNG file that states its size and has no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def test_a_view_is_refused_by_its_size_before_it_is_decoded(tmp_path: Path) -> None:
    large = write_header(tmp_path / "large.png", 6000, 6000)
    with pytest.raises(InputError, match=r"6000x6000 pixels, 36 million; at most 32 million .* max_megapixels"):
        images.read_image(large)
    with pytest.raises(InputError, match="cannot be read as an image"):  # let through, it is broken
        images.read_image(large, max_megapixels=36)
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="100x100 pixels"):
        images.read_image(tmp_path / "x.png", max_megapixels=0.0099)
    assert images.read_image(tmp_path / "x.png", max_megapixels=0.01).shape == (100, 100, 3)


def test_views_are_refused_by_their_size_together(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    assert len(images.read_images([tmp_path / "x.png"] * 4, max_megapixels=0.01)) == 4
    with pytest.raises(InputError, match=r"5 pictures have 0\.05 million pixels together; at most 0\.04 million"):
        images.read_images([tmp_path / "x.png"] * 5, max_megapixels=0.01)


def test_frames_are_refused_by_their_size_together(tmp_path: Path) -> None:
    shades = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 100, 100, 3)
    images.save_animation(tmp_path / "x.gif", shades[:4])
    images.save_animation(tmp_path / "y.gif", shades)
    assert len(images.read_frames(tmp_path / "x.gif", max_megapixels=0.01)) == 4
    with pytest.raises(InputError, match=r"y\.gif.*million pixels together"):
        images.read_frames(tmp_path / "y.gif", max_megapixels=0.01)
    with pytest.raises(InputError, match="100x100 pixels"):
        images.read_frames(tmp_path / "x.gif", max_megapixels=0.005)


def test_frames_of_a_video_are_refused_by_their_size_together(tmp_path: Path) -> None:
    pytest.importorskip("av")
    images.save_animation(tmp_path / "x.mp4", torch.rand(5, 100, 100, 3))
    assert len(images.read_frames(tmp_path / "x.mp4", max_megapixels=0.0125)) == 5
    with pytest.raises(InputError, match=r"x\.mp4.*million pixels together"):
        images.read_frames(tmp_path / "x.mp4", max_megapixels=0.01)
