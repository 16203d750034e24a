"""The folder of `generate`: the earlier result stays whole until the new one is, and one process writes it."""

from pathlib import Path
from typing import Any

import pytest

from nova3d import generation
from nova3d.errors import InputError
from nova3d.utils.files import locked


def result(folder: Path, text: str) -> None:
    (folder / "views").mkdir()
    for name in ("views/transforms.json", "mesh.glb", "report.html", "record.json"):
        (folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_a_generation_that_dies_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result(tmp_path, "owl")
    (tmp_path / "mine.txt").write_text("mine")

    def dies(folder: Path, *_: Any) -> None:
        (folder / "views").mkdir()
        (folder / "views/transforms.json").write_text("horse")
        assert texts(tmp_path)["mesh.glb"] == "owl"
        raise InputError("the views show no object")

    before = texts(tmp_path)
    monkeypatch.setattr(generation, "_generate_into", dies)
    with pytest.raises(InputError, match="show no object"):
        generation.generate("horse.png", tmp_path)
    assert texts(tmp_path) == before


def test_two_generations_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another generation is at work in"):
        generation.generate("horse.png", tmp_path)
