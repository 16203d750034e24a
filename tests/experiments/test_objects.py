"""What a folder of objects may hold, and how its meshes are found."""

from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.experiments.objects import mesh_file, object_names


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
