"""Sources: every object once with its licence, and no file that is not the one described. No network."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from nova3d.data.sources import Asset, SourceConfig, make_source, read_uids
from nova3d.data.sources.licences import licence_url, spdx
from nova3d.errors import InputError
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.reasons import Reason, RenderError

GLB = trimesh.exchange.gltf.export_glb(trimesh.Scene(trimesh.creation.box()))
GLB_SHA = hashlib.sha256(GLB).hexdigest()


def reason_of(action: Any) -> Reason:
    with pytest.raises(RenderError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value.reason


# Lists and licences


def test_uid_lists_in_every_form(tmp_path: Path) -> None:
    text = tmp_path / "uids.txt"
    text.write_text("# the good ones\nb.glb\n\na  # twice\na\nc.v2\n")
    assert read_uids(text) == ["b", "a", "c_v2"]
    for content in (["b", "a", "c_v2"], {"good": ["b", "a"], "best": ["a", "c_v2"]}, {"b": 1, "a": 2, "c_v2": [3]}):
        path = tmp_path / "uids.json"
        path.write_text(json.dumps(content))
        assert read_uids(path) == ["b", "a", "c_v2"]
    for broken in ("[1, 2]", "{", "3", "[]"):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"uids.json"):
            read_uids(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_uids(tmp_path / "absent.txt")


def test_licences_have_one_spelling() -> None:
    assert spdx("by") == spdx(" CC-by-4.0 ") == spdx("Creative Commons Attribution 4.0 International") == "CC-BY-4.0"
    assert spdx("by-nc-sa") == "CC-BY-NC-SA-4.0" and spdx("house rules ") == "house rules"
    assert licence_url("by").endswith("/by/4.0/") and licence_url("house rules") == ""


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="kind 'shapenet'"):
        make_source(SourceConfig(kind="shapenet"))


# A folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.glb", "a.v1.PLY", "notes.txt", "deeper/c.obj"):
        (folder / name).write_bytes(GLB)
    rows = [
        {"name": "a.v1", "licence": "by", "attribution": "Ann", "source_repo": "example.org/a", "sha256": GLB_SHA},
        {"name": "elsewhere", "licence": "MIT"},
    ]
    (tmp_path / "licences.json").write_text(json.dumps({"objects": rows}))
    return folder


def test_folder_lists_every_mesh_once(folder: Path) -> None:
    config = SourceConfig(path=str(folder), licences=str(folder.parent / "licences.json"))
    calls: list[tuple[int, int, str]] = []
    first, second = make_source(config).assets(lambda *call: calls.append(call))
    assert calls == [(1, 2, "reading, a.v1.PLY"), (2, 2, "reading, b.glb")]
    assert first == Asset(
        uid="a_v1",
        source="folder",
        path=str(folder / "a.v1.PLY"),
        url="example.org/a",
        sha256=GLB_SHA,
        size_bytes=len(GLB),
        licence="CC-BY-4.0",
        attribution="Ann",
        title="a.v1",
    )
    assert (second.uid, second.licence, second.sha256) == ("b", "", "")
    deep = make_source(dataclasses.replace(config, recursive=True)).assets()
    assert [asset.uid for asset in deep] == ["a_v1", "b", "c"]


def test_uid_lists_narrow_a_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "some.txt").write_text("b\nabsent\n")
    listed = make_source(SourceConfig(path=str(folder), list=str(folder / "some.txt"))).assets()
    assert [asset.uid for asset in listed] == ["b"] and "1 uids" in caplog.text and "absent" in caplog.text
    rest = make_source(SourceConfig(path=str(folder), exclude_list=str(folder / "some.txt"))).assets()
    assert [asset.uid for asset in rest] == ["a_v1"]
    (folder / "some.txt").write_text("absent")
    with pytest.raises(InputError, match="leaves no object"):
        make_source(SourceConfig(path=str(folder), list=str(folder / "some.txt"))).assets()


def test_unusable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make_source(SourceConfig(path=str(tmp_path / "absent"))).assets()
    (folder / "deeper" / "c.obj").unlink()
    with pytest.raises(InputError, match="no meshes"):
        make_source(SourceConfig(path=str(folder / "deeper"))).assets()
    (folder / "a_v1.glb").write_bytes(GLB)
    with pytest.raises(InputError, match=r"a\.v1\.PLY.*same uid 'a_v1'"):
        make_source(SourceConfig(path=str(folder))).assets()
    (folder / "a_v1.glb").unlink()
    for content in ("{}", '{"objects": [{"licence": "MIT"}]}', "nonsense"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json"):
            make_source(SourceConfig(path=str(folder), licences=str(tmp_path / "bad.json"))).assets()
    twice = [{"name": "b", "licence": "MIT"}, {"name": "b", "licence": "CC0-1.0"}]
    (tmp_path / "bad.json").write_text(json.dumps({"objects": twice}))
    with pytest.raises(InputError, match="two licences"):
        make_source(SourceConfig(path=str(folder), licences=str(tmp_path / "bad.json"))).assets()


def test_a_fetched_file_is_the_one_described(folder: Path, tmp_path: Path) -> None:
    source = make_source(SourceConfig(path=str(folder)))
    asset = Asset(uid="b", source="folder", path=str(folder / "b.glb"), sha256=GLB_SHA)
    assert source.fetch(asset, tmp_path) == folder / "b.glb"
    assert source.fetch(dataclasses.replace(asset, sha256=""), tmp_path) == folder / "b.glb"

    (folder / "b.glb").write_bytes(GLB + b"\0")
    assert reason_of(lambda: source.fetch(asset, tmp_path)) is Reason.FETCH_HASH
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", b"\n <!DOCTYPE html><p>404"):
        (folder / "b.glb").write_bytes(content)
        assert reason_of(lambda: source.fetch(asset, tmp_path)) is Reason.PARSE_ERROR
    (folder / "b.glb").unlink()
    assert reason_of(lambda: source.fetch(asset, tmp_path)) is Reason.FETCH_FAILED


# Google Scanned Objects


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """One model as Gazebo's server packs it, one already converted."""
    model = tmp_path / "scans" / "Red.Duck"
    for sub in ("meshes", "materials/textures"):
        (model / sub).mkdir(parents=True)
    mesh = "mtllib model.mtl\nv 0 0 0\nv 1 0 0\nv 0 0 2\nv 0 -3 0\nvt 0 0\nvn 0 -1 0\nusemtl m\n"
    faces = "f 1/1/1 2/1/1 3/1/1\nf 1/1/1 4/1/1 3/1/1\n"
    (model / "meshes" / "model.obj").write_text(mesh + faces)
    (model / "meshes" / "model.mtl").write_text("newmtl m\nmap_Kd texture.png\n")
    Image.fromarray(np.full((4, 4, 3), (200, 10, 30), np.uint8)).save(model / "materials/textures/texture.png")
    metadata = 'model {\n  file: "x.sdf"\n}\nname: "A red duck"\nlegal {\n  license: "Creative Commons Attribution 4.0 '
    (model / "metadata.pbtxt").write_text(metadata + 'International"\n}\ncategories {\n  first: "Toys"\n}\n')
    (tmp_path / "scans" / "Boot.glb").write_bytes(GLB)
    (tmp_path / "scans" / "empty").mkdir()
    return tmp_path / "scans"


def test_scans_know_their_licence(scans: Path) -> None:
    boot, duck = make_source(SourceConfig(kind="gso", path=str(scans))).assets()
    assert (boot.uid, boot.title, boot.licence, boot.category) == ("Boot", "Boot", "CC-BY-4.0", "")
    assert (duck.uid, duck.title, duck.licence, duck.category) == ("Red_Duck", "A red duck", "CC-BY-4.0", "Toys")
    assert "Downs" in duck.attribution and duck.url.endswith("Red.Duck") and "Google LLC" in boot.attribution
    (scans / "Red.Duck" / "metadata.pbtxt").write_text('license: "Something else"\n')
    assert make_source(SourceConfig(kind="gso", path=str(scans))).assets()[1].licence == "Something else"


def test_scans_come_upright_and_textured(scans: Path, tmp_path: Path) -> None:
    source = make_source(SourceConfig(kind="gso", path=str(scans)))
    boot, duck = source.assets()
    assert source.fetch(boot, tmp_path) == scans / "Boot.glb"
    mesh = load_mesh(source.fetch(duck, tmp_path))
    low, high = mesh.vertices.min(dim=0).values, mesh.vertices.max(dim=0).values
    assert low.tolist() == [0, 0, 0] and high.tolist() == [1, 2, 3]  # up 2 was z, front 3 was -y
    assert mesh.normals[0].tolist() == [0, 0, 1]
    assert (mesh.textures[0][0, 0] * 255).round().tolist() == [200, 10, 30]


def test_folders_without_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no models"):
        make_source(SourceConfig(kind="gso", path=str(tmp_path))).assets()
    with pytest.raises(InputError, match="does not exist"):
        make_source(SourceConfig(kind="gso", path=str(tmp_path / "absent"))).assets()
    for name in ("Tall.Box", "Tall_Box"):
        (tmp_path / name / "meshes").mkdir(parents=True)
        (tmp_path / name / "meshes" / "model.obj").touch()
    with pytest.raises(InputError, match=r"^'Tall.Box' and 'Tall_Box' have the same uid 'Tall_Box': rename"):
        make_source(SourceConfig(kind="gso", path=str(tmp_path))).assets()


def test_licences_beside_the_meshes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(GLB)
    rows = [{"name": "a", "licence": "cc0", "attribution": "Ann"}]
    (tmp_path / "licences.json").write_text(json.dumps({"objects": rows}))
    asset = make_source(SourceConfig(path=str(tmp_path))).assets()[0]
    assert (asset.licence, asset.attribution) == ("CC0-1.0", "Ann")
    (tmp_path / "own.json").write_text(json.dumps({"objects": [rows[0] | {"licence": "by"}]}))
    named = make_source(SourceConfig(path=str(tmp_path), licences=str(tmp_path / "own.json"))).assets()[0]
    assert named.licence == "CC-BY-4.0"  # what is named beats what lies there
    (tmp_path / "licences.json").write_text("[]")
    with pytest.raises(InputError, match=r"licences.json' must hold a JSON object"):
        make_source(SourceConfig(path=str(tmp_path))).assets()
