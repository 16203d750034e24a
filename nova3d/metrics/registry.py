"""The registry of metrics on views: names that a protocol may use under `views.metrics` and `textures.metrics`.

A metric of your own is a file that calls `register`, and a line in `nova3d/metrics/__init__.py` that imports it:
docs/how-to/extending.md has a complete example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.metrics import perceptual
from nova3d.metrics.views import (
    foreground_psnr,
    foreground_ssim,
    mask_iou,
    normal_angle,
    psnr,
    psnr_u8,
    psnr_union,
    registered_psnr,
    ssim,
    ssim_own_range,
    ssim_own_range_cropped,
    ssim_uniform7_u8,
)
from nova3d.views import ViewSet

Compute = Callable[[ViewSet, ViewSet], Tensor | Mapping[str, float]]
MakeNetwork = Callable[[str | Path | None, torch.device | str], perceptual.Metric]


@dataclass(frozen=True)
class Style:
    """How a metric is printed."""

    lower_is_better: bool = False
    unit: str = ""
    """Empty without a unit, or where the name contains it."""
    decimals: int = 3
    ranked: bool = True
    """Whether the metric has a better direction. Otherwise its value is read beside the reference's own."""


@dataclass(frozen=True)
class ViewMetric:
    """One metric of predicted views against reference views of the same cameras."""

    name: str
    """The name in a protocol, and the column's name unless `compute` returns several columns."""
    compute: Compute | None = None
    """Prediction and reference of v views to one value per view [v], nan where a view has none; or to the values of
    several columns, each pooled over all views. None for a metric with a network."""
    network: MakeNetwork | None = None
    """Makes the network of a perceptual metric: (weights file or None, device) to a `perceptual.Metric`."""
    version: int = 1
    """Raise it whenever the metric gives another value for the same views. Cached scores are then recomputed, and
    the hash of every protocol that uses the metric changes."""
    companions: tuple[str, ...] = ()
    """Metrics that are computed beside this one wherever a protocol names it."""
    style: Style | None = None
    """None: what the name implies (`evaluation.formats.style`)."""


VIEW_METRICS: dict[str, ViewMetric] = {}


def register(metric: ViewMetric) -> None:
    """Add a metric, so that protocols can name it.

    Args:
        metric: the metric; exactly one of its `compute` and `network` is given.

    Raises:
        InputError: where the name is taken, or not exactly one of the two is given.
    """
    if metric.name in VIEW_METRICS:
        raise InputError(f"a metric '{metric.name}' exists already: choose another name")
    if (metric.compute is None) == (metric.network is None):
        raise InputError(f"metric '{metric.name}' must have either `compute` or `network`")
    VIEW_METRICS[metric.name] = metric


def with_companions(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that a protocol computes where it names `names`: each followed by its companions, none twice."""
    return tuple(dict.fromkeys(each for name in names for each in (name, *VIEW_METRICS[name].companions)))


def _normals(pred: ViewSet, ref: ViewSet) -> dict[str, float]:
    angles = normal_angle(pred.normals, ref.normals, ref.mask)
    return {f"normal_{key}" + ("_deg" if key in ("mean", "median") else ""): angle for key, angle in angles.items()}


def _clip(weights: str | Path | None, device: torch.device | str) -> perceptual.Metric:
    if weights is None:
        return perceptual.ClipSimilarity().to(device)
    return perceptual.ClipSimilarity("ViT-L-14-quickgelu", weights).to(device)


for _metric in (
    ViewMetric("psnr", lambda pred, ref: psnr(pred.rgb, ref.rgb)),
    ViewMetric("psnr_u8", lambda pred, ref: psnr_u8(pred.rgb, ref.rgb)),
    ViewMetric(
        "psnr_foreground",
        lambda pred, ref: foreground_psnr(pred.rgb, ref.rgb, ref.mask),
        companions=("psnr_union",),
    ),
    ViewMetric("psnr_union", lambda pred, ref: psnr_union(pred.rgb, ref.rgb, pred.mask, ref.mask)),
    ViewMetric("psnr_registered4", lambda pred, ref: registered_psnr(pred.rgb, ref.rgb, max_shift=4)),
    ViewMetric("ssim", lambda pred, ref: ssim(pred.rgb, ref.rgb)),
    ViewMetric("ssim_foreground", lambda pred, ref: foreground_ssim(pred.rgb, ref.rgb, ref.mask)),
    ViewMetric("ssim_own_range", lambda pred, ref: ssim_own_range(pred.rgb, ref.rgb)),
    ViewMetric("ssim_own_range_cropped", lambda pred, ref: ssim_own_range_cropped(pred.rgb, ref.rgb)),
    ViewMetric("ssim_uniform7_u8", lambda pred, ref: ssim_uniform7_u8(pred.rgb, ref.rgb)),
    ViewMetric("lpips_vgg", network=lambda weights, device: perceptual.Lpips("vgg", weights).to(device)),
    ViewMetric("lpips_alex", network=lambda weights, device: perceptual.Lpips("alex", weights).to(device)),
    ViewMetric("clip_vit_l_14", network=_clip),
    ViewMetric("mask_iou", lambda pred, ref: mask_iou(pred.mask, ref.mask)),
    ViewMetric("normals", _normals),
):
    register(_metric)
