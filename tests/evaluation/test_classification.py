import numpy as np
import pytest
import torch

from nova3d.evaluation.classification import auroc, logistic_regression


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.ones(40000, 1), torch.randn(40000, 2, generator=generator) * 2 + 1], dim=1)
    weights = torch.tensor([-0.5, 0.8, -0.3])
    truth = (torch.rand(40000, generator=generator) < torch.sigmoid(features @ weights)).float()
    found = logistic_regression(features, truth)
    assert (found - weights).abs().max() < 0.2  # the ridge pulls a little
    assert float(found[1]) > 0.5 and float(found[2]) < -0.15


def test_auroc_of_known_scores():
    score = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.4])
    positive = torch.tensor([False, False, True, True, True])
    # of the six pairs (positive, negative): .35>.1, .35<.4, .8>.1, .8>.4, .4>.1, .4=.4
    assert auroc(score, positive, ~positive) == pytest.approx(4.5 / 6)
    assert np.isnan(auroc(score, positive, torch.zeros(5, dtype=torch.bool)))
