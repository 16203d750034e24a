import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nova3d import config
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score
from nova3d.evaluation.baselines import all_white, input_copy, silhouette_oracle
from nova3d.evaluation.folders import ObjectFolder
from nova3d.evaluation.protocols import MeshRules, ViewRules
from nova3d.evaluation.view_scores import score_views
from nova3d.images import save_image
from tests.evaluation.samples import ball

pytestmark = pytest.mark.usefixtures("coarse_shapes")
ROOT = Path(__file__).resolve().parents[2]
METRICS = ("psnr", "psnr_foreground", "ssim", "mask_iou", "normals")
ANY = ViewRules(cameras="any", count=0, size=0, metrics=METRICS)
QUICK = Protocol(name="quick", hull_cells=0, views=ANY, meshes=MeshRules(surface_samples=500, ious=("iou16_flood",)))


def test_score_has_a_row_per_object_and_the_mean(folders):
    table = score(*folders, QUICK)
    assert list(table.rows) == ["cup", "hat"]
    with pytest.raises(InputError, match="protocol 'quickly' is neither a file nor one of"):
        score(*folders, "quickly")
    row = table.rows["cup"]
    assert row["mask_iou"] == 1.0
    assert row["normal_mean_deg"] < 1
    assert row["psnr_foreground"] == pytest.approx(20.0, abs=0.2)
    assert row["cd_l2_area500"] == pytest.approx(0.1, rel=0.1)
    assert row["watertight"] == 1.0
    mean = table.mean()
    assert mean["psnr"] == pytest.approx((row["psnr"] + table.rows["hat"]["psnr"]) / 2)


def test_input_view_is_left_out_unless_asked_for():
    ref = ball()
    spoilt = ref.rgb.clone()
    spoilt[0] = 0
    pred = replace(ref, rgb=spoilt)
    assert score_views(pred, ref, ANY)["psnr"] == 100.0
    assert score_views(pred, ref, replace(ANY, include_input_view=True))["psnr"] < 100.0


def test_floors_rank_as_they_must():
    ref = ball(64)
    white, copy, oracle = (score_views(floor(ref), ref, ANY) for floor in (all_white, input_copy, silhouette_oracle))
    assert white["mask_iou"] == 0 and math.isnan(white["normal_mean_deg"])
    assert copy["mask_iou"] == 1.0 and oracle["mask_iou"] == 1.0
    assert white["psnr"] < min(copy["psnr"], oracle["psnr"])
    # A ball's normals, turned with the camera, are the same picture from everywhere; facing the camera they are not:
    # the mean angle between a hemisphere's normals and the axis, by projected area, is 45 degrees.
    assert copy["normal_mean_deg"] == pytest.approx(0.0, abs=0.1)
    assert oracle["normal_mean_deg"] == pytest.approx(45.0, abs=1.0)


def test_floors_are_in_the_table_and_do_not_see_the_prediction(folders):
    predictions, references = folders
    protocol = replace(QUICK, hull_cells=8)
    floors = score(predictions, references, protocol).baseline_means()
    unmoved = score(references, references, protocol).baseline_means()
    assert all(floors[name] == pytest.approx(values, nan_ok=True) for name, values in unmoved.items())
    assert set(floors) == {
        "all-white image",
        "copy of the input view (scored on the others)",
        "inflated outline of the input view",
        "cut-out of the input view",
        "silhouette oracle",
        "hull of input view, mean colour",
        "hull of all views, mean colour",
        "true views, 1 px off",
        "bounding box",
        "hull of input silhouette",
        "hull of 16 silhouettes",
        "reference itself (sampling limit)",
    }
    assert floors["reference itself (sampling limit)"]["iou16_flood"] == 1.0


def test_only_what_both_sides_hold_is_scored(folders):
    predictions, references = folders
    for name in ("cup", "hat"):
        (predictions / name / "mesh.glb").unlink()
    table = score(predictions, references, QUICK)
    assert "psnr" in table.metrics and "cd_l2_area500" not in table.metrics
    assert "bounding box" not in table.baselines
    assert f"meshes are not scored: '{predictions}' holds none" in table.facts["not scored"]


def test_missing_objects_are_named(folders):
    predictions, references = folders
    (predictions / "hat").rename(predictions / "het")
    with pytest.raises(InputError, match="pred' lacks views of hat"):
        score(predictions, references, QUICK)
    assert list(score(predictions, references, replace(QUICK, objects=("cup",))).rows) == ["cup"]
    with pytest.raises(InputError, match=r"nothing in common"):
        score(predictions, references, replace(QUICK, objects=("shoe",)))


def test_a_mesh_for_some_objects_only_is_refused(folders):
    predictions, references = folders
    (predictions / "hat" / "mesh.glb").unlink()
    with pytest.raises(InputError, match=r"pred' lacks meshes of hat"):
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

    def under(**rules):
        return score(tmp_path, tmp_path, replace(QUICK, views=replace(ANY, **rules)))

    assert list(under(cameras="ortho16", count=16, size=32).rows) == ["cup"]
    with pytest.raises(InputError, match=r"'cup' against the protocol's 'syncdreamer16'.*px off"):
        under(cameras="syncdreamer16")
    with pytest.raises(InputError, match="'cup' is 32x32, the protocol scores 64x64"):
        under(size=64)
    with pytest.raises(InputError, match="'cup' has 16 views, the protocol scores 25"):
        under(count=25)
    with pytest.raises(InputError, match="'cup' has 16 views: views up to 16 are scored"):
        under(scored=(10, 16))
    with pytest.raises(InputError, match="preset 'sync' is not one of"):
        under(cameras="sync")


def test_absent_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"predictions folder '.*' does not exist"):
        score(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="has no objects to score views or meshes of"):
        score(tmp_path, tmp_path)


def test_several_folders_are_seeds_of_one_method(folders):
    predictions, references = folders
    table = score([predictions, references], references, QUICK)
    assert set(table.per_seed) == {0, 1}
    assert table.per_seed[1]["cup"]["psnr"] == 100.0 > table.per_seed[0]["cup"]["psnr"]
    assert table.rows["cup"]["psnr"] == pytest.approx((100.0 + table.per_seed[0]["cup"]["psnr"]) / 2)
    assert table.over_seeds()["psnr"].best == 100.0
    with pytest.raises(InputError, match="several different ones"):
        score([predictions, predictions], references, QUICK)


def test_seeds_must_hold_the_same(folders, tmp_path):
    predictions, references = folders
    for name in ("cup", "hat"):
        ball().save(tmp_path / "views" / name)
    with pytest.raises(InputError, match="not seeds of one method"):
        score([predictions, tmp_path / "views"], references, QUICK)


def test_a_failed_object_scores_as_if_nothing_had_been_returned_and_is_named(folders):
    predictions, references = folders
    shutil.rmtree(predictions / "hat" / "rgb")
    (predictions / "hat" / "mesh.glb").unlink()
    trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False).export(predictions / "hat" / "mesh.ply")
    table = score(predictions, references, replace(QUICK, failures="score"))
    white = table.baselines["all-white image"]["hat"]
    assert table.rows["hat"]["psnr"] == white["psnr"]
    assert math.isnan(table.mean()["normal_mean_deg"])  # of nothing there is no angle, and the mean does not hide it
    assert table.rows["hat"]["f_score_0.02"] < 0.01 and table.rows["hat"]["iou16_flood"] < 0.01
    assert table.rows["hat"]["cd_l2_area500"] > table.rows["cup"]["cd_l2_area500"]
    assert list(table.failures) == ["hat"]
    assert "000.png" in table.failures["hat"] and "has no extent" in table.failures["hat"]
    with pytest.raises(InputError, match=r"000.png"):
        score(predictions, references, QUICK)


def test_a_missing_object_fails_by_name(folders):
    predictions, references = folders
    shutil.rmtree(predictions / "hat")
    table = score(predictions, references, replace(QUICK, failures="score"))
    assert "lacks views of hat" in table.failures["hat"] and list(table.rows) == ["cup", "hat"]


def test_a_bad_reference_is_never_scored(folders):
    predictions, references = folders
    (references / "hat" / "mesh.glb").unlink()
    with pytest.raises(InputError, match=r"ref' has a mesh.*but lacks hat"):
        score(predictions, references, replace(QUICK, failures="score"))


def test_plain_mesh_files_are_objects(tmp_path):
    for side, radius in (("ref", 0.5), ("pred", 0.4)):
        (tmp_path / side).mkdir()
        trimesh.creation.icosphere(2, radius).export(tmp_path / side / f"cup.{'glb' if side == 'ref' else 'obj'}")
    table = score(tmp_path / "pred", tmp_path / "ref", QUICK)
    assert table.rows["cup"]["cd_l2_area500"] == pytest.approx(0.1, rel=0.1)


def test_numbered_pictures_with_a_suffix_in_capitals_are_views(tmp_path):
    ball(num_views=16).save(tmp_path / "made")
    (tmp_path / "pred" / "cup").mkdir(parents=True)
    for picture in (tmp_path / "made" / "rgb").iterdir():
        shutil.copy(picture, tmp_path / "pred" / "cup" / f"{picture.stem}.PNG")
    folder = ObjectFolder.open(tmp_path / "pred", "predictions")
    assert len(folder.views("cup", ViewRules(cameras="ortho16"))) == 16
    assert not folder.holds("cup", "views", ANY)  # whose cameras are not known


def test_views_without_normals_leave_out_the_angles_and_say_so(tmp_path):
    bare = replace(ball(), normals=torch.zeros(4, 32, 32, 3))
    ball().save(tmp_path / "ref" / "cup")
    bare.save(tmp_path / "pred" / "cup")
    table = score(tmp_path / "pred", tmp_path / "ref", QUICK)
    assert "psnr" in table.metrics and not [name for name in table.metrics if name.startswith("normal_")]
    assert "without normal maps" in table.not_computed["normal_mean_deg"]


def test_a_metric_whose_weights_are_missing_is_left_out_with_the_reason(tmp_path):
    ball().save(tmp_path / "cup")
    protocol = replace(QUICK, views=replace(ANY, metrics=("psnr", "lpips_vgg")))
    table = score(tmp_path, tmp_path, protocol, weights={"lpips_vgg": tmp_path / "none.pth"})
    assert table.metrics == ["psnr"]
    assert "none.pth" in table.not_computed["lpips_vgg"]
    with pytest.raises(InputError, match="weights for 'lpips': the metrics with weights are lpips_vgg"):
        score(tmp_path, tmp_path, protocol, weights={"lpips": tmp_path / "none.pth"})


def test_progress_counts_objects(folders):
    seen = []
    score(*folders, QUICK, progress=lambda done, total, message: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("as_they_are", [True, False])
def test_pictures_without_transparency_as_they_are(folders, as_they_are):
    """A prediction on light grey loses against white; one that is cut out first does not."""
    predictions, references = folders
    ref = ball()
    for name in ("cup", "hat"):
        shutil.rmtree(predictions / name)
        (predictions / name).mkdir()
        for i in range(4):
            rgb = ref.rgb[i] * ref.mask[i, ..., None] + 0.9 * (1 - ref.mask[i, ..., None])
            save_image(predictions / name / f"{i:03d}.png", rgb)
    rules = replace(ANY, cameras="ortho4", as_they_are=as_they_are, include_input_view=True)
    row = score(predictions, references, replace(QUICK, kinds=("views",), views=rules)).rows["cup"]
    level = round(0.9 * 255) / 255
    expected = -10 * math.log10(float((1 - ref.mask).mean()) * (1 - level) ** 2)
    assert (row["psnr"] == pytest.approx(expected, abs=0.05)) == as_they_are
    assert as_they_are or row["psnr"] > expected + 3
    assert row["mask_iou"] > 0.95


def test_new_keys_leave_the_hashes_of_protocols_alone():
    assert QUICK.hash == replace(QUICK, views=replace(ANY, as_they_are=False)).hash
    assert QUICK.hash != replace(QUICK, views=replace(ANY, as_they_are=True)).hash
    assert config.load(Protocol, ROOT / "configs/eval/nova3d-el0.yaml").hash == "d8af55a54422dad8"
