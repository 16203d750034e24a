"""Every metric's values, pinned together with its declared version.

Kept scores are read again while the versions of their metrics are the same, and tables compare while the protocol's
hash is. So a metric whose values change must raise its version: `version` in nova3d/metrics/registry.py, VERSIONS in
nova3d/evaluation/mesh_metrics.py, VERSION in nova3d/evaluation/baselines.py. Where a test here fails, raise the version
of the metric and pin the new value with it. A rounding difference between machines is no change: see `rel`.
"""

from dataclasses import replace

import pytest
import torch
import trimesh

from nova3d.evaluation import Protocol, baselines, mesh_metrics
from nova3d.evaluation.mesh_scores import MeshReference, score_meshes
from nova3d.evaluation.protocols import MeshRules, ViewRules
from nova3d.evaluation.view_scores import Networks, image_row
from nova3d.metrics.registry import VIEW_METRICS, ViewMetric
from nova3d.views import ViewSet
from tests.evaluation.samples import ball

REL = 1e-4
Values = dict[str, tuple[int, dict[str, float]]]
VIEWS = {
    "psnr": (1, {"psnr": 17.30029}),
    "psnr_u8": (1, {"psnr_u8": 17.29914}),
    "psnr_foreground": (1, {"psnr_foreground": 14.09808}),
    "psnr_union": (1, {"psnr_union": 11.27968}),
    "psnr_registered4": (1, {"psnr_registered4": 26.43151}),
    "ssim": (1, {"ssim": 0.7900855}),
    "ssim_foreground": (1, {"ssim_foreground": 0.6333932}),
    "ssim_own_range": (1, {"ssim_own_range": 0.7898622}),
    "ssim_own_range_cropped": (1, {"ssim_own_range_cropped": 0.6660815}),
    "ssim_uniform7_u8": (1, {"ssim_uniform7_u8": 0.7629258}),
    "mask_iou": (1, {"mask_iou": 0.8194444}),
    "normals": (
        1,
        {
            "normal_mean_deg": 18.60483,
            "normal_median_deg": 17.90864,
            "normal_within_11.25": 0.189089,
            "normal_within_22.5": 0.6430085,
            "normal_within_30": 0.9300847,
        },
    ),
}
MESHES = {
    "area": (
        1,
        {
            "cd_l2_area2k": 0.04067879,
            "f_score_0.01": 0.07117895,
            "f_score_0.02": 0.2148943,
            "normal_consistency": 0.9045,
        },
    ),
    "visible16": (1, {"cd_l2_visible16_v001": 0.04036845}),
    "flood": (1, {"iou32_flood": 0.8653846}),
    "watertight": (1, {"watertight": 1}),
    "shape": (1, {"input_iou": 0.9005848, "thin_share": 0.0, "side_width": 0.875, "rim_angle_deg": 0.0, "parts": 1}),
}


def views() -> tuple[ViewSet, ViewSet]:
    """A ball, and the same moved by two pixels, darker, its normals turned a little."""
    ref = ball(48)
    moved = baselines.shifted(ref, 2)
    turned = torch.nn.functional.normalize(moved.normals + 0.2 * moved.mask[..., None], dim=-1) * moved.mask[..., None]
    return replace(moved, rgb=moved.rgb - 0.1 * moved.mask[..., None], normals=turned), ref


@pytest.fixture(scope="module")
def view_values() -> Values:
    """Metric -> version and columns."""
    found = {}
    for name, metric in VIEW_METRICS.items():
        if metric.compute:
            row = image_row(*views(), (name,), Networks())
            found[name] = (metric.version, {k: v for k, v in row.items() if k not in metric.companions})
    return found


@pytest.fixture(scope="module")
def mesh_values() -> Values:
    """The metrics of two boxes, by the name of their version."""
    rules = MeshRules(points=("area", "visible16"), surface_samples=2000, ious=("iou32_flood",), mirror_margin=False)
    ref = MeshReference.prepare(trimesh.creation.box((1.0, 0.6, 0.8)), rules, 0)
    row, _ = score_meshes(trimesh.creation.box((0.9, 0.6, 0.7)), ref, rules)
    columns = {
        "area": ("cd_l2_area2k", "f_score_0.01", "f_score_0.02", "normal_consistency"),
        "visible16": ("cd_l2_visible16_v001",),
        "flood": ("iou32_flood",),
        "watertight": ("watertight",),
        "shape": ("input_iou", "thin_share", "side_width", "rim_angle_deg", "parts"),
    }
    return {name: (mesh_metrics.VERSIONS[name], {c: row[c] for c in of}) for name, of in columns.items()}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_metric_has_the_values_of_its_version(view_values: Values, name: str) -> None:
    version, row = view_values[name]
    assert (version, row) == (VIEWS[name][0], pytest.approx(VIEWS[name][1], rel=REL)), "raise the metric's version"


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_metric_has_the_values_of_its_version(mesh_values: Values, name: str) -> None:
    version, row = mesh_values[name]
    assert (version, row) == (MESHES[name][0], pytest.approx(MESHES[name][1], rel=REL)), "raise the metric's version"


def test_every_metric_is_pinned() -> None:
    """Networks are told apart by the hash of their weights, mesh2sdf by its package."""
    assert VIEWS.keys() == {name for name, metric in VIEW_METRICS.items() if metric.compute}
    assert MESHES.keys() == mesh_metrics.VERSIONS.keys() - {"mesh2sdf"}


def test_baselines_have_the_pictures_of_their_version() -> None:
    found = {label: float(of.rgb.mean()) for label, of in baselines.view_baselines(ball(32), (1,), 16)}
    assert (baselines.VERSION, found) == (3, pytest.approx(BASELINES, rel=REL)), "raise baselines.VERSION"


BASELINES = {
    "all-white image": 1,
    "copy of the input view (scored on the others)": 0.9064634,
    "inflated outline of the input view": 0.9116471,
    "cut-out of the input view": 0.949156,
    "silhouette oracle": 0.9064634,
    "hull of input view, mean colour": 0.8705809,
    "hull of all views, mean colour": 0.9068666,
    "true views, 1 px off": 0.8867188,
}


def test_a_raised_version_changes_the_hash_of_the_protocols_that_use_the_metric(monkeypatch) -> None:
    uses = Protocol(views=ViewRules(metrics=("psnr", "psnr_foreground")))
    other = Protocol(views=ViewRules(metrics=("ssim",)))
    before = uses.hash, other.hash
    # psnr_union is a companion of psnr_foreground
    monkeypatch.setitem(VIEW_METRICS, "psnr_union", replace(VIEW_METRICS["psnr_union"], version=2))
    assert uses.hash != before[0] and other.hash == before[1]


def test_a_new_metric_changes_no_hash(monkeypatch) -> None:
    before = Protocol().hash
    monkeypatch.setitem(VIEW_METRICS, "new", ViewMetric("new", lambda pred, ref: torch.zeros(len(pred))))
    assert Protocol().hash == before
