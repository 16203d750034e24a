"""Tables, comparisons and quoted numbers: what they say, how it is rounded, and that files give back what was saved."""

import json
import math
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.evaluation import Published, Table, statistics
from nova3d.evaluation.formats import CARRIED, TextRow, TextTable, decimals_for, header, number, style
from tests.evaluation.samples import CLEAR, csv_rows, method, seeded, table

ROOT = Path(__file__).resolve().parents[2]
NAN = math.nan
FACTS = {"commit": "c0ffee", "hardware": "two cores"}


def test_markdown_has_facts_objects_mean_interval_and_floors():
    text = table().markdown(FACTS)
    assert text.startswith("protocol: p (abc)  \ncommit: c0ffee  \n")
    for line in (
        "| object | psnr [dB] ↑ | chamfer [side] ↓ |",
        "| a | 10.00 | 0.0100 |",
        "| **mean of 2** | **15.00** | **0.0200** |",
        "| *baseline: all-white image* | 5.50 | - |",
    ):
        assert line in text.splitlines()


def test_what_is_not_stated_is_said_to_be_so():
    text = table().markdown()
    assert all(f"{name}: not stated  " in text.splitlines() for name in CARRIED)
    assert "seeds: 3, 7  " in seeded().markdown().splitlines()
    assert "weights: 1234  " in table(facts={"weights": "1234"}).markdown().splitlines()


def test_the_interval_is_that_of_the_mean_over_objects():
    eight = method(CLEAR)
    found = eight.intervals()["psnr"]
    assert found == statistics.mean_interval([row["psnr"] for row in eight.rows.values()])
    assert f"| 95 % interval of the mean | {found.low:.2f} to {found.high:.2f} |" in eight.markdown()
    rows = {row["kind"]: row for row in csv_rows(eight.csv())}
    assert (float(rows["low"]["psnr"]), float(rows["high"]["psnr"])) == (found.low, found.high)
    assert "| 95 % interval of the mean | - | - |" in table().markdown()  # two objects bear none


def test_a_value_that_does_not_exist_is_not_skipped_in_the_mean():
    one = table(rows={"a": {"psnr": 10.0}, "b": {"psnr": NAN}})
    assert math.isnan(one.mean()["psnr"]) and one.intervals() == {}
    assert one.to_dict()["mean"] == {"psnr": None}
    assert "| **mean of 2** | - |" in one.markdown()


def test_a_failed_object_is_shown_and_counted_with_its_reason():
    text = table(failures={"hat": "no mesh", "b": "empty mesh"}).markdown()
    assert "| hat (failed) | - | - |" in text  # no score
    assert "| b (failed) | 20.00 | 0.0300 |" in text  # the protocol gave it one
    assert "| **mean of 2 (2 of 3 failed, 1 without a score)** | **15.00** |" in text
    assert "- failed: hat: no mesh" in text and "- failed: b: empty mesh" in text


def test_a_table_of_failures_only_has_no_mean():
    text = table(rows={}, baselines={}, failures={"a": "no views"}).markdown()
    assert "| a (failed) |" in text and "- failed: a: no views" in text


def test_metrics_that_could_not_be_computed_are_named_with_the_reason():
    assert "- not computed: lpips_vgg: no weights" in table(not_computed={"lpips_vgg": "no weights"}).markdown()


def test_seeds_give_rows_of_means_and_keep_spread_and_best_apart():
    found = seeded()
    assert found.rows == {"a": {"psnr": 12.0, "lpips_vgg": 0.2}, "b": {"psnr": 19.0, "lpips_vgg": 0.2}}
    psnr, lpips = found.over_seeds()["psnr"], found.over_seeds()["lpips_vgg"]
    assert (psnr.mean, psnr.best, lpips.best) == pytest.approx((15.5, 17.0, 0.1))
    assert psnr.between == pytest.approx(math.sqrt(0.5))  # of the means 15 and 16
    lines = found.markdown().splitlines()
    assert "| SD between 2 seeds | 0.707 | 0.0000 |" in lines
    assert "| *best of 2 seeds by the reference: a bound* | 17.00 | 0.100 |" in lines


def test_an_object_that_one_seed_failed_on_has_failed():
    per_seed = {0: {"a": {"psnr": 1.0}, "b": {"psnr": 2.0}}, 1: {"b": {"psnr": 4.0}}}
    found = Table.from_seeds("p", "abc", per_seed, {})
    assert found.rows == {"b": {"psnr": 3.0}} and found.failures == {"a": "no score with seed 1"}
    assert found.over_seeds()["psnr"].mean == 3.0
    named = Table.from_seeds("p", "abc", per_seed, {}, failures={"a": "out of memory"})
    assert named.failures == {"a": "out of memory"}


def test_csv_has_every_row_at_full_precision():
    rows = csv_rows(seeded(failures={"hat": "no views"}, facts=FACTS).csv())
    assert list(rows[0]) == ["kind", "name", "seed", "psnr", "lpips_vgg", "note"]
    assert {"kind": "seed", "name": "b", "seed": "7", "psnr": "18.0", "lpips_vgg": "0.3", "note": ""} in rows
    assert {
        "kind": "object",
        "name": "hat",
        "seed": "",
        "psnr": "",
        "lpips_vgg": "",
        "note": "failed: no views",
    } in rows
    by_kind = {row["kind"]: row for row in rows}
    assert float(by_kind["mean"]["psnr"]) == 15.5 and float(by_kind["best"]["psnr"]) == 17.0
    assert by_kind["low"]["psnr"] == ""
    facts = {row["name"]: row["note"] for row in rows if row["kind"] == "fact"}
    assert facts["protocol"] == "p (abc)" and facts["commit"] == "c0ffee" and facts["weights"] == "not stated"
    assert csv_rows(table().csv())[-1]["psnr"] == "5.5"


@pytest.mark.parametrize("made", [table, seeded])
def test_a_saved_table_loads_as_it_was(made, tmp_path):
    before = made(facts=FACTS, failures={"hat": "no mesh"}, not_computed={"clip": "no weights"})
    before.save(tmp_path, {"stage": "evaluate"}, {"weights": "1234"})
    after = Table.load(tmp_path)
    assert after == Table.load(tmp_path / "scores.json")
    assert after.facts == {**FACTS, "weights": "1234"}
    assert after.csv() == before.csv({"weights": "1234"}) and after.markdown() == before.markdown({"weights": "1234"})
    assert after.rows == before.rows and after.per_seed == before.per_seed and after.baselines == before.baselines
    assert json.loads((tmp_path / "scores.json").read_text())["record"] == {"stage": "evaluate"}


def test_nan_comes_back_as_nan(tmp_path):
    table(rows={"a": {"psnr": NAN, "chamfer": 0.1 + 0.2}}).save(tmp_path, {})
    row = Table.load(tmp_path).rows["a"]
    assert math.isnan(row["psnr"]) and row["chamfer"] == 0.1 + 0.2


def test_files_are_the_same_again(tmp_path):
    for folder in ("one", "two"):
        seeded(facts=FACTS).save(tmp_path / folder, {})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["scores.csv", "scores.json", "scores.md", "scores.tex"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="do not exist"):
        Table.load(tmp_path)
    for text in (
        "{",
        "[]",
        '{"protocol": "p"}',
        '{"protocol": "p", "protocol_hash": "h", "floors": {}, "objects": [1]}',
    ):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(InputError, match="is not a scores"):
            Table.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write scores"):
        table().save(tmp_path / "file" / "out", {})


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("psnr_registered4", "psnr_registered4 [dB] ↑"),
        ("lpips_alex", "lpips_alex ↓"),
        ("clip_vit_l_14", "clip_vit_l_14 ↑"),
        ("normal_mean_deg", "normal_mean_deg ↓"),
        ("normal_within_30", "normal_within_30 ↑"),
        ("chamfer_bbox_yaw", "chamfer_bbox_yaw [side] ↓"),
        ("cd_l2_visible16_v001", "cd_l2_visible16_v001 [side] ↓"),
        ("iou64_flood", "iou64_flood ↑"),
        ("fid_clip", "fid_clip ↓"),
    ],
)
def test_headers_have_units_and_directions(metric, expected):
    assert header(metric) == expected
    assert style(metric).lower_is_better == expected.endswith("↓")


def test_rounding():
    assert number(23.869, 2) == "23.87" and number(0.125, 2) == "0.12"  # a tie goes to the even digit
    assert number(-0.001, 2) == "0.00" and number(-0.001, 2, sign=True) == "0.00"
    assert number(0.61, 2, sign=True) == "+0.61" and number(NAN, 2) == "-"
    assert [decimals_for(width, 2) for width in (3.0, 0.41, 0.00031, 0.0, NAN)] == [2, 2, 5, 2, 2]


def test_latex_escapes_aligns_and_carries_the_facts():
    text = seeded(facts=FACTS).latex()
    assert "object & psnr [dB] $\\uparrow$ & lpips\\_vgg $\\downarrow$ \\\\" in text
    assert "\\textbf{mean of 2} & \\textbf{15.50} & \\textbf{0.200} \\\\" in text
    assert "95 \\% interval" in text and "commit: c0ffee" in text and "protocol: p (abc)" in text
    body = text.split("\\toprule")[1].split("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 7 and {row.replace("\\&", "").count("&") for row in rows} == {2}
    assert text.count("\\begin") == text.count("\\end") == 2 and text.count("{") == text.count("}")


def test_odd_names_break_neither_format():
    grid = TextTable({"by": "a_b"}, ("object", "x"), ((TextRow("50% {a}|b_c\\~", ("-0.5",)), TextRow("d", ("-",))),))
    assert "| 50% {a}\\|b_c\\~ | -0.5 |" in grid.markdown()
    assert "50\\% \\{a\\}|b\\_c\\textbackslash{}\\textasciitilde{} & $-$0.5 \\\\" in grid.latex()
    assert "d & -- \\\\" in grid.latex()


def test_a_terminal_shows_six_columns():
    names = ("psnr_foreground", "psnr", "ssim", "mask_iou", "normal_mean_deg", "psnr_union", "lpips_vgg", "watertight")
    whole = table(rows={"a": dict.fromkeys(names, 1.0)}, baselines={"white": {"a": {"psnr": 2.0, "ssim": 3.0}}})
    assert whole.shown().metrics == ["psnr", "ssim", "mask_iou", "normal_mean_deg", "psnr_union", "lpips_vgg"]
    assert whole.shown().baselines == {"white": {"a": {"psnr": 2.0, "ssim": 3.0}}}
    meshes = ("cd_l2_area100k", "cd_l2_area100k_bbox", "f_score_0.01", "iou128_flood", "watertight")
    assert table(rows={"a": dict.fromkeys(meshes, 1.0)}, baselines={}).shown().metrics == [
        "cd_l2_area100k",
        "f_score_0.01",
        "iou128_flood",
        "watertight",
    ]


def test_no_ssim_of_whole_pictures_stands_beside_published_numbers(tmp_path):
    published = Published.load(ROOT / "configs/eval/published.yaml").of("views")
    scored = table(rows={"a": {"psnr": 10.0, "ssim": 0.8, "ssim_own_range_cropped": 0.7}}, baselines={})
    scored.save(tmp_path, {}, published=published)
    for name in ("scores.md", "scores.tex"):
        own = (tmp_path / name).read_text().split("Published numbers")[0]
        assert "0.700" in own and "0.800" not in own
    assert "not computed: ssim: of whole pictures" in (tmp_path / "scores.md").read_text()
    assert Table.load(tmp_path).rows["a"]["ssim"] == 0.8
