import math
from dataclasses import replace

import pytest
import torch

from nova3d import metrics
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.evaluation.protocols import ViewRules
from nova3d.evaluation.view_scores import Networks, on_background, score_views
from nova3d.metrics.registry import VIEW_METRICS
from nova3d.views import ViewSet

ANY = ViewRules(cameras="any", count=0, size=0, metrics=("psnr",))


def views_of(alpha: float, colour: float, count: int = 3) -> ViewSet:
    """Grey pictures of which the left half has `alpha`, on white."""
    mask = torch.zeros(count, 16, 16)
    mask[:, :, :8] = alpha
    rgb = (colour * mask + 1 - mask)[..., None].expand(-1, -1, -1, 3).clone()
    return ViewSet(rgb, torch.zeros(count, 16, 16, 3), mask, orbit(count, size=16))


def test_background_replaces_white_under_what_is_transparent():
    black = on_background(views_of(0.25, 0.8), replace(ANY, background=0.0))
    assert black.rgb[0, 0, 0].tolist() == pytest.approx([0.2] * 3)
    assert black.rgb[0, 0, 15].tolist() == pytest.approx([0.0] * 3)
    assert torch.equal(on_background(views_of(0.25, 0.8), ANY).rgb, views_of(0.25, 0.8).rgb)


def test_hard_edges_give_any_alpha_its_full_colour_in_the_reference_alone():
    ref, hard = views_of(0.25, 0.6), replace(ANY, edges="hard")
    opaque = views_of(1.0, 0.6)
    assert on_background(ref, hard, hard=True).rgb[0, 0, 0].tolist() == pytest.approx([0.6] * 3, abs=1e-2)
    assert score_views(opaque, ref, hard)["psnr"] > 40
    assert score_views(opaque, ref, ANY)["psnr"] < 20


def test_only_the_named_views_are_scored():
    ref = views_of(1.0, 0.5, count=4)
    pred = replace(ref, rgb=ref.rgb.clone())
    pred.rgb[2] = 0
    assert score_views(pred, ref, replace(ANY, scored=(1, 3)))["psnr"] == 100.0
    assert score_views(pred, ref, replace(ANY, scored=(1, 2)))["psnr"] < 100.0
    assert score_views(pred, ref, replace(ANY, scored=(0, 1), include_input_view=True))["psnr"] == 100.0
    with pytest.raises(InputError, match="nothing is left to score"):
        score_views(pred, ref, replace(ANY, scored=(0,)))


def test_every_metric_has_its_column_and_the_library_function_behind_it():
    generator = torch.Generator().manual_seed(0)
    ref = replace(views_of(1.0, 0.5), rgb=torch.rand(3, 16, 16, 3, generator=generator))
    pred = replace(ref, rgb=torch.rand(3, 16, 16, 3, generator=generator))
    rules = replace(ANY, metrics=tuple(VIEW_METRICS), include_input_view=True)
    row = score_views(pred, ref, rules, Networks({"lpips_vgg": lambda a, b: torch.tensor([0.25, 0.5, 0.75])}))
    named = [name for name in row if not name.startswith("normal_")]
    assert named == [metric for metric in VIEW_METRICS if metric != "normals"]
    assert row["lpips_vgg"] == 0.5 and row["lpips_alex"] != row["lpips_alex"]
    assert row["psnr"] == pytest.approx(float(metrics.psnr(pred.rgb, ref.rgb).mean()))
    assert row["psnr_registered4"] == pytest.approx(float(metrics.registered_psnr(pred.rgb, ref.rgb, 4).mean()))
    assert row["ssim_foreground"] == pytest.approx(float(metrics.foreground_ssim(pred.rgb, ref.rgb, ref.mask).mean()))


def test_shifting_both_sides_changes_nothing_and_mirroring_one_does():
    def dot(column: int) -> ViewSet:
        found = views_of(0.0, 0.0)
        found.rgb[:, 4:8, column : column + 3] = 0.2
        found.mask[:, 4:8, column : column + 3] = 1
        return found

    rules = replace(ANY, metrics=("psnr", "psnr_foreground", "psnr_registered4", "mask_iou"))
    here, there = score_views(dot(4), dot(5), rules), score_views(dot(6), dot(7), rules)
    assert here == pytest.approx(there)
    assert here["psnr"] < here["psnr_registered4"] == 100.0
    assert score_views(dot(2), dot(6), rules)["psnr_registered4"] == 100.0
    assert score_views(dot(2), dot(7), rules)["psnr_registered4"] < 100.0
    ref = dot(1)
    mirrored = replace(ref, rgb=ref.rgb.flip(2), mask=ref.mask.flip(2))
    assert score_views(mirrored, ref, rules)["psnr_registered4"] < 20


def test_psnr_union_stands_beside_the_foreground_and_counts_what_spills_over_the_outline():
    ref = views_of(1.0, 0.5)
    wide = replace(ref, rgb=ref.rgb.clone(), mask=ref.mask.clone())
    wide.rgb[:, :, 8:12], wide.mask[:, :, 8:12] = 0.0, 1.0  # black beyond the true outline
    row = score_views(wide, ref, replace(ANY, metrics=("psnr_foreground", "mask_iou")))
    assert list(row) == ["psnr_foreground", "psnr_union", "mask_iou"]
    assert row["psnr_foreground"] == 100.0
    # 4 of the 12 columns of the union differ by 1 in every channel
    assert row["psnr_union"] == pytest.approx(-10 * math.log10(4 / 12), abs=1e-4)
