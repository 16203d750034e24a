"""Many pictures: which files are meant, what is kept, and what a failure leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nova3d import batch, config
from nova3d.errors import InputError
from nova3d.pipeline.folder import model_hashes
from nova3d.settings import GenerateConfig, SampleConfig
from nova3d.utils import provenance
from nova3d.utils.files import names_one_file
from tests.helpers.commands import call_script


def write(path: Path, level: int = 90) -> Path:
    """A picture of a dark square on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((80, 80, 3), 255, np.uint8)
    pixels[20:60, 20:60] = level
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that were generated; instead of a model, a stand-in writes what a done folder holds."""
    names: list[str] = []

    def generate(config: GenerateConfig, **_: Any) -> None:
        from nova3d import images

        folder, image = Path(str(config.out)), config.sample.image
        names.append(Path(image).name)
        images.cut_out(image)  # fails as the real one does
        folder.mkdir(exist_ok=True)
        facts = {"image": {"sha256": provenance.hash_file(image)}, "model": model_hashes(config.sample.model)}
        entry = provenance.record("generate", to_dict(config), **facts)
        provenance.write(folder, entry)
        for name in ("mesh.glb", "report.html"):
            (folder / name).write_text("done")

    to_dict = config.to_dict
    monkeypatch.setattr("nova3d.generation.generate", generate)
    monkeypatch.setattr("nova3d.sampling.load_pipeline", lambda *_: names.append("model") or object())
    return names


def settings(out: Path, **sample: Any) -> GenerateConfig:
    return GenerateConfig(out=str(out), sample=SampleConfig(**sample))


def states(outcomes: list[batch.PictureOutcome]) -> list[tuple[str, str]]:
    return [(outcome.folder, outcome.status) for outcome in outcomes]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["2.png", "10.png", "1.jpg", "._1.jpg", "deep/3.png"]
    files = {name: write(tmp_path / name) for name in names}
    (tmp_path / "notes.txt").write_text("none")
    found = batch.find_pictures([str(tmp_path)])
    assert [path.name for path in found] == ["1.jpg", "2.png", "10.png"]
    assert batch.find_pictures([str(tmp_path / "*.png")]) == [files["10.png"], files["2.png"]]
    assert batch.find_pictures([str(tmp_path / "**/3*")]) == [files["deep/3.png"]]
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in batch.find_pictures(["1.jpg", ".", "1.jpg"])] == ["1.jpg", "2.png", "10.png"]
    write(tmp_path / "a[1].png")
    assert [path.name for path in batch.find_pictures(["a[1].png"])] == ["a[1].png"]
    texts = ("1.jpg", "absent.png", "a[1].png", ".", "*.png")
    assert [names_one_file(text) for text in texts] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("given", [["1.jpg", "2.png"], ["."], ["*.*"]])
def test_several_pictures_get_a_folder_each(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1.jpg", "2.png"):
        write(tmp_path / name)
    assert call_script(monkeypatch, "generate", *given, "--device", "cpu") == 0
    assert made == ["model", "1.jpg", "2.png"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["1", "2", "pictures.json"]


def test_a_folder_or_a_pattern_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no pictures \(.*\.png"):
        batch.find_pictures([str(tmp_path)])
    with pytest.raises(InputError, match=r"no file fits '.*\*\.png'"):
        batch.find_pictures([str(tmp_path / "*.png")])


def test_failures_are_listed_and_what_is_done_is_kept(tmp_path: Path, made: list[str]) -> None:
    pictures = [write(tmp_path / "in/a.png"), tmp_path / "in/bad.png", write(tmp_path / "in/c.png", 30)]
    pictures[1].write_text("no picture")
    out = tmp_path / "out"
    first = batch.generate_all(pictures, settings(out))
    assert states(first) == [("a", "made"), ("bad", "failed"), ("c", "made")]
    assert "cannot be read as an image" in first[1].reason and made == ["model", "a.png", "bad.png", "c.png"]
    summary = json.loads((out / "pictures.json").read_text())
    assert [row["status"] for row in summary] == ["made", "failed", "made"] and summary[1]["reason"] == first[1].reason
    made.clear()
    write(pictures[1], 10)
    (out / "c/report.html").unlink()  # an interrupted one
    again = batch.generate_all(pictures, settings(out))
    assert states(again) == [("a", "kept"), ("bad", "made"), ("c", "made")] and made == ["model", "bad.png", "c.png"]
    made.clear()
    assert {outcome.status for outcome in batch.generate_all(pictures, settings(out))} == {"kept"} and made == []


def test_results_of_another_picture_or_other_settings_are_not_touched(tmp_path: Path, made: list[str]) -> None:
    picture = write(tmp_path / "a.png")
    batch.generate_all([picture], settings(tmp_path / "out"))
    before = (tmp_path / "out/a/record.json").read_bytes()
    other_settings = batch.generate_all([picture], settings(tmp_path / "out", seed=3))
    write(picture, 200)
    other_picture = batch.generate_all([picture], settings(tmp_path / "out"))
    for outcomes in (other_settings, other_picture):
        assert outcomes[0].status == "failed" and "another picture or other settings" in outcomes[0].reason
    assert (tmp_path / "out/a/record.json").read_bytes() == before and made == ["model", "a.png"]


def test_results_of_a_model_are_kept_wherever_it_lies_and_told_from_those_of_other_weights(
    tmp_path: Path, made: list[str]
) -> None:
    """A record has the last part alone of an absolute path, which is how a shipped model is named outside a clone."""
    pictures, models = [write(tmp_path / "a.png")], [tmp_path / name / "model" for name in ("one", "copy", "other")]
    for model, weights in zip(models, ("1", "1", "2"), strict=True):
        model.mkdir(parents=True)
        (model / "model_index.json").write_text("{}")
        (model / "unet.safetensors").write_text(weights)
    for model, status in zip((models[0], *models), ("made", "kept", "kept", "failed"), strict=True):
        (outcome,) = batch.generate_all(pictures, settings(tmp_path / "out", model=str(model)))
        assert outcome.status == status
    assert "other settings" in outcome.reason and made == ["model", "a.png"]


def test_equal_names_have_folders_of_their_own(tmp_path: Path, made: list[str]) -> None:
    pictures = [write(tmp_path / f"{folder}/a.png", level) for folder, level in (("x", 10), ("y", 20), ("z", 20))]
    pictures += [write(tmp_path / "b:1.png"), write(tmp_path / "B.png"), write(tmp_path / "b.png", 50)]
    folders = [outcome.folder for outcome in batch.generate_all(pictures, settings(tmp_path / "out"))]
    hashes = [provenance.hash_file(picture)[:8] for picture in pictures]
    assert folders == [
        *(f"a-{hashes[0]}", f"a-{hashes[1]}", f"a-{hashes[1]}-2"),
        *("b_1", f"B-{hashes[4]}", f"b-{hashes[5]}"),
    ]


def test_a_mask_belongs_to_one_picture(tmp_path: Path, made: list[str]) -> None:
    pictures = [write(tmp_path / "a.png"), write(tmp_path / "b.png")]
    with pytest.raises(InputError, match=r"mask 'm\.png' belongs to one picture, and 2 are given"):
        batch.generate_all(pictures, settings(tmp_path / "out", mask="m.png"))


def test_the_command_line(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_text("no picture")
    run: Callable[..., int] = lambda *given: call_script(  # noqa: E731
        monkeypatch, "generate", "--device", "cpu", "--out", tmp_path / "out", "--image", *given
    )
    assert run(tmp_path / "in", "sample.seed=4") == 2
    shown = capsys.readouterr()
    assert f"made   {tmp_path / 'in/a.png'}: {tmp_path / 'out/a'}" in shown.out
    assert f"failed {tmp_path / 'in/b.png'}: '{tmp_path / 'in/b.png'}' cannot be read" in shown.out
    assert "error: 1 of 2 pictures failed; the reasons stand in" in shown.err and "Traceback" not in shown.err
    assert json.loads((tmp_path / "out/a/record.json").read_text())["config"]["sample"]["seed"] == 4
    assert run(tmp_path / "in/a.png", tmp_path / "in/a.png", "sample.seed=4") == 0
    assert "kept " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image", "https://example.org/a.png"], "is a URL: download the image and give the file"),
        (["--image", "absent.png"], "'absent.png' does not exist"),
        (["--image", "EMPTY"], "has no pictures"),
        (["--image", "PICTURE", "--mask", "MASK"], "has 10x10 pixels, its picture 80x80"),
        (["--image", "PICTURE", "--cutout", "best"], "cutout: 'best' is not one of"),
        (["--image", "PICTURE", "sample.elevation_deg=120"], "elevation_deg: '120.0' is not from -90 to 90"),
        (["--image", "PICTURE", "sample.max_megapixels=0.001"], "raise max_megapixels"),
        (["--config", "mini", "sample.image=EMPTY"], "it is a folder"),
    ],
)
def test_bad_input_is_one_line_and_harms_no_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    message: str,
) -> None:
    picture, empty, out = write(tmp_path / "a.png"), tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    out.mkdir()
    (out / "mesh.glb").write_text("an earlier result")
    Image.new("L", (10, 10)).save(tmp_path / "mask.png")
    for mark, path in (("EMPTY", empty), ("PICTURE", picture), ("MASK", tmp_path / "mask.png")):
        given = [text.replace(mark, str(path)) for text in given]
    assert call_script(monkeypatch, "generate", "--device", "cpu", "--out", out, *given) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert [line for line in shown if line.startswith("error: ") and message in line]
    assert (out / "mesh.glb").read_text() == "an earlier result" and not (out / "views/rgb").exists()


def test_several_workers_make_what_one_makes(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [write(tmp_path / f"{name}.png", level) for name, level in (("a", 10), ("b", 20), ("c", 30))]
    one = batch.generate_all(pictures, settings(tmp_path / "one"))
    batch.generate_all(pictures[:1], settings(tmp_path / "out"))
    made.clear()

    def pool(prepare: Any, tasks: list[GenerateConfig], workers: int, device: str, finished: Any) -> None:
        """Two processes in the order in which they happen to end; the one that has c dies."""
        assert (workers, device, [Path(task.sample.image).name for task in tasks]) == (2, "cpu", ["b.png", "c.png"])
        finished(1, None, "its process ended with exit code -9")
        finished(0, prepare(device)(tasks[0]), "")

    monkeypatch.setattr(batch, "in_pool", pool)
    told: list[tuple[int, int, str]] = []
    several = batch.generate_all(
        pictures, settings(tmp_path / "out"), progress=lambda *now: told.append(now), workers=2
    )
    assert states(several) == [("a", "kept"), ("b", "made"), ("c", "failed")] and made == ["model", "b.png"]
    assert several[2].reason == "its process ended with exit code -9"
    assert several[1] == one[1] and told == [(n, 3, "generating") for n in (1, 2, 3)]
    summary = json.loads((tmp_path / "out" / "pictures.json").read_text())
    assert [row["status"] for row in summary] == ["kept", "made", "failed"]
    with pytest.raises(InputError, match="at least 1"):
        batch.generate_all(pictures, settings(tmp_path / "out"), workers=0)
