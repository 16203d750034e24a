"""Shards: names WebDataset understands, exact round trips, named damage."""

import json
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nova3d import cameras
from nova3d.data.shards import (
    ShardReader,
    ShardWriter,
    encode_pictures,
    encode_views,
    read_object,
    read_picture,
    shard_hash,
    write_object,
)
from nova3d.errors import InputError
from nova3d.rendering import render_object

Write = Callable[..., Path]


def test_tars_group_into_samples_by_webdataset_s_rule(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s")
    seen: list[str] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, extension = member.name.split(".", 1)  # WebDataset's split: up to the first dot
                assert extension == "json" or extension.split(".")[0] in ("rgb", "normal")
                if not seen or seen[-1] != key:
                    seen.append(key)
    assert seen == ["object0", "object1", "object2"]  # one run of members each, so streaming groups them
    assert not list(folder.glob("*.part"))


def test_views_survive_the_round_trip(tmp_path: Path, write_shards: Write, lopsided_file: Path) -> None:
    truth = render_object(lopsided_file, cameras.orbit(4, size=24), supersample=2)
    reader = ShardReader(write_shards(tmp_path / "s"))
    assert len(reader) == 3
    views = reader.views(2)
    assert (views.rgb - truth.rgb).abs().max() <= 0.5 / 255 + 1e-6
    assert (views.mask - truth.mask).abs().max() <= 0.5 / 255 + 1e-6
    assert (views.normals - truth.normals).norm(dim=-1).max() < 0.02  # 8 bits
    assert torch.equal(views.cameras.c2w, truth.cameras.c2w)
    some = reader.views(2, [3, 1])
    assert torch.equal(some.rgb, views.rgb[[3, 1]]) and torch.equal(some.cameras.c2w, truth.cameras.c2w[[3, 1]])
    assert json.loads(reader.read(1)["json"]) == {"uid": "object1"}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, write_shards: Write) -> None:
    a, b = write_shards(tmp_path / "a"), write_shards(tmp_path / "b")
    names = sorted(p.name for p in a.iterdir())
    assert names == ["index.json", "shard-00000.tar", "shard-00001.tar"]
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_flipped_byte_is_found_and_only_there(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s")
    reader = ShardReader(folder)
    offset, size = reader.samples[1]["members"]["rgb.002.png"]
    path = folder / reader.samples[1]["shard"]
    content = bytearray(path.read_bytes())
    content[offset + size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00000\.tar.*damaged.*object1"):
        reader.read(1)
    assert len(reader.read(0)) == 9  # its neighbour is sound


def test_a_truncated_or_missing_tar_is_named(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s")
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"shard-00001\.tar.*truncated.*object2"):
        ShardReader(folder).read(2)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.tar.*missing"):
        ShardReader(folder).read(2)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"samples": [], "cameras": {}, "format": 1}', "\xff"])
def test_a_missing_or_broken_index_is_one_line(tmp_path: Path, write_shards: Write, content: str | None) -> None:
    folder = write_shards(tmp_path / "s", 1)
    (folder / "index.json").unlink()
    if content is not None:
        (folder / "index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        ShardReader(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_another_format_is_refused(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        ShardReader(folder)


def test_the_shards_of_the_first_format_are_still_read() -> None:
    reader = ShardReader(Path(__file__).parents[2] / "assets/train-sample")
    views = reader.views(0)
    assert reader.index["format"] == 1
    stored = read_picture(reader.read(0)["rgb.003.png"]).float() / 255
    assert torch.equal(views.rgb[3], stored[..., :3])  # on white as they are
    assert ((stored[..., 3] > 0) & (stored[..., 3] < 1)).any() and (views.rgb[views.mask == 0] == 1).all()


def test_colours_are_stored_straight_and_nothing_behind_transparency(tmp_path: Path) -> None:
    rgba = torch.tensor([[0.8, 0.4, 0.2, 0.5], [0.8, 0.4, 0.2, 0.001]]).reshape(1, 1, 2, 4)
    members = encode_pictures("x", rgba, torch.zeros(1, 1, 2, 3), {"uid": "x"})
    pixels = read_picture(members["x.rgb.000.png"])
    assert pixels.tolist() == [[[204, 102, 51, 128], [0, 0, 0, 0]]]
    assert read_picture(members["x.normal.000.png"]).tolist() == [[[128] * 3] * 2]
    writer = ShardWriter(tmp_path / "s", cameras.orbit(1, size=2).resized(2, 1))
    writer.add("x", members)
    writer.close({})
    views = ShardReader(tmp_path / "s").views(0)
    expected = torch.tensor([204, 102, 51]) / 255 * (128 / 255) + 127 / 255  # over white
    torch.testing.assert_close(views.rgb[0, 0, 0], expected)
    assert (views.rgb[0, 0, 1] == 1).all()


def test_several_folders_are_one_set(tmp_path: Path, write_shards: Write, lopsided_file: Path) -> None:
    first = write_shards(tmp_path / "a", 3)
    rig = cameras.orbit(4, size=24)
    views = render_object(lopsided_file, rig, supersample=1, light="flat")
    writer = ShardWriter(tmp_path / "b", rig)
    writer.add("other", encode_views("other", views, {"uid": "other"}))
    writer.close({})
    both = ShardReader([first, tmp_path / "b"])
    assert [sample["uid"] for sample in both.samples] == ["object0", "object1", "object2", "other"]
    assert torch.equal(both.views(3).rgb, ShardReader(tmp_path / "b").views(0).rgb)
    assert torch.equal(both.views(0).rgb, ShardReader(first).views(0).rgb)
    write_shards(tmp_path / "c", 1)
    with pytest.raises(InputError, match=r"object 'object0' is in '.*a' and in '.*c'"):
        ShardReader([first, tmp_path / "c"])
    ShardWriter(tmp_path / "d", cameras.orbit(4, size=32)).close({})
    with pytest.raises(InputError, match=r"'.*d' was rendered with other cameras than '.*a'"):
        ShardReader([first, tmp_path / "d"])
    with pytest.raises(InputError, match="no shard folder"):
        ShardReader([])


def test_an_object_s_tar_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, members = tmp_path / "ab/x.tar", {"x.json": b"{}", "x.rgb.000.png": b"123"}
    write_object(path, members, "w")
    assert read_object(path) == members
    content = path.read_bytes()
    write_object(tmp_path / "again.tar", dict(reversed(members.items())), "other")
    assert (tmp_path / "again.tar").read_bytes() == content  # no time, owner or order in it

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_object(tmp_path / "ab/y.tar", members, "w")
    assert [p.name for p in (tmp_path / "ab").iterdir()] == ["x.tar"]
    path.write_bytes(content[:600])
    with pytest.raises(InputError, match=r"x\.tar' is damaged"):
        read_object(path)


def test_the_data_s_hash_names_the_set_and_not_its_order() -> None:
    rows = [{"uid": "a", "sha256": "1"}, {"uid": "b", "sha256": "2"}]
    assert shard_hash(rows) == shard_hash(rows[::-1])
    assert shard_hash(rows) != shard_hash([rows[0], {"uid": "b", "sha256": "3"}])


def test_members_that_the_index_repeats_are_refused_before_they_are_read(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1)
    index = json.loads((folder / "index.json").read_text())
    sample = index["samples"][0]
    whole = [0, (folder / sample["shard"]).stat().st_size]
    sample["members"] = {f"rgb.{k:03d}.png": whole for k in range(20_000)}
    (folder / "index.json").write_text(json.dumps(index))
    tracemalloc.start()
    with pytest.raises(InputError, match="damaged or truncated at object"):
        reader = ShardReader(folder)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        reader.read(0)
    assert tracemalloc.get_traced_memory()[1] - before < 50e6
    tracemalloc.stop()


def test_members_that_state_more_than_the_tar_holds_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.json")
    header.size = 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"00000000000\0" + b"00000001000\0"  # one piece, of 512 bytes
    block[483:495] = b"100000000000"  # of a file of 8 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(block) + b"{}".ljust(512) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar' is damaged: its member 'a\.json' states 8589934592 bytes"):
        read_object(path)


def test_pictures_of_members_are_refused_by_their_size() -> None:
    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    for side, message in ((6000, "36 million"), (60_000, "exceeds limit")):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        with pytest.raises(InputError, match=message):
            read_picture(b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT"))
