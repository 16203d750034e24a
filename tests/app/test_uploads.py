"""Uploads: what is taken, and what is refused before it does harm."""

import io
import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from nova3d.app import uploads
from nova3d.app.uploads import take_picture, take_views
from nova3d.errors import InputError


def png(size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format="PNG")
    return file.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_picture_is_copied_under_a_safe_name(tmp_path: Path) -> None:
    source = tmp_path / ".a:b?.png"
    source.write_bytes(png())
    copy = take_picture(source, tmp_path / "own")
    assert copy == tmp_path / "own" / "a_b_.png" and copy.read_bytes() == source.read_bytes()
    (tmp_path / "a.html").write_text("<script>")
    with pytest.raises(InputError, match=r"'a.html' is no picture: PNG, JPG, .* are read"):
        take_picture(tmp_path / "a.html", tmp_path / "own")


def test_views_come_as_files_and_as_zip(tmp_path: Path) -> None:
    given = [tmp_path / name for name in ("0.png", "1.png", "transforms.json")]
    for path in given:
        path.write_bytes(png())
    folder = take_views(given, tmp_path / "a", 10**6)
    assert folder == tmp_path / "a" and names(folder) == ["0.png", "1.png", "transforms.json"]
    files = {"mug/rgb/0.png": png(), "mug/transforms.json": b"{}", "mug/run.py": b"1"}
    added = {"__MACOSX/mug/0.png": b"x", "mug/._0.png": b"x", "mug/.DS_Store": b"x"}
    zipped = archive(tmp_path / "v.zip", files | added)
    folder = take_views([zipped], tmp_path / "a", 10**6)  # what was there goes
    assert folder == tmp_path / "a" / "mug" and names(folder) == ["rgb/0.png", "transforms.json"]


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "a\\..\\evil.png", "C:evil.png", "a/ /evil.png"]
)
def test_a_zip_file_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    zipped = archive(tmp_path / "v.zip", {"ok.png": png(), name: png()})
    with pytest.raises(InputError, match=r"entry of 'v.zip' .* cannot be a file name"):
        take_views([zipped], tmp_path / "x" / "y", 10**6)
    assert names(tmp_path) == ["v.zip", "x/y/ok.png"] and not Path("/etc/evil.png").exists()


def test_links_in_a_zip_file_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as opened:
        link = zipfile.ZipInfo("secret.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
        opened.writestr("0.png", png())
    assert names(take_views([tmp_path / "v.zip"], tmp_path / "a", 10**6)) == ["0.png"]


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.zip", {f"{i}.png": bytes(600_000) for i in range(10)})
    assert bomb.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"'bomb.zip' unpacks to more than is read"):
        take_views([bomb], tmp_path / "a", 1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) <= 4_000_000
    many = archive(tmp_path / "many.zip", {f"{i}.png": b"x" for i in range(uploads.MOST_FILES + 1)})
    with pytest.raises(InputError, match="501 files; at most 500"):
        take_views([many], tmp_path / "b", 1_000_000)


def test_pictures_that_claim_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    large = png((7_000, 7_000), "1")
    assert len(large) < 20_000
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(large)
    with pytest.raises(InputError, match="the views have 245 million pixels together; at most 200 million"):
        take_views([tmp_path / f"{i}.png" for i in range(5)], tmp_path / "a", 10**6)


def test_what_holds_no_views_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no zip file")
    (tmp_path / "notes.txt").write_text("x")
    archive(tmp_path / "empty.zip", {"readme.md": b"x"})
    archive(tmp_path / "clash.zip", {"a.png": png(), "a.png/b.png": png()})
    for name, message in (
        ("broken.zip", "'broken.zip' cannot be unpacked"),
        ("notes.txt", "'notes.txt' is no view"),
        ("empty.zip", "the upload holds no views"),
        ("clash.zip", "'clash.zip' cannot be unpacked"),
    ):
        with pytest.raises(InputError, match=message):
            take_views([tmp_path / name], tmp_path / "a", 10**6)
