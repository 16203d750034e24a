"""Comparisons of tables and quoted numbers: what pairing shows, and what is never mixed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.evaluation import Table, statistics
from nova3d.evaluation.baselines import CUT_OUT, INFLATED
from nova3d.evaluation.comparison import compare, compare_with_baselines
from nova3d.evaluation.published import Published
from tests.evaluation.samples import CLEAR, NOISE, csv_rows, method, table

ROOT = Path(__file__).resolve().parents[2]
NAN = math.nan
FACTS = {"commit": "c0ffee", "hardware": "two cores"}


def test_compare_finds_what_pairing_shows():
    found = compare({"base": method([0.0] * 8), "ours": method(CLEAR), "same": method(NOISE)}, "base")
    ours, same = found.rows
    assert (ours.method, ours.metric, ours.verdict) == ("ours", "psnr", "better")
    assert ours.result.interval.mean == pytest.approx(sum(CLEAR) / 8)
    assert (ours.result.p, ours.p_holm) == pytest.approx((2 / 2**8, 4 / 2**8))
    assert same.verdict == "no difference shown"
    assert ours.result.detectable == pytest.approx(statistics.detectable_difference(CLEAR, alpha=0.05 / 2), rel=1e-6)


def test_methods_are_compared_with_the_floors_that_were_scored():
    floor = method([0.0] * 8).rows
    higher = method([1.0] * 8).rows
    ours = replace(method(CLEAR), baselines={INFLATED: floor, CUT_OUT: higher})
    found = compare_with_baselines({"ours": ours})
    assert {key: one.baseline for key, one in found.items()} == {"inflated": INFLATED, "cut-out": CUT_OUT}
    rows = [row for one in found.values() for row in one.rows]
    assert [(row.method, row.metric, row.verdict) for row in rows] == [
        ("ours", "psnr", "better"),
        ("ours", "psnr", "worse"),
    ]
    assert [row.result.interval.mean for row in rows] == pytest.approx([sum(CLEAR) / 8, sum(CLEAR) / 8 - 1])
    assert compare_with_baselines({"ours": method(CLEAR)}) == {}
    other = {name: {"lpips_vgg": 0.1} for name in floor}
    assert list(compare_with_baselines({"ours": replace(ours, baselines={INFLATED: other, CUT_OUT: floor})})) == [
        "cut-out"
    ]


def test_a_metric_without_a_better_side_is_shown_but_not_tested():
    def both(offsets: list[float]) -> Table:
        rows = {name: {**row, "parts": row["psnr"]} for name, row in method(offsets).rows.items()}
        return replace(method(offsets), rows=rows)

    found = compare({"base": both([0.0] * 8), "ours": both(CLEAR)}, "base")
    psnr, parts = found.rows
    assert (psnr.verdict, parts.verdict, found.family) == ("better", "not ranked", 1)
    assert math.isnan(parts.p_holm) and parts.result.interval.mean == pytest.approx(sum(CLEAR) / 8)
    assert psnr.p_holm == pytest.approx(2 / 2**8)  # parts adds nothing to what the correction pays for
    assert "| parts, ours |" in found.markdown() and "no value is best" in found.markdown()


def test_compare_knows_which_way_is_better():
    tables = {"base": method([0.0] * 8, "lpips_vgg"), "ours": method(CLEAR, "lpips_vgg")}
    assert compare(tables, "base").rows[0].verdict == "worse"
    assert compare(tables, "ours").rows[0].verdict == "better"


def test_compare_pays_for_every_comparison():
    tables = {"base": method([0.0] * 8)} | {f"m{i}": method(CLEAR) for i in range(7)}
    found = compare(tables, "base")
    assert all(row.result.interval.low > 0 and row.p_holm == pytest.approx(7 * 2 / 2**8) for row in found.rows)
    assert {row.verdict for row in found.rows} == {"no difference shown"}  # 0.055 after the correction
    assert "with 7 comparisons, fewer than 9 objects cannot show all" in found.markdown()
    assert "cannot show all" not in compare({"base": method([0.0] * 8), "ours": method(CLEAR)}, "base").markdown()


def test_too_few_objects_get_no_verdict():
    for n, verdict in ((1, "too few objects"), (5, "too few objects"), (6, "better")):
        found = compare({"base": method([0.0] * n), "ours": method(CLEAR[:n])}, "base")
        assert found.rows[0].verdict == verdict
        assert ("fewer than 6 cannot show" in found.markdown()) == (n < 6)


def test_compare_takes_only_objects_that_both_have_and_counts_the_others():
    ours = method([*CLEAR, 5.0, NAN], failures={"o11": "no views"})
    base = method([0.0] * 8 + [NAN, 0.0, 0.0])
    found = compare({"base": base, "ours": ours}, "base")
    (row,) = found.rows
    assert (row.result.n, row.result.missing) == (8, 4)
    assert row.result.mean - row.result.baseline_mean == pytest.approx(sum(CLEAR) / 8)
    assert "| **psnr [dB] ↑, ours** | **8** | **4** |" in found.markdown()
    assert "- failed: ours: o11: no views" in found.markdown()


def test_compare_uses_the_means_over_seeds():
    base = method([0.0] * 8)
    per_seed = {seed: method([o + s for o in CLEAR]).rows for seed, s in ((0, -0.1), (1, 0.1))}
    found = compare({"base": base, "ours": Table.from_seeds("p", "abc", per_seed, {})}, "base")
    assert found.rows[0].result.interval.mean == pytest.approx(sum(CLEAR) / 8)
    assert found.facts["ours"]["seeds"] == "0, 1"


def test_compare_refuses_what_cannot_be_compared():
    base, ours = method([0.0] * 8), method(CLEAR)
    with pytest.raises(InputError, match="baseline 'none' is not one of the tables: base, ours"):
        compare({"base": base, "ours": ours}, "none")
    with pytest.raises(InputError, match="at least two"):
        compare({"base": base}, "base")
    with pytest.raises(InputError, match=r"'ours' was scored under p \(xyz\), 'base' under p \(abc\): not comparable"):
        compare({"base": base, "ours": method(CLEAR, protocol_hash="xyz")}, "base")
    with pytest.raises(InputError, match="'base' has no values of the metric 'ssim'"):
        compare({"base": base, "ours": ours}, "base", ["ssim"])
    with pytest.raises(InputError, match="no metric in common"):
        compare({"base": base, "ours": method(CLEAR, "ssim")}, "base")


def test_metrics_without_any_value_are_not_compared_unless_named():
    base, ours = (table(rows={n: {"psnr": r["psnr"], "lpips_vgg": NAN} for n, r in t.rows.items()}) for t in
                  (method([0.0] * 8), method(CLEAR)))  # fmt: skip
    assert [row.metric for row in compare({"base": base, "ours": ours}, "base").rows] == ["psnr"]
    with pytest.raises(InputError, match="no values of the metric 'lpips_vgg'"):
        compare({"base": base, "ours": ours}, "base", ["lpips_vgg"])


def test_a_comparison_is_printed_and_saved_whole(tmp_path):
    base, ours = method([0.0] * 8, facts=FACTS), method(CLEAR, facts={"weights": "1234"})
    found = compare({"base": base, "ours": ours}, "base")
    found.save(tmp_path, {"stage": "compare"})
    text = (tmp_path / "comparison.md").read_text()
    low, high = found.rows[0].result.interval.low, found.rows[0].result.interval.high
    assert f"**+0.564** | **{low:.3f} to {high:.3f}** | **0.008**" in text
    assert "method ours: commit not stated, weights 1234, seeds not stated" in text
    assert "protocol: p (abc)" in text and "| **better** |" in text
    (row,) = csv_rows((tmp_path / "comparison.csv").read_text())
    assert float(row["low"]) == low and row["verdict"] == "better" and row["protocol_hash"] == "abc"
    entry = json.loads((tmp_path / "comparison.json").read_text())
    assert entry["comparisons"][0]["p"] == 2 / 2**8 and entry["family"] == 1
    assert entry["record"] == {"stage": "compare"}
    body = (tmp_path / "comparison.tex").read_text().split("\\toprule")[1].split("\\bottomrule")[0]
    assert {line.count("&") for line in body.splitlines() if line.endswith("\\\\")} == {11}


def test_tables_from_files_compare_like_those_in_memory(tmp_path):
    tables = {"base": method([0.0] * 8), "ours": method(CLEAR)}
    for name, one in tables.items():
        one.save(tmp_path / name, {})
    loaded = {name: Table.load(tmp_path / name) for name in tables}
    assert compare(loaded, "base") == compare(tables, "base")


@pytest.fixture(scope="module")
def published() -> Published:
    return Published.load(ROOT / "configs/eval/published.yaml")


def test_published_numbers_stand_apart_with_their_source(published):
    text = published.markdown()
    assert text.startswith("## Published numbers (another protocol: not comparable)")
    assert text.count("comparable: no: another protocol: not comparable") == len(published.tables)
    assert "source: Yang et al., ICME 2025, arXiv 2506.07698 (from the text of the paper)" in text
    assert "| SyncDreamer | 20.05 | 0.798 | 0.146 |" in text
    assert "| Envision3D | 20.55 | 0.852 | 0.130 |" in text  # as many digits as printed, no more
    assert "| InstantMesh | 20.90 | - | - | - |" in text
    assert "| published | chamfer ↓ | volume_iou ↑ |" in text  # whose unit is the source's own
    assert "read in the file itself" in text and "not checked in the paper" in text


def test_published_numbers_are_never_in_a_tables_own_rows(published, tmp_path):
    table().save(tmp_path, {}, published=published.of("meshes"))
    ours, quoted = (tmp_path / "scores.md").read_text().split("## Published numbers")
    assert "Wonder3D" not in ours and "| Wonder3D | 0.0199 | 0.6244 |" in quoted
    assert "novel views" not in quoted
    entry = json.loads((tmp_path / "scores.json").read_text())
    assert entry["published"]["comparable"] is False
    assert Table.load(tmp_path).rows == table().rows
    assert (tmp_path / "scores.tex").read_text().count("\\begin{table}") == 1 + len(published.of("meshes").tables)


def test_published_tables_that_are_not_whole_are_refused(tmp_path):
    start = "tables:\n  T:\n    kind: views\n    source: S\n    metrics: [psnr, ssim]\n"
    path = tmp_path / "p.yaml"
    for text, message in (
        (start + "    basis: text\n    rows: {X: [1.0]}\n", "'X' does not have one value for each metric"),
        (start + "    basis: heard\n    rows: {X: [1.0, null]}\n", "basis 'heard' is not one of text, quoted, file"),
        (start + "    rows: {X: [1.0, 2.0]}\n", "basis"),
        (start + "    basis: text\n    rows: {X: [1.0, two]}\n", "two"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Published.load(path)
