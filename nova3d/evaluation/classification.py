"""Two classes: log-odds fitted to them, and how well a score separates them."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

_RIDGE = 1e-2  # weight of the squared standardised weights in the loss


def logistic_regression(features: Tensor, truth: Tensor) -> Tensor:
    """Weights of a logistic regression, with a small ridge on the standardised features.

    Args:
        features: [m,k] float32; the first is one.
        truth: [m] float32, 0 or 1.

    Returns:
        [k] float32: the log-odds are features @ weights.
    """
    mean, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    mean[0], scale[0] = 0, 1
    standard = (features - mean) / scale
    weights = torch.zeros(features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(standard @ weights, truth) + _RIDGE * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = weights.detach() / scale
    found[0] -= (found[1:] * mean[1:]).sum()
    return found


def auroc(score: Tensor, positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve (AUROC) of a score.

    Args:
        score: [...] float, one value per sample.
        positive: [...] bool, the samples that should score high.
        negative: [...] bool, the samples that should score low.

    Returns:
        The probability that a positive sample scores higher than a negative one, ties counting half; nan without both.
    """
    a, b = score[positive].numpy(), score[negative].numpy()
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    ranks = rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))
