"""From configs to view folders: scripts/sample.py and the functions behind it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nova3d import config, generation, images, layouts
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.generation import GenerateConfig
from nova3d.pipeline import Nova3DPipeline
from nova3d.pipeline.folder import model_hashes, model_limits
from nova3d.pipeline.memory import LOW_MEMORY, Memory
from nova3d.pipeline.pipeline import prepare_image
from nova3d.sampling import SampleConfig, detail_view, load_pipeline, sample_views
from nova3d.settings import results_folder
from nova3d.views import ViewSet, load_detail, match_detail
from tests.helpers.commands import call_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(make_pipeline: Callable[..., Nova3DPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path, red: Tensor) -> Path:
    images.save_image(tmp_path / "red.png", red)
    return tmp_path / "red.png"


def test_every_shipped_config_loads() -> None:
    loaded = [config.load(SampleConfig, path) for path in sorted((ROOT / "configs/sample").glob("*.yaml"))]
    loaded += [config.load(GenerateConfig, path).sample for path in sorted((ROOT / "configs/generate").glob("*.yaml"))]
    assert len(loaded) >= 3 and {entry.dtype for entry in loaded} == {"float32", "bfloat16"}


def test_the_documented_keys_of_a_config_are_its_keys() -> None:
    lines = (ROOT / "configs/sample/mini.yaml").read_text().splitlines()[1:]
    written = {line.lstrip("# ").split(":")[0]: line.split(":", 1)[1].split("#")[0].strip() for line in lines}
    defaults = config.to_dict(SampleConfig())
    assert written.keys() == defaults.keys()
    uncommented = config.load(SampleConfig, None, [f"{key}={value}" for key, value in written.items()])
    assert config.to_dict(uncommented) == defaults


def test_a_record_names_the_seed_and_the_model_that_were_used(
    model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(SampleConfig(model=str(model), dtype="float32"), "cpu")
    records = {}
    for seeds in ((7,), (4, 3)):
        settings = SampleConfig(str(picture), out=str(tmp_path / f"seeds{len(seeds)}"), steps=1, seeds=list(seeds))
        folder, *_ = sample_views(settings, "cpu", pipeline=pipeline)
        records[seeds] = json.loads((folder / "record.json").read_text())
        assert records[seeds]["model"] == model_hashes(model)
        assert records[seeds]["config"]["model"] == model.name
    assert records[7,]["seed"] == 7 and "candidates" not in records[7,]
    scores = records[4, 3]["candidates"]
    assert scores[str(records[4, 3]["seed"])] == max(scores.values()) and scores.keys() == {"3", "4"}

    def facts_of(stage: str, config: GenerateConfig, sampling: SampleConfig, device: str, **facts: Any) -> None:
        raise InputError(json.dumps([facts["seed"], facts["candidates"], sampling.model, facts["notes"][0]]))

    monkeypatch.setattr(generation, "run_record", facts_of)
    draft = config.load(GenerateConfig, ROOT / "configs/generate/draft.yaml", ["sample.seeds=[4,3]", "sample.steps=1"])
    with pytest.raises(InputError) as caught:
        generation.generate(picture, tmp_path / "generated", draft, pipeline=pipeline)
    seed, candidates, used, note = json.loads(str(caught.value))
    assert candidates.keys() == {"3", "4"} and candidates[str(seed)] == max(candidates.values())
    assert used == str(model) and note.endswith(f"by the model {model.name}.")


def test_low_memory_gives_the_same_views(model: Path, picture: Path, tmp_path: Path) -> None:
    seen = {}
    for name, low in (("plain", False), ("low", True)):
        settings = SampleConfig(str(picture), str(model), str(tmp_path / name), steps=1, low_memory=low)
        folder, views, *_ = sample_views(settings, "cpu")
        assert len(ViewSet.load(folder)) == 16
        record = json.loads((folder / "record.json").read_text())
        assert record["config"]["low_memory"] is low
        seen[name] = views
    torch.testing.assert_close(seen["low"].rgb, seen["plain"].rgb, atol=1e-4, rtol=0)


def test_view_0_is_trusted_and_kept_at_the_picture_s_own_resolution(
    model: Path, picture: Path, tmp_path: Path, red: Tensor
) -> None:
    settings = SampleConfig(str(picture), str(model), str(tmp_path / "views"), steps=1)
    folder, views, detail, read = sample_views(settings, "cpu")
    assert detail is not None and views.trusted == (True, *[False] * 15) == ViewSet.load(folder).trusted
    kept = load_detail(folder)
    assert kept is not None and kept.trusted == (True,) and match_detail(ViewSet.load(folder), kept) == [0]
    assert (kept.rgb - detail.rgb).abs().max() < 0.01
    shown = [torch.nonzero(mask > 0.5) for mask in (detail.mask[0], read.rgba[..., 3])]
    longest = [int((corner.max(dim=0).values - corner.min(dim=0).values).max()) + 1 for corner in shown]
    assert abs(longest[0] - longest[1]) <= 2  # as large as in the picture
    assert results_folder(GenerateConfig(out=str(tmp_path)), make=False) == tmp_path  # `generate` may take its place
    small = detail.resized(views.cameras.width)
    assert (small.mask[0] - views.mask[0]).abs().mean() < 0.02
    sample_views(replace(settings, keep_input=False), "cpu")
    assert load_detail(folder) is None and ViewSet.load(folder).trusted == (False,) * 16


def test_a_large_picture_s_detail_is_limited(red: Tensor) -> None:
    large = images.resize(red, 3000)
    for framed in (False, True):
        detail = detail_view(large, orbit(1, size=16)[0], framed)
        rows, columns = torch.nonzero(detail.mask[0] > 0.5, as_tuple=True)
        longest = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
        assert abs(longest - 1024) <= 2


def test_a_deeper_object_is_framed_smaller_and_so_is_its_detail(red: Tensor) -> None:
    camera = orbit(1, size=120)[0]
    sizes = []
    for ratio in (1.0, 2.0):
        framed = prepare_image(red, 0, 120, False, depth_ratio=ratio)
        detail = detail_view(red, camera, depth_ratio=ratio)
        assert (detail.resized(120).mask[0] - framed[..., 3]).abs().mean() < 0.02
        rows, columns = torch.nonzero(framed[..., 3] > 0.5, as_tuple=True)
        sizes.append(max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1)
    assert sizes[0] == pytest.approx(80, abs=1) and sizes[1] == pytest.approx(40, abs=1)
    with pytest.raises(InputError, match=r"depth_ratio 0\.5 must be at least 1"):
        prepare_image(red, 0, 120, False, depth_ratio=0.5)
    with pytest.raises(InputError, match="depth_ratio 2 and framed exclude each other"):
        prepare_image(red, 0, 120, True, depth_ratio=2.0)


@pytest.mark.parametrize(
    ("size", "ratio", "said"),
    [((40, 40), 2.0, "depth_ratio 2 and framed"), ((40, 30), 1.0, "framed but is not square")],
)
def test_a_framing_that_cannot_be_is_refused_before_the_model_is_loaded(
    size: tuple[int, int], ratio: float, said: str, tmp_path: Path
) -> None:
    images.save_image(tmp_path / "picture.png", images.frame_object(torch.ones(20, 20, 4), 40)[: size[0], : size[1]])
    image, model, out = (str(tmp_path / name) for name in ("picture.png", "nowhere", "views"))
    with pytest.raises(InputError, match=said):
        sample_views(SampleConfig(image=image, model=model, out=out, framed=True, depth_ratio=ratio), "cpu")


def test_a_config_s_options_reach_the_pipeline(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    offloaded: list[str] = []
    monkeypatch.setattr(Nova3DPipeline, "compile_unet", lambda self: compiled.append("yes"))
    monkeypatch.setattr(Nova3DPipeline, "enable_model_cpu_offload", lambda self, device: offloaded.append(device))
    settings = SampleConfig(model=str(model), dtype="bfloat16", low_memory=True, compile=True)
    pipeline = load_pipeline(settings, "cuda:1")  # left on the CPU, for the hooks to move
    assert pipeline.memory == LOW_MEMORY and pipeline.unet.dtype == torch.bfloat16
    assert (compiled, offloaded, pipeline.device.type) == (["yes"], ["cuda:1"], "cpu")
    plain = load_pipeline(SampleConfig(model=str(model)), "cpu")
    assert plain.memory == Memory() and plain.unet.dtype == torch.float32 and len(compiled) == len(offloaded) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dtype=half", "override 'dtype=half': dtype: 'half' is not one of float32, float16, bfloat16"),
        ("steps=-2", "override 'steps=-2': steps: '-2' is not at least 1"),
    ],
)
def test_bad_values_end_in_one_line(
    model: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    arguments = [f"image={picture}", f"model={model}", f"out={tmp_path / 'out'}", override, "--device", "cpu"]
    assert call_script(monkeypatch, "sample", *arguments) == 2
    assert f"error: {message}" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("known", "ends"), [((), "views.glb"), (("depth_ratio=0.4",), "views.glb extract.depth_ratio=0.4")]
)
def test_the_next_command_keeps_a_known_depth(
    model: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: tuple[str, ...],
    ends: str,
) -> None:
    arguments = [str(picture), f"model={model}", f"out={tmp_path / 'views'}", "steps=1", *known, "--device", "cpu"]
    assert call_script(monkeypatch, "sample", *arguments) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    assert line.startswith("next: nova3d reconstruct ") and line.endswith(ends)


def test_a_contact_sheet_lies_beside_the_views(model: Path, picture: Path, tmp_path: Path) -> None:
    folder, views, *_ = sample_views(SampleConfig(str(picture), str(model), str(tmp_path / "views"), steps=1), "cpu")
    sheet = images.read_image(folder / "contact_sheet.png")
    assert (sheet - views.contact_sheet()).abs().max() <= 0.5 / 255 + 1e-6
    assert layouts.load(folder, "auto").layout == "nova3d"  # the sheet does not mislead the detection


def test_a_model_s_limits_are_read_from_its_card(model: Path) -> None:
    assert model_limits(str(model)) == []
    (model / "README.md").write_text("# M\n\n- no\n\n## Limits\n- It **works**\n  at 16 px.\n- <b>\n\n## More\n- no\n")
    assert model_limits(str(model)) == ["It works at 16 px.", "<b>"]
    assert len(model_limits("nova3d-mini")) >= 3
