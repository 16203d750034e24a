"""The metric of docs/how-to/extending.md, in a copy of the package that has it."""

from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score
from nova3d.evaluation.formats import header
from nova3d.evaluation.protocols import ViewRules
from nova3d.metrics.registry import VIEW_METRICS, ViewMetric, register
from nova3d.views import ViewSet
from tests.evaluation.samples import ball


def test_the_example_of_a_metric_is_scored(tmp_path: Path) -> None:
    ref = ball(32)
    ref.save(tmp_path / "ref/cup")
    ViewSet(ref.rgb.roll(1, dims=2), ref.normals, ref.mask, ref.cameras).save(tmp_path / "pred/cup")
    rules = ViewRules(cameras="any", count=0, size=0, metrics=("psnr", "gradient_error"))
    protocol = Protocol(kinds=("views",), hull_cells=0, views=rules)
    table = score(tmp_path / "pred", tmp_path / "ref", protocol)
    assert table.metrics == ["psnr", "gradient_error"] and table.rows["cup"]["gradient_error"] > 0.01
    assert score(tmp_path / "ref", tmp_path / "ref", protocol).rows["cup"]["gradient_error"] == 0
    assert header("gradient_error") == "gradient_error ↓"
    assert "gradient_error ↓" in table.markdown()


def test_a_name_is_registered_once_and_needs_something_to_compute() -> None:
    with pytest.raises(InputError, match="a metric 'psnr' exists already"):
        register(ViewMetric("psnr", VIEW_METRICS["psnr"].compute))
    with pytest.raises(InputError, match="either `compute` or `network`"):
        register(ViewMetric("empty"))
