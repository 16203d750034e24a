"""The folder of `generate`: the earlier result stays whole until the new one is, and one process writes it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nova3d import batch, config, generation
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.fusion import FusionConfig, reconstruct
from nova3d.fusion.config import ExtractConfig
from nova3d.sampling import sample_views
from nova3d.settings import GenerateConfig, SampleConfig
from nova3d.utils.files import locked
from nova3d.views import ViewSet


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


def test_settings_made_in_python_are_refused_at_the_start_as_those_of_a_file_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"^config: elevation_deg: '120\.0' is not from -90 to 90$"):
        sample_views(SampleConfig(out=str(out), elevation_deg=120), "cpu")
    for wrong, message in (
        (GenerateConfig(sample=SampleConfig(elevation_deg=-91)), "sample.elevation_deg: '-91.0' is not from -90 to 90"),
        (GenerateConfig(turntable_frames=0), "turntable_frames: '0' is not from 1 to 3600"),
        (GenerateConfig(sample=SampleConfig(cutout="best")), "sample.cutout: 'best' is not one of"),  # type: ignore
    ):
        with pytest.raises(InputError, match=f"^config: {message}"):
            generation.generate("horse.png", out, wrong)
        with pytest.raises(InputError, match=f"^config: {message}"):
            batch.generate_all([Path("horse.png")], replace(wrong, out=str(out)))
    fusion = FusionConfig()
    fusion.pose.start = 2
    with pytest.raises(InputError, match=r"^config: pose\.start: '2\.0' is not from 0 to 1$"):
        reconstruct(None, fusion)  # type: ignore[arg-type]
    assert not out.exists()


def test_paths_may_stand_in_settings_made_in_python(tmp_path: Path) -> None:
    picture: Any = tmp_path / "absent.png"
    with pytest.raises(InputError, match=r"absent\.png' does not exist"):
        sample_views(SampleConfig(picture, out=str(tmp_path / "out")), "cpu")


@pytest.mark.parametrize(
    ("sample", "own", "expected"),
    [
        (SampleConfig(), None, None),
        (SampleConfig(depth_ratio=0.3), None, 0.3),
        (SampleConfig(depth_ratio=2.5), None, 2.5),
        (SampleConfig(depth_ratio=2.5), 0.7, 0.7),
        (SampleConfig(depth_ratio=2.5, keep_input=False), None, None),
    ],
)
def test_the_known_depth_of_the_picture_is_that_of_the_mesh(
    sample: SampleConfig, own: float | None, expected: float | None
) -> None:
    blank, cameras = torch.zeros(4, 16, 16, 3), orbit(4, size=16)
    views = ViewSet(blank, blank, blank[..., 0], cameras, trusted=(sample.keep_input, False, False, False))
    settings = GenerateConfig(sample=sample, fusion=FusionConfig(extract=ExtractConfig(depth_ratio=own)))
    fusion, warnings = generation._with_depth(settings, views)
    assert fusion.extract.depth_ratio == expected
    assert replace(fusion, extract=settings.fusion.extract) == settings.fusion
    assert ["does not reach the mesh" in warning for warning in warnings] == [True] * (not sample.keep_input)


def test_only_a_longer_object_is_framed_smaller() -> None:
    ratios = [SampleConfig(depth_ratio=ratio).framing_ratio for ratio in (None, 0.3, 1.0, 2.5)]
    assert ratios == [1, 1, 1, 2.5]
    with pytest.raises(InputError, match="depth_ratio"):
        config.load(SampleConfig, None, ["depth_ratio=0"])
