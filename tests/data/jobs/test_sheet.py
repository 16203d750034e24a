"""Contact sheets: every chosen object is on one, with its own pictures."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nova3d import cameras
from nova3d.data.jobs.sheet import contact_sheets
from nova3d.data.shards import ShardWriter, encode_pictures, write_object
from nova3d.errors import InputError

VIEWS, SIDE = 8, 16


def members(uid: str, level: float, coverage: float) -> dict[str, bytes]:
    """An object whose colour is the grey `level` and whose normals all face +X."""
    rgba = torch.full((VIEWS, SIDE, SIDE, 4), level)
    rgba[..., 3] = 1
    rgba[:, : SIDE // 2, :, 3] = 0
    normals = torch.zeros(VIEWS, SIDE, SIDE, 3)
    normals[..., 0] = 1
    measures = {"coverage": coverage, "normals_agree": 1.0}
    return encode_pictures(uid, rgba, normals, {"measures": measures, "tags": ["thin"], "licence": "CC0-1.0"})


def levels(path: Path) -> list[int]:
    """The grey of the first picture of every row."""
    pixels = np.asarray(Image.open(path))
    assert pixels.shape[2] == 3
    column = pixels[:, 300 + 56]
    tops = range(34, pixels.shape[0], 120)
    return [int(column[top + 100, 0]) for top in tops]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """25 objects of rising grey; those with more coverage are further from the limit."""
    for i in range(25):
        uid = f"object_{i:02d}"
        folder = hashlib.sha256(uid.encode()).hexdigest()[:2]
        write_object(tmp_path / "job" / "objects" / folder / f"{uid}.tar", members(uid, i / 25, 0.03 + i / 50), "w")
    return tmp_path / "job"


def grey(i: int) -> int:
    return round(i / 25 * 255)


def test_doubtful_objects_first_then_random(job: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    paths = contact_sheets(job, tmp_path / "sheets", 14, lambda *call: calls.append(call))
    assert [path.name for path in paths] == ["sheet-00.png", "sheet-01.png"]
    assert calls == [(1, 2, "drawing, sheet-00.png"), (2, 2, "drawing, sheet-01.png")]
    shown = levels(paths[0]) + levels(paths[1])
    assert shown[:7] == [grey(i) for i in range(7)]  # the least covered
    assert len(shown) == len(set(shown)) == 14 and shown[7:] != sorted(shown[7:])
    again = contact_sheets(job, tmp_path / "again", 14)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_pictures_and_text_are_where_they_belong(job: Path, tmp_path: Path) -> None:
    (path,) = contact_sheets(job, tmp_path / "sheets", 1)
    pixels = np.asarray(Image.open(path)).astype(int)
    assert pixels.shape == (34 + 120, 300 + 12 * 116 + 12, 3)
    assert (pixels[34 + 20, 300 + 56] == 255).all()  # transparent is white
    normal = pixels[34 + 60, 300 + 6 * 116 + 8 + 56]
    assert abs(normal - [255, 128, 128]).max() <= 1
    red = (pixels[34:, :300, 0] > 150) & (pixels[34:, :300, 1] < 60)
    assert red.sum() > 20  # the tag, in alarm's colour
    assert (pixels[:30, :600].sum(axis=2) < 300).any()  # the heading


def test_shards_are_read_too(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train", cameras.orbit(VIEWS, size=SIDE), samples_per_shard=2)
    for i in range(3):
        writer.add(f"object_{i}", members(f"object_{i}", i / 25, 0.2))
    writer.close({"record": {}})
    (path,) = contact_sheets(tmp_path, tmp_path / "sheets", 10)
    assert sorted(levels(path)) == [grey(i) for i in range(3)]


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rendered objects"):
        contact_sheets(tmp_path, tmp_path / "sheets")
    (tmp_path / "shard-00000.tar").write_bytes(b"half a tar" * 200)
    with pytest.raises(InputError, match=r"shard-00000\.tar.*damaged"):
        contact_sheets(tmp_path, tmp_path / "sheets")


def test_strangers_objects_are_one_line(tmp_path: Path) -> None:
    sound = members("a", 0.5, 0.1)
    facts = json.loads(sound["a.json"])
    broken = {
        "picture": sound | {"a.rgb.000.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n"},
        "tags": sound | {"a.json": json.dumps(facts | {"tags": 3}).encode()},
        "measures": sound | {"a.json": json.dumps(facts | {"measures": {"coverage": "much"}}).encode()},
        "number": sound | {"a.json": json.dumps(facts | {"measures": 3}).encode()},
    }
    for name, content in broken.items():
        write_object(tmp_path / name / "a.tar", content, "w")
        with pytest.raises(InputError, match=r"a\.tar' is damaged"):
            contact_sheets(tmp_path / name, tmp_path / "sheets", 4)
