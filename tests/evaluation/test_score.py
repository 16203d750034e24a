import csv
import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from nova3d import config
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table, score
from nova3d.evaluation.floors import all_white, input_copy, silhouette_oracle
from nova3d.evaluation.scoring import score_views
from nova3d.views import ViewSet

ROOT = Path(__file__).resolve().parents[2]
QUICK = Protocol(name="quick", cameras="any", surface_samples=500, iou_resolution=16)
BALL_RADIUS = 0.4


def ball(size: int = 32, num_views: int = 4, elevation_deg: float = 0.0) -> ViewSet:
    """A ball seen by an orthographic orbit, shaded by its world normal: analytic, and different from every side."""
    cameras = orbit(num_views, elevation_deg, size)
    origins, directions = cameras.rays()
    along = (origins * directions).sum(-1, keepdim=True)
    closest = origins - along * directions
    inside = (closest.norm(dim=-1) < BALL_RADIUS).float()
    depth = (BALL_RADIUS**2 - closest.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    normals = (closest - depth * directions) / BALL_RADIUS * inside[..., None]
    rgb = torch.where(inside[..., None] > 0, 0.5 + 0.4 * normals, 1.0)
    return ViewSet(rgb, torch.nn.functional.normalize(normals, dim=-1), inside, cameras)


@pytest.fixture
def folders(tmp_path):
    """Predictions and references of two objects, alike but for a tint and the mesh's size."""
    for name in ("cup", "hat"):
        ref = ball()
        ref.save(tmp_path / "ref" / name)
        replace(ref, rgb=(ref.rgb - 0.1).clamp(0, 1)).save(tmp_path / "pred" / name)
        trimesh.creation.icosphere(2, 0.5).export(tmp_path / "ref" / name / "mesh.glb")
        trimesh.creation.icosphere(2, 0.4).export(tmp_path / "pred" / name / "mesh.glb")
    return tmp_path / "pred", tmp_path / "ref"


def test_score_has_a_row_per_object_and_the_mean(folders):
    table = score(*folders, QUICK)
    assert list(table.rows) == ["cup", "hat"]
    row = table.rows["cup"]
    assert row["mask_iou"] == 1.0
    assert row["normal_mean_deg"] < 1
    assert row["psnr_foreground"] == pytest.approx(20.0, abs=0.2)
    assert row["chamfer"] == pytest.approx(0.1, rel=0.1)
    assert row["watertight"] == 1.0
    mean = table.mean()
    assert mean["psnr"] == pytest.approx((row["psnr"] + table.rows["hat"]["psnr"]) / 2)
    assert table.metrics == list(mean)


def test_input_view_is_left_out_unless_asked_for():
    ref = ball()
    spoilt = ref.rgb.clone()
    spoilt[0] = 0
    pred = replace(ref, rgb=spoilt)
    assert score_views(pred, ref, QUICK)["psnr"] == 100.0
    assert score_views(pred, ref, replace(QUICK, include_input_view=True))["psnr"] < 100.0


def test_floors_rank_as_they_must():
    ref = ball(64)
    white, copy, oracle = (score_views(floor(ref), ref, QUICK) for floor in (all_white, input_copy, silhouette_oracle))
    assert white["mask_iou"] == 0 and math.isnan(white["normal_mean_deg"])
    assert copy["mask_iou"] == 1.0 and oracle["mask_iou"] == 1.0
    assert white["psnr"] < min(copy["psnr"], oracle["psnr"])
    # A ball's normals, turned with the camera, are the same picture from everywhere; facing the camera they are not:
    # the mean angle between a hemisphere's normals and the axis, by projected area, is 45 degrees.
    assert copy["normal_mean_deg"] == pytest.approx(0.0, abs=0.1)
    assert oracle["normal_mean_deg"] == pytest.approx(45.0, abs=1.0)


def test_silhouette_oracle_has_one_colour_taken_from_the_input_view():
    ref = ball()
    inside = ref.mask > 0.5
    colours = silhouette_oracle(ref).rgb[inside]
    expected = ref.rgb[0][inside[0]].mean(dim=0)
    assert torch.allclose(colours, expected.expand_as(colours), atol=1e-5)


def test_floors_are_in_the_table_and_do_not_see_the_prediction(folders):
    predictions, references = folders
    floors = score(predictions, references, QUICK).floor_means()
    unmoved = score(references, references, QUICK).floor_means()
    assert all(floors[name] == pytest.approx(values, nan_ok=True) for name, values in unmoved.items())
    assert set(floors) == {
        "all-white image",
        "copy of the input view",
        "silhouette oracle",
        "bounding box",
        "reference itself (sampling limit)",
    }
    assert floors["reference itself (sampling limit)"]["iou16_flood"] == 1.0


def test_only_what_both_sides_hold_is_scored(folders):
    predictions, references = folders
    for name in ("cup", "hat"):
        (predictions / name / "mesh.glb").unlink()
    assert "chamfer" not in score(predictions, references, QUICK).metrics
    assert "psnr" not in score(predictions, references, QUICK).floors.get("bounding box", {})


def test_missing_objects_are_named(folders):
    predictions, references = folders
    (predictions / "hat").rename(predictions / "het")
    with pytest.raises(InputError, match="lacks hat: each needs"):
        score(predictions, references, QUICK)
    assert list(score(predictions, references, replace(QUICK, objects=("cup",))).rows) == ["cup"]
    with pytest.raises(InputError, match=r"ref' lacks shoe"):
        score(predictions, references, replace(QUICK, objects=("shoe",)))


def test_a_mesh_for_some_objects_only_is_refused(folders):
    predictions, references = folders
    (predictions / "hat" / "mesh.glb").unlink()
    with pytest.raises(InputError, match=r"has a mesh.glb for some objects but not for hat"):
        score(predictions, references, QUICK)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (ball(num_views=3), "has 3 views of 32x32 where 4 of 32x32"),
        (ball(size=16), "4 views of 16x16 where 4 of 32x32"),
        (ball(elevation_deg=20.0), "px off the expected one"),
    ],
)
def test_other_cameras_are_refused(folders, views, message):
    predictions, references = folders
    views.save(predictions / "cup")
    with pytest.raises(InputError, match=message):
        score(predictions, references, QUICK)


def test_references_must_be_of_the_protocols_rig(tmp_path):
    ball(num_views=16).save(tmp_path / "cup")
    assert list(score(tmp_path, tmp_path, replace(QUICK, cameras="ortho16")).rows) == ["cup"]
    with pytest.raises(InputError, match=r"cup, protocol quick.*px off"):
        score(tmp_path, tmp_path, replace(QUICK, cameras="syncdreamer16"))
    with pytest.raises(InputError, match="preset 'sync' is not one of"):
        score(tmp_path, tmp_path, replace(QUICK, cameras="sync"))


def test_absent_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"predictions folder '.*' does not exist"):
        score(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="has no object folders"):
        score(tmp_path, tmp_path)


def test_hash_changes_with_every_field_and_with_nothing_else():
    changed = [
        replace(QUICK, name="other"),
        replace(QUICK, cameras="ortho16"),
        replace(QUICK, include_input_view=True),
        replace(QUICK, objects=("cup",)),
        replace(QUICK, surface_samples=501),
        replace(QUICK, f_score_thresholds=(0.02,)),
        replace(QUICK, iou_resolution=17),
        replace(QUICK, seed=1),
    ]
    assert len({protocol.hash for protocol in [QUICK, *changed]}) == len(changed) + 1
    assert replace(QUICK).hash == QUICK.hash


@pytest.mark.parametrize("path", sorted((ROOT / "configs/eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_protocols_load_and_bear_their_file_name(path):
    assert config.load(Protocol, path).name == path.stem


def test_default_protocol_is_the_shipped_default():
    assert config.load(Protocol, ROOT / "configs/eval/nova3d-el0.yaml") == Protocol()


def test_bad_protocol_values_are_refused():
    with pytest.raises(InputError, match="surface_samples"):
        Protocol(surface_samples=0)
    with pytest.raises(InputError, match="surface_samples"):
        config.load(Protocol, None, ["surface_samples=0"])
    with pytest.raises(InputError, match="positive"):
        Protocol(f_score_thresholds=(0.0,))


def test_a_nan_object_is_not_skipped_in_the_mean():
    table = Table("p", "0", {"a": {"psnr": 10.0}, "b": {"psnr": math.nan}}, {})
    assert math.isnan(table.mean()["psnr"])
    assert table.to_dict()["mean"] == {"psnr": None}
    assert "| **mean of 2** | - |" in table.markdown()


def test_table_formats_agree(tmp_path):
    rows = {"a": {"psnr": 10.0, "chamfer": 0.01}, "b": {"psnr": 20.0, "chamfer": 0.03}}
    table = Table("p", "abc", rows, {"all-white image": {"a": {"psnr": 5.0}, "b": {"psnr": 6.0}}})
    table.save(tmp_path, {"stage": "evaluate"}, {"commit": "c0ffee"})
    markdown = (tmp_path / "scores.md").read_text()
    assert "protocol: p (abc)" in markdown and "commit: c0ffee" in markdown
    assert "| object | psnr ↑ | chamfer ↓ |" in markdown
    assert "| **mean of 2** | **15.00** | **0.0200** |" in markdown
    assert "| *floor: all-white image* | 5.50 | - |" in markdown
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["kind", "name", "psnr", "chamfer"]
    assert lines[3] == ["mean", "mean of 2", "15.0", "0.02"]
    assert lines[4] == ["floor", "all-white image", "5.5", ""]
    entry = json.loads((tmp_path / "scores.json").read_text())
    assert entry["mean"] == {"psnr": 15.0, "chamfer": 0.02}
    assert entry["record"] == {"stage": "evaluate"}


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")


def test_script_prints_the_table_and_writes_the_files(folders, tmp_path, monkeypatch, capsys):
    predictions, references = folders
    arguments = ["--predictions", predictions, "--references", references, "--out", tmp_path / "out"]
    arguments += ["--config", ROOT / "configs/eval/mini.yaml", "surface_samples=200", "iou_resolution=16"]
    run_script(monkeypatch, *arguments)
    printed = capsys.readouterr().out
    protocol = config.load(Protocol, ROOT / "configs/eval/mini.yaml", ["surface_samples=200", "iou_resolution=16"])
    assert f"protocol: mini ({protocol.hash})" in printed
    assert "commit: " in printed and "hardware: " in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.csv", "scores.json", "scores.md"]
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, *arguments, "seeed=1")
    assert stopped.value.code == 2
    assert "did you mean 'seed'?" in capsys.readouterr().err
