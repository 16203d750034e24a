"""Candidates: the view set that one solid explains best is taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nova3d import cameras, sampling
from nova3d.candidates import agreement, silhouette_agreement
from nova3d.rendering import render_object
from nova3d.settings import SampleConfig
from nova3d.views import ViewSet


@pytest.fixture(scope="module")
def truth(lopsided_file: Path) -> ViewSet:
    return render_object(lopsided_file, cameras.orbit(8, size=48), supersample=2)


def grown(views: ViewSet, view: int) -> ViewSet:
    """The same views, one of them with a bar across its mask that no other view allows."""
    mask = views.mask.clone()
    mask[view, 20:28, 6:42] = 1
    return replace(views, mask=mask)


def test_true_views_agree_and_every_contradiction_costs(truth: ViewSet) -> None:
    best = silhouette_agreement(truth)
    assert best > 0.9
    one, two = silhouette_agreement(grown(truth, 3)), silhouette_agreement(grown(grown(truth, 3), 5))
    assert best > one + 0.003 and one > two + 0.003


def test_the_picture_counts_most(truth: ViewSet) -> None:
    assert silhouette_agreement(grown(truth, 0)) < silhouette_agreement(grown(truth, 4)) - 0.02


def test_outlines_of_colours_and_normals_count_as_much_as_silhouettes(truth: ViewSet) -> None:
    assert agreement(truth, [0.4, 0.8]) == pytest.approx((0.6 + silhouette_agreement(truth)) / 2)


def test_the_best_seed_is_taken_and_all_are_kept(
    truth: ViewSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {0: grown(truth, 3), 1: truth, 2: grown(truth, 0)}
    iou = {0: [0.9], 1: [0.901], 2: [0.902]}
    monkeypatch.setattr(sampling, "generate_views", lambda _p, _i, config, _b: (made[config.seed], iou[config.seed]))
    config = SampleConfig(seeds=[0, 1, 2, 1], keep_candidates=True)
    views, task_iou, chosen = sampling._best_candidate(None, torch.zeros(0), config, tmp_path, None)
    scores = chosen["candidates"]
    assert views is truth and task_iou == [0.901] and list(scores) == [0, 1, 2]
    assert max(scores, key=scores.get) == 1 == chosen["seed"]
    assert sorted(path.name for path in (tmp_path / "candidates").iterdir()) == ["seed0", "seed1", "seed2"]
    assert torch.equal(ViewSet.load(tmp_path / "candidates/seed2").mask[0] > 0.5, made[2].mask[0] > 0.5)
    views, _, chosen = sampling._best_candidate(None, torch.zeros(0), SampleConfig(seed=2), tmp_path, None)
    assert views is made[2] and chosen == {"seed": 2}
