"""A picture means the same as a file, a Pillow image, an array and a tensor."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms

from nova3d import images
from nova3d.errors import InputError

GREEN = (60, 180, 60)


def disc(
    size: int = 80, colour: tuple[int, int, int] = (200, 40, 40), ground: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [size,size,3] of a disc of a quarter of the side, and where it is."""
    y, x = np.mgrid[:size, :size] + 0.5
    inside = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 4) ** 2
    return np.where(inside[..., None], np.uint8(colour), np.uint8(ground)), inside


def adobe_profile() -> bytes:
    """A profile with Adobe RGB's primaries (D50-adapted) and gamma 2.2, by the layout of ICC version 2."""
    fixed = lambda value: round(value * 65536).to_bytes(4, "big", signed=True)  # noqa: E731
    xyz = lambda *v: b"XYZ \0\0\0\0" + b"".join(map(fixed, v))  # noqa: E731
    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + round(2.2 * 256).to_bytes(2, "big") + b"\0\0"
    name = b"Adobe RGB alike\0"
    text = b"desc\0\0\0\0" + len(name).to_bytes(4, "big") + name + bytes(78)
    text += bytes(-len(text) % 4)
    tags = {
        b"desc": text, b"cprt": b"text\0\0\0\0CC0\0", b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    offset, table, body = 132 + 12 * len(tags), len(tags).to_bytes(4, "big"), b""
    for key, data in tags.items():
        table += key + (offset + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + bytes(-len(data) % 4)
    head = bytearray(128)
    head[:4] = (128 + len(table) + len(body)).to_bytes(4, "big")
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"mntrRGB XYZ ", b"acsp"
    head[68:80] = fixed(0.9642) + fixed(1) + fixed(0.8249)
    return bytes(head) + table + body


def test_one_picture_in_every_form(tmp_path: Path) -> None:
    pixels, _ = disc()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        pixels,
        torch.from_numpy(pixels),
    ]
    for form in forms:
        read = images.decode(form)
        assert read.dtype == torch.uint8 and torch.equal(read, torch.from_numpy(pixels))
    floats = images.decode(pixels.astype(np.float64) / 255)
    assert floats.dtype == torch.float32
    torch.testing.assert_close(floats, torch.from_numpy(pixels) / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    _, inside = disc()
    levels = np.where(inside, 40000, 65535).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / f"grey{suffix}")
    for form in (tmp_path / f"grey{suffix}", Image.open(tmp_path / f"grey{suffix}"), levels):
        read = images.decode(form).float()
        scale = 255 if read.max() <= 1 else 1
        assert abs(float(read[40, 40, 0]) * scale - 155.6) < 0.5 and float(read[0, 0, 1]) * scale == 255  # 40000 / 257
        assert read.shape == (80, 80, 3)


def test_a_transparent_level_of_16_bit_grey(tmp_path: Path) -> None:
    _, inside = disc()
    Image.fromarray(np.where(inside, 40000, 300).astype(np.uint16)).save(tmp_path / "trns.png", transparency=300)
    read = images.decode(tmp_path / "trns.png")
    assert read.shape[-1] == 4 and np.array_equal(read[..., 3].numpy() == 255, inside)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".jpg"),
        ("RGB", ".webp"),
        *((mode, suffix) for mode in ("RGB", "RGBA", "P") for suffix in (".png", ".tif")),
    ],
)
def test_an_icc_profile_is_honoured(tmp_path: Path, mode: str, suffix: str) -> None:
    picture = Image.new("RGB", (32, 32), GREEN)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    picture.save(
        tmp_path / f"a{suffix}", icc_profile=adobe_profile(), **({"lossless": True} if suffix == ".webp" else {})
    )
    for form in (tmp_path / f"a{suffix}", Image.open(tmp_path / f"a{suffix}")):
        colour = images.decode(form)[16, 16].int()
        assert (colour[:3] - torch.tensor([0, 181, 42])).abs().max() <= (4 if suffix == ".jpg" else 2)
        assert len(colour) == 3 or int(colour[3]) == 255


def test_srgb_and_damaged_profiles_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("srgb", srgb), ("bad", b"not a profile"), ("cut", adobe_profile()[:150])):
        Image.new("RGB", (8, 8), GREEN).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert tuple(images.decode(tmp_path / f"{name}.png")[0, 0].tolist()) == GREEN
    assert [record.message.count("is ignored") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_files_and_pillow_images(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    # How a camera that was held so stores the scene: the inverse of what a viewer does.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert np.array_equal(images.decode(form).numpy(), upright)


def test_avif_opens(tmp_path: Path) -> None:
    pixels, inside = disc(240)
    Image.fromarray(pixels).save(tmp_path / "a.avif", quality=95)
    read = images.decode(tmp_path / "a.avif")
    assert (read[120, 120].int() - torch.tensor([200, 40, 40])).abs().max() <= 8
    assert abs(int((images.cut_out(tmp_path / "a.avif").mask > 127).sum()) - inside.sum()) < 0.03 * inside.sum()


def test_heic_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))  # whatever it is called
    with pytest.raises(InputError, match=r"photo\.jpg' is a HEIC picture.*nova3d\[heic\]"):
        images.decode(tmp_path / "photo.jpg")


def test_a_picture_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"large\.png' has 200x100 pixels.*raise max_megapixels"):
        images.decode(tmp_path / "large.png", max_megapixels=0.01)
    with pytest.raises(InputError, match="13000x13000"):
        images.decode(np.broadcast_to(np.uint8(0), (13000, 13000, 3)))


def test_a_raised_limit_reads(tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    assert images.decode(tmp_path / "large.png", max_megapixels=0.02).shape == (100, 200, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), "channels last"),
        (np.zeros((8, 9, 2), np.uint8), "channels last"),
        (np.zeros((0, 9, 3), np.uint8), "shape"),
        (np.full((8, 9, 3), 255.0), "outside"),
        (np.full((8, 9, 3), np.nan), "outside"),
        (np.zeros((8, 9, 3), np.int64), "uint8"),
        (np.zeros((8, 9, 3), bool), "uint8"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        images.decode(array)


def test_urls_and_folders_are_named(tmp_path: Path) -> None:
    for url in ("https://example.org/a.png", Path("https://example.org/a.png")):
        with pytest.raises(InputError, match="is a URL: download"):
            images.decode(url)
    with pytest.raises(InputError, match="it is a folder"):
        images.decode(tmp_path)


def test_a_truncated_pillow_image_is_one_line() -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    with pytest.raises(InputError, match="cannot be read") as caught:
        images.decode(cut)
    assert "\n" not in str(caught.value)


def test_formats_that_start_a_program_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    for name in ("drawing.eps", "photo.png"):
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\nshowpage\n")
        with pytest.raises(InputError, match="cannot identify image file"):
            images.decode(tmp_path / name)
        with pytest.raises(InputError, match="cannot identify image file"):
            images.read_image(tmp_path / name)
