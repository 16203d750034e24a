"""The folder of `generate`: the earlier result stays whole until the new one is, and one process writes it."""

from pathlib import Path
from typing import Any

import pytest

from nova3d import config, generation
from nova3d.errors import InputError
from nova3d.sampling import sample_views
from nova3d.settings import GenerateConfig, SampleConfig
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


@pytest.mark.parametrize(("picture", "name"), [("in/big mug.jpeg", "big mug"), ("a/.b?.png", "b_")])
def test_without_a_folder_the_picture_names_it(
    picture: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "outputs" / name), pytest.raises(InputError, match=f"at work in 'outputs/{name}'"):
        generation.generate(picture)
    with locked(tmp_path / "outputs" / name / "views"), pytest.raises(InputError, match=f"'outputs/{name}/views'"):
        sample_views(SampleConfig(picture), "cpu")


def test_two_generations_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another generation is at work in"):
        generation.generate("horse.png", tmp_path)


@pytest.mark.parametrize(
    "change", ["turntable_frames=0", "turntable_size=8", "sample.noise_aug=-1", "sample.seed=-1", "sample.steps=-2"]
)
def test_settings_that_would_fail_at_the_end_are_refused_at_the_start(change: str) -> None:
    with pytest.raises(InputError, match=rf"'{change}': .* is not (at least|from)"):
        config.load(GenerateConfig, None, [change])
