import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.evaluation import fusion_baselines
from nova3d.evaluation.mesh_metrics import SurfaceSamples
from nova3d.experiments import fusion, fusion_inputs
from nova3d.experiments.fusion import Case, per_object, read_rows, report, run
from nova3d.experiments.objects import object_names
from nova3d.fusion import FusionConfig
from tests.helpers.meshes import write_downloaded_scan


@pytest.fixture
def small(monkeypatch) -> FusionConfig:
    monkeypatch.setattr(fusion_inputs, "SIZE", 48)
    monkeypatch.setattr(fusion_inputs, "SURFACE_SAMPLES", 4000)
    monkeypatch.setattr(fusion_inputs, "_DEPTH_SIZE", 128)
    monkeypatch.setattr(fusion_baselines, "_CELLS", 64)  # half a pixel's side
    config = FusionConfig()
    config.encoding.levels, config.encoding.finest, config.encoding.log2_table = 4, 32, 12
    config.field.hidden = config.field.colour_hidden = config.conflict.hidden = 16
    config.hull.resolution, config.hull.fit_steps = 32, 30
    config.sampling.rays, config.sampling.samples, config.sampling.random_points = 64, 8, 16
    config.optim.steps, config.extract.resolution, config.extract.coarse = 15, 48, 24
    config.extract.faces, config.texture.size, config.conflict.polish_steps = 800, 64, 20
    return config


@pytest.fixture
def ball(tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    mesh.visual.vertex_colors = [200, 90, 40, 255]
    mesh.export(tmp_path / "ball.glb")
    return tmp_path / "ball.glb"


def test_rows_are_kept_resumed_and_reported(small, ball, tmp_path, monkeypatch):
    out, cases = tmp_path / "out", [Case("none", "full"), Case("conflicts", "no_conflict"), Case("none", "carving")]
    rows = run(tmp_path, ["ball"], cases[:1], out, small)
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"object": "ba')  # cut short by a crash
    with (out / "rows.jsonl").open("a") as file:
        file.write("\n")
    measured = []
    honest = fusion.measure
    monkeypatch.setattr(fusion, "measure", lambda t, c, *rest: measured.append(c) or honest(t, c, *rest))
    rows = run(tmp_path, ["ball"], cases, out, small)
    assert measured == cases[1:]  # the first is not computed twice
    assert [Case(r["fault"], r["arm"]) for r in rows] == cases
    carved = rows[2]
    assert carved["chamfer"] < 0.06
    assert carved["psnr"] > 20
    assert 0 <= rows[1]["auroc_residual"] <= 1
    assert (out / "none-full" / "ball.glb").is_file()
    text = report(rows)
    assert "| none | carving | 1 | 0 |" in text
    assert text.count("full minus") == 1


def test_rows_of_another_config_are_neither_taken_nor_mixed(small, ball, tmp_path):
    case, out = [Case("none", "carving")], tmp_path / "out"
    first = run(tmp_path, ["ball"], case, out, small)
    small.extract.faces = 200
    second = run(tmp_path, ["ball"], case, out, small)
    assert len(read_rows(out)) == 2
    assert len(second) == 1
    assert second[0]["config"] != first[0]["config"]


def test_rows_of_an_arm_s_former_name_are_neither_taken_nor_mixed(small, ball, tmp_path, monkeypatch):
    out, measured = tmp_path / "out", []
    monkeypatch.setattr(fusion, "measure", lambda truth, case, *rest: measured.append(case) or {"seconds": 1.0})
    new = [Case("conflicts", arm) for arm in ("full", "no_conflict")]
    run(tmp_path, ["ball"], new, out, small)
    text = (out / "rows.jsonl").read_text().replace('"no_conflict"', '"no conflict"')  # as earlier versions wrote it
    (out / "rows.jsonl").write_text(text)
    measured.clear()
    rows = run(tmp_path, ["ball"], new, out, small)
    assert measured == new[1:] and [row["arm"] for row in rows] == ["full", "no_conflict"]
    assert "no conflict" not in report(rows) and len(read_rows(out)) == 3


def test_names_of_arms_and_faults_can_stand_in_a_list_and_in_a_path():
    words = {word for case in (*fusion.SUITE, *fusion.BENCHMARK) for word in (case.arm, case.fault)} | set(fusion.ARMS)
    assert all(re.fullmatch("[a-z_]+", word) for word in words)


def test_a_failed_case_is_counted_and_tried_again(small, ball, tmp_path, monkeypatch):
    def fail(*arguments):
        raise InputError("no such luck")

    with monkeypatch.context() as patched:
        patched.setattr(fusion, "measure", fail)
        rows = run(tmp_path, ["ball"], [Case("none", "carving")], tmp_path / "out", small)
    assert rows[0]["error"] == "no such luck"
    assert "| none | carving | 0 | 1 |" in report(rows)
    assert "error" not in run(tmp_path, ["ball"], [Case("none", "carving")], tmp_path / "out", small)[0]
    assert len(read_rows(tmp_path / "out")) == 2


def test_nothing_to_measure_is_refused(small, tmp_path):
    with pytest.raises(InputError, match="nothing to measure"):
        run(tmp_path, [], [Case("none", "full")], tmp_path, small)
    with pytest.raises(InputError, match="holds no"):
        object_names(tmp_path, meshes_only=True)


def test_truth_is_the_same_from_its_cache(small, ball, tmp_path):
    first, again = (fusion_inputs.load_ground_truth(tmp_path, "ball", tmp_path / "cache") for _ in range(2))
    torch.testing.assert_close(first.views.rgb, again.views.rgb, rtol=0, atol=0)
    torch.testing.assert_close(first.between.cameras.c2w, again.between.cameras.c2w, rtol=0, atol=0)
    np.testing.assert_array_equal(first.seen, again.seen)
    assert 0.8 < first.seen.mean() < 1  # a ball but for its poles


def test_a_repaired_mesh_is_drawn_and_measured_anew(small, tmp_path):
    mesh, cases, out = tmp_path / "thing.ply", [Case("none", "carving")], tmp_path / "out"
    trimesh.creation.box((0.6, 0.6, 0.6)).export(mesh)
    before = fusion_inputs.load_ground_truth(tmp_path, "thing", out / "truth")
    (first,) = run(tmp_path, ["thing"], cases, out, small)
    trimesh.creation.box((0.6, 0.3, 0.6)).export(mesh)
    after = fusion_inputs.load_ground_truth(tmp_path, "thing", out / "truth")
    assert float(after.views.mask[0].sum()) < 0.7 * float(before.views.mask[0].sum())
    (second,) = run(tmp_path, ["thing"], cases, out, small)
    assert len(read_rows(out)) == 2 and second["mesh"] != first["mesh"]
    assert run(tmp_path, ["thing"], cases, out, small) == [second]


def test_scans_are_taken_as_they_are_downloaded(small, tmp_path):
    source, cases, out = tmp_path / "scans", [Case("none", "carving")], tmp_path / "out"
    write_downloaded_scan(source / "Tall.Box")
    names = object_names(source, meshes_only=True)
    assert names == ("Tall_Box",)
    truth = fusion_inputs.load_ground_truth(source, "Tall_Box", out / "truth")
    rows, columns = torch.nonzero(truth.views.mask[0] > 0.5, as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (32, 8)  # upright, longest side 1
    assert float(truth.views.rgb[0][truth.views.mask[0] == 1][:, 0].mean()) == pytest.approx(200 / 255, abs=0.01)
    (row,) = run(source, names, cases, out, small)
    assert row["object"] == "Tall_Box" and row["chamfer"] < 0.06
    assert (out / "none-carving" / "Tall_Box.glb").is_file()
    material = source / "Tall.Box" / "meshes" / "model.mtl"
    material.write_text("newmtl m\nmap_Kd absent.png\n")
    (failed,) = run(source, names, cases, out, small)  # the scan has changed
    assert "absent.png" in failed["error"]


def test_what_cameras_at_elevation_zero_see_of_a_box(small):
    mesh = trimesh.creation.box((0.6, 0.6, 0.6))
    centres = SurfaceSamples(mesh.triangles_center, np.asarray(mesh.face_normals))
    sideways = np.abs(centres.normals[:, 1]) < 0.5
    np.testing.assert_array_equal(fusion_inputs.visible(centres, mesh), sideways)
    buried = SurfaceSamples(centres.points * 0.8, centres.normals)
    assert not fusion_inputs.visible(buried, mesh).any()


def test_arms_change_a_copy_of_the_config():
    config = FusionConfig()
    config.optim.steps = 15
    arms = {arm: configs.changed(config, overrides) for arm, overrides in fusion.ARMS.items()}
    assert arms["full"] == config == replace(FusionConfig(), optim=config.optim)
    assert not arms["no_pose"].pose.enabled
    assert {arm: made.conflict.mode for arm, made in arms.items()} == {
        "full": "mlp",
        "no_pose": "mlp",
        "no_conflict": "none",
        "trimmed": "trimmed",
        "closed_form": "closed_form",
        "paper_alone": "mlp",
    }
    assert [arm for arm, made in arms.items() if not made.conflict.consensus] == ["paper_alone"]


def test_one_line_per_object_with_mean_and_median():
    psnr = {"b": 30.0, "a": 20.0, "c": 31.0}
    rows = [{"object": o, "fault": "none", "arm": "full", "psnr": v, "chamfer": 0.001} for o, v in psnr.items()]
    rows += [{"object": "d", "fault": "none", "arm": "full", "error": "lost"}]
    rows += [{"object": "a", "fault": "poses", "arm": "full", "psnr": 1.0}]
    lines = per_object(rows).splitlines()
    assert lines[0] == "| object | chamfer | psnr |"
    assert lines[2:5] == ["| a | 0.0010 | 20.00 |", "| b | 0.0010 | 30.00 |", "| c | 0.0010 | 31.00 |"]
    assert lines[5:] == ["| **mean of 3** | 0.0010 | 27.00 |", "| **median of 3** | 0.0010 | 30.00 |"]
    assert per_object(rows[-1:]) == ""


def test_differences_need_six_objects():
    both = ("full", "carving")
    rows = [
        {"object": f"o{i}", "fault": "none", "arm": a, "psnr": 20 + i + (a == "full")} for i in range(6) for a in both
    ]
    assert "| none | carving | +1.00 [+1.00, +1.00] |" in report(rows)
    assert "| none | carving | - |" in report(rows[:8])
