"""What a folder of objects may hold, and how its meshes are found."""

import shutil
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.experiments.objects import mesh_file, mesh_hash, object_names
from tests.helpers.meshes import write_downloaded_scan


def test_shards_are_no_meshes_of_the_suite(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no mesh \(\.glb, .*\) and no MODEL/meshes/model\.obj$"):
        object_names(tmp_path, meshes_only=True)


def test_two_meshes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.obj", "b.glb", "a.glb"):
        (tmp_path / name).write_text("")
    for meshes_only in (True, False):
        with pytest.raises(
            InputError, match=r"^'a.glb' and 'a.obj' of '.*' are both object 'a': rename or remove one$"
        ):
            object_names(tmp_path, meshes_only=meshes_only)


def test_a_suffix_in_capitals_is_that_of_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "Box.GLB").touch()
    (tmp_path / ".hidden.glb").touch()
    assert object_names(tmp_path) == ("Box",)
    with mesh_file(tmp_path, "Box") as path:
        assert path == tmp_path / "Box.GLB"


def test_a_file_called_like_a_downloaded_scan_does_not_stand_for_it_in_its_hash(tmp_path: Path) -> None:
    write_downloaded_scan(tmp_path / "Tall.Box")
    (tmp_path / "Tall_Box.txt").write_text("a note")
    before = mesh_hash(tmp_path, "Tall_Box")
    mesh = tmp_path / "Tall.Box" / "meshes" / "model.obj"
    mesh.write_text(mesh.read_text().replace("v 0 0 0", "v 0 0 0.5"))
    assert mesh_hash(tmp_path, "Tall_Box") != before


def test_what_is_downloaded_later_is_an_object_too(tmp_path: Path) -> None:
    write_downloaded_scan(tmp_path / "Tall.Box")
    (tmp_path / "Wide.Box").mkdir()  # a download that is not complete
    assert object_names(tmp_path) == ("Tall_Box",)
    write_downloaded_scan(tmp_path / "Wide.Box")
    assert object_names(tmp_path) == ("Tall_Box", "Wide_Box")
    with mesh_file(tmp_path, "Wide_Box") as path:
        assert path.is_file()
    shutil.rmtree(tmp_path / "Tall.Box")
    assert object_names(tmp_path) == ("Wide_Box",)


def test_mesh_files_and_downloaded_scans_of_one_folder_are_all_taken(tmp_path: Path) -> None:
    for name in ("Tall.Box", "Flat.obj"):
        write_downloaded_scan(tmp_path / name)
    (tmp_path / "cup.glb").write_text("a cup")
    assert object_names(tmp_path) == ("Flat_obj", "Tall_Box", "cup")
    with mesh_file(tmp_path, "cup") as path:
        assert path == tmp_path / "cup.glb"
    with mesh_file(tmp_path, "Flat_obj") as path:
        assert path.name == "model.obj" and path.parent != tmp_path / "Flat.obj" / "meshes"  # turned
    assert len({mesh_hash(tmp_path, name) for name in object_names(tmp_path)}) == 3
    (tmp_path / "Tall_Box.ply").touch()
    for find in (object_names, lambda folder: mesh_hash(folder, "Tall_Box")):
        with pytest.raises(InputError, match=r"^'Tall_Box.ply' and 'Tall.Box' of '.*' are both object 'Tall_Box': re"):
            find(tmp_path)


def test_a_downloaded_scan_is_wanted_by_its_name_or_its_folder_s(tmp_path: Path) -> None:
    for name in ("Tall.Box", "Wide.Box"):
        write_downloaded_scan(tmp_path / name)
    (tmp_path / "cup.v1.glb").touch()
    assert object_names(tmp_path, ["Tall.Box"]) == object_names(tmp_path, ["Tall_Box", "Tall.Box"]) == ("Tall_Box",)
    assert object_names(tmp_path, ["cup.v1"]) == ("cup.v1",)
    with pytest.raises(InputError, match=r"has no object Red\.Box, cup_v1$"):
        object_names(tmp_path, ["cup_v1", "Red.Box", "Wide.Box"])


def test_one_object_is_found_without_a_look_into_the_others_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Tall.Box", "Wide.Box"):
        write_downloaded_scan(tmp_path / name)
    looked = Path.is_file

    def is_file(path: Path) -> bool:
        assert "Wide.Box" not in path.parts
        return looked(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    mesh_hash(tmp_path, "Tall_Box")
    with mesh_file(tmp_path, "Tall_Box") as path:
        assert path.name == "model.obj"
