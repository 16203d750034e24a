"""Rendering a folder: good meshes into shards, bad ones into the manifest, whatever the number of workers."""

import json
import shutil
from pathlib import Path

import pytest

from nova3d.data.render.job import RenderConfig, render_folder
from nova3d.data.shards import ShardReader
from nova3d.errors import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, lopsided_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in ("a.ply", "c.v2.ply"):
        shutil.copyfile(lopsided_file, folder / name)
    (folder / "b.glb").write_bytes(b"not a mesh")
    (folder / "notes.txt").write_text("ignored")
    (folder / "licences.json").write_text(
        json.dumps({"objects": [{"name": "a", "licence": "CC0-1.0", "attribution": "me", "other": 1}]})
    )
    return folder


def settings(source: Path, out: Path, workers: int) -> RenderConfig:
    return RenderConfig(
        str(source),
        str(out),
        str(source / "licences.json"),
        size=16,
        supersample=1,
        workers=workers,
        samples_per_shard=1,
    )


def test_bad_meshes_become_rows_with_reasons(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    one, two = tmp_path / "one", tmp_path / "two"
    index = render_folder(settings(source, one, 1), lambda done, total, _: calls.append((done, total)))
    assert index == one / "index.json" and calls == [(1, 3), (2, 3), (3, 3)]
    rows = [json.loads(line) for line in (one / "manifest.jsonl").read_text().splitlines()]
    assert [r["state"] for r in rows] == ["done", "refused", "done"]
    assert "b.glb" in rows[1]["reason"] and rows[1]["shard"] == ""
    assert rows[0]["licence"] == "CC0-1.0" and "other" not in rows[0] and len(rows[0]["source_sha256"]) == 64
    reader = ShardReader(one)
    assert len(reader) == 2 and len(reader.views(0)) == 16
    assert all("." not in row["uid"] for row in reader.samples)  # a dot would break WebDataset's grouping
    assert reader.index["record"]["config"]["size"] == 16

    render_folder(settings(source, two, 2))
    tars = sorted(p.name for p in one.glob("*.tar"))
    assert len(tars) == 2
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tars)


def test_unusable_sources_are_refused(tmp_path: Path, lopsided_file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        render_folder(RenderConfig(str(tmp_path / "none"), str(tmp_path / "out")))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no meshes"):
        render_folder(RenderConfig(str(empty), str(tmp_path / "out")))
    (empty / "a.ply").write_bytes(b"broken")
    with pytest.raises(InputError, match="none of the 1 meshes"):
        render_folder(RenderConfig(str(empty), str(tmp_path / "out"), size=16, workers=1))
    shutil.copyfile(lopsided_file, empty / "a.obj")
    with pytest.raises(InputError, match="share the name 'a'"):
        render_folder(RenderConfig(str(empty), str(tmp_path / "out")))
    with pytest.raises(InputError, match="light 'dark'"):
        render_folder(RenderConfig(str(empty), str(tmp_path / "out"), light="dark"))
    (empty / "a.obj").unlink()
    with pytest.raises(InputError, match="licence file"):
        render_folder(RenderConfig(str(empty), str(tmp_path / "out"), str(tmp_path / "none.json")))
