"""Names from files that become paths: a uid of a plan, of an index or of a list never leads out of its folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit
from nova3d.data.jobs import job
from nova3d.data.jobs.config import RenderConfig
from nova3d.data.jobs.fetch import Fetcher
from nova3d.data.jobs.plan import write_plan
from nova3d.data.jobs.verify import verify
from nova3d.data.shards import ShardReader, ShardWriter, encode_pictures, read_object, write_object
from nova3d.data.sources import Asset, SourceConfig, make_source
from nova3d.data.sources.base import UID_BYTES, uid_of
from nova3d.errors import InputError
from nova3d.rendering.engine import EngineConfig
from nova3d.utils.files import COMPONENT_BYTES, check_component

PATHS = ("../../victim", "/etc", "a/b", "a\\b", "..", ".", "", ".hidden", "a\0b", "a\nb", "caf\udce9", "x" * 200, " a")


@pytest.mark.parametrize("uid", [*PATHS, "a.b", 5, None, ["a"]])
def test_a_uid_that_is_a_path_is_no_asset(uid: object) -> None:
    with pytest.raises(InputError, match="uid"):
        Asset.from_row({"uid": uid, "source": "folder"})


def test_columns_of_a_row_have_their_types() -> None:
    assert Asset.from_row({"uid": "a", "source": "x", "size_bytes": 5, "other": []}) == Asset("a", "x", size_bytes=5)
    with pytest.raises(InputError, match="path cannot be '7'"):
        Asset.from_row({"uid": "a", "source": "x", "path": 7})


def test_every_file_name_gives_a_uid() -> None:
    for name in (*PATHS, "a.b.c", "é" * 100, "what?"):
        uid = uid_of(name)
        assert check_component(uid, "uid", UID_BYTES) == uid and "." not in uid and uid == uid_of(uid)
    assert uid_of("chair_2.v1") == "chair_2_v1" and uid_of("two words") == "two words"
    assert uid_of("x" * 200) != uid_of("x" * 201)  # a cut name keeps apart what it was cut from


def plan_with(tmp_path: Path, uid: str) -> RenderConfig:
    source = tmp_path / "src"
    source.mkdir(exist_ok=True)
    trimesh.creation.box().export(source / "box.glb")
    config = RenderConfig(
        source=SourceConfig(path=str(source)),
        engine=EngineConfig(supersample=1),
        size=16,
        preset="ortho4",
        out=str(tmp_path / "job"),
    )
    config.pool.workers, config.pool.scratch = 1, str(tmp_path / "scratch")
    plan = write_plan(config)
    rows = [row | {"uid": uid} for row in plan.rows()]
    (plan.folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_a_plan_of_paths_renders_nothing_and_removes_nothing(tmp_path: Path, form: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    config = plan_with(tmp_path, str(victim) if form == "absolute" else "../../../victim")
    before = sorted(tmp_path.rglob("*.tar"))
    with pytest.raises(InputError, match=r"plan\.jsonl', row 1: uid '.*' cannot be a file name") as caught:
        job.run(config)
    assert "\n" not in str(caught.value)
    assert (victim / "thesis.txt").read_text() == "years of work" and sorted(tmp_path.rglob("*.tar")) == before


def test_a_plan_that_is_not_json_is_named_by_its_line(tmp_path: Path) -> None:
    config = plan_with(tmp_path, "box")
    with (Path(config.out) / "plan.jsonl").open("a") as file:
        file.write("[1, 2]\n")
    with pytest.raises(InputError, match=r"plan\.jsonl', line 2 must hold a JSON object, not a list"):
        job.run(config)


def test_what_was_fetched_is_removed_only_below_the_scratch_folder(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "a").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    fetcher = Fetcher(lambda asset, folder: folder, tmp_path / "scratch")
    fetcher.discard("a")
    fetcher.discard("a")  # is gone already
    with pytest.raises(InputError, match="uid"):
        fetcher.discard("../victim")
    (tmp_path / "scratch" / "link").symlink_to(tmp_path / "victim")
    fetcher.discard("link")
    assert (tmp_path / "victim").is_dir() and list((tmp_path / "scratch").iterdir()) == []


def shards(folder: Path) -> Path:
    writer = ShardWriter(folder, orbit(2, size=8))
    writer.add("a", encode_pictures("a", torch.zeros(2, 8, 8, 4), torch.zeros(2, 8, 8, 3), {}))
    writer.close({})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uid": "../a"}, "uid '../a' cannot be a file name"),
        ({"shard": "../secret.tar"}, "shard '../secret.tar' cannot be a file name"),
        ({"shard": "/etc/passwd"}, "cannot be a file name"),
        ({"members": {"json": [-1, 5]}}, "members without a place"),
        ({"members": {"json": [0, 1e3]}}, "members without a place"),
        ({"members": [1]}, "broken index"),
        ({"sha256": 3}, "no checksum"),
    ],
)
def test_an_index_names_shards_beside_it_alone(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = shards(tmp_path / "s")
    index = json.loads((folder / "index.json").read_text())
    index["samples"][0] |= change
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        ShardReader(folder)


def test_sizes_of_an_index_are_not_believed(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    index = json.loads((folder / "index.json").read_text())
    index["samples"][0]["members"]["json"] = [512, 1 << 60]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="damaged or truncated at object 'a'"):
        ShardReader(folder).read(0)


@pytest.mark.parametrize("uid", ["x" * 110, "x" * 90, uid_of("x" * 110)])
def test_long_names_are_written_and_read_back(tmp_path: Path, uid: str) -> None:
    members = encode_pictures(uid, torch.zeros(2, 8, 8, 4), torch.zeros(2, 8, 8, 3), {"uid": uid})
    write_object(tmp_path / "object.tar", members, "w0")
    assert read_object(tmp_path / "object.tar") == members
    if len(uid) > COMPONENT_BYTES:  # an index does not hold it
        return
    writer = ShardWriter(tmp_path / "shards", orbit(2, size=8))
    writer.add(uid, members)
    writer.close({})
    assert verify(tmp_path / "shards").problems == []
    assert list(tmp_path.glob("*.part")) == []


def test_names_that_are_not_utf8_and_hidden_files_do_not_end_a_plan(tmp_path: Path) -> None:
    box = tmp_path / "box.glb"
    trimesh.Trimesh(np.eye(3), [[0, 1, 2]]).export(box)
    source = tmp_path / "src"
    source.mkdir()
    for name in (b"a.glb", b"caf\xe9.glb", b"._a.glb"):
        shutil.copy(box, os.fsdecode(os.fsencode(source) + b"/" + name))
    config = RenderConfig(source=SourceConfig(path=str(source)), out=str(tmp_path / "job"), size=16)
    assets = {asset.uid: asset for asset in write_plan(config).assets()}
    assert set(assets) == {"a", "caf_"} and assets["caf_"].title == "caf\ufffd"
    fetched = make_source(config.source).fetch(assets["caf_"], tmp_path / "scratch")
    assert fetched.read_bytes() == box.read_bytes()
