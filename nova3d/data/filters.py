"""Filters of renders: a few measures of the pictures, a threshold on each, a reason code for each fault.

Era3D names four criteria: normals that disagree with the depth (flipped faces), colour and normal masks that disagree
(transparent surfaces), views that are too thin at elevation 0, and odd poses. The first three are measured here; a pose
cannot be judged from pictures alone. Wonder3D dropped a tenth of its objects for empty views.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.data.config import FilterConfig
from nova3d.errors import InputError
from nova3d.images import srgb_to_linear
from nova3d.rendering.engine import Rendered
from nova3d.rendering.reasons import Reason

_MAX_PIXELS = 1 << 15  # pixels that colour and normals are judged on; more does not change the shares
_GRAZING = 0.25  # cosine to the view below which a depth gradient is not reliable
_STEP = 0.25  # pixels; a larger second difference of the depth is an edge, not a surface
_MIN_PIXELS = 200  # pixels; a lattice of bars has too few to be judged by


@dataclass(frozen=True)
class FilterResult:
    """What the filters say of one object.

    Attributes:
        measures: the numbers, rounded to 4 digits (JSON values).
        tags: every fault, in the order of the rules.
        reject: the first fault that refuses the object, None where it is kept.
        message: one line on the faults, "" without.
    """

    measures: dict[str, float]
    tags: list[Reason]
    reject: Reason | None
    message: str


@dataclass(frozen=True)
class _Rule:
    reason: Reason
    measure: str
    threshold: str  # the field of FilterConfig, "" for 0
    above: bool  # the fault is a value above the threshold, otherwise below


_RULES = (
    _Rule(Reason.BLANK_RENDER, "empty_views", "empty_views", above=True),
    _Rule(Reason.BLANK_RENDER, "brightest", "darkness", above=False),
    _Rule(Reason.TINY_COVERAGE, "coverage", "coverage", above=False),
    _Rule(Reason.CLIPPED, "border", "border", above=True),
    _Rule(Reason.THIN, "thin", "thin", above=False),
    _Rule(Reason.MISSING_TEXTURE, "missing_textures", "", above=True),
    _Rule(Reason.MISSING_TEXTURE, "magenta", "magenta", above=True),
    _Rule(Reason.TRANSPARENT, "opacity", "opacity", above=False),
    _Rule(Reason.TRANSPARENT, "mask_agreement", "mask_agreement", above=False),
    _Rule(Reason.NORMALS_DISAGREE, "normals_agree", "normals_agree", above=False),
    _Rule(Reason.EMISSIVE, "overexposed", "overexposed", above=True),
    _Rule(Reason.INVERTED_HULL, "inverted_hull", "inverted_hull", above=True),
    _Rule(Reason.UNTEXTURED, "colour_spread", "colour_spread", above=False),
)


def apply_filters(rendered: Rendered, cameras: Cameras, config: FilterConfig) -> FilterResult:
    """Measure the views of one object and compare them with the thresholds.

    Opacity, overexposure, missing textures and outlines are the engine's facts, compared where it reports them.

    Args:
        rendered: v views.
        cameras: their v cameras.
        config: the thresholds.

    Returns:
        Measures, tags and whether the object is refused.

    Raises:
        InputError: where `config.reject` has a code that no rule gives.
    """
    check_config(config)
    measures = {name: round(value, 4) for name, value in _measure(rendered, cameras, config).items()}
    faults = [rule for rule in _RULES if rule.measure in measures and _broken(rule, measures, config)]
    tags = list(dict.fromkeys(rule.reason for rule in faults))
    reject = next((tag for tag in tags if tag in config.reject), None)
    message = ", ".join(f"{rule.reason}: {_explain(rule, measures, config)}" for rule in faults)
    return FilterResult(measures, tags, reject, message)


def check_config(config: FilterConfig) -> None:
    """Raise InputError where `reject` has a code that no rule gives."""
    known = dict.fromkeys(rule.reason.value for rule in _RULES)
    for code in config.reject:
        if code not in known:
            raise InputError(f"filters.reject: '{code}' is not one of {', '.join(known)}")


def worst_measure(measures: Mapping[str, float], config: FilterConfig) -> tuple[float, str]:
    """Find the measure nearest to its threshold.

    Args:
        measures: of one object; see FilterResult.
        config: the thresholds.

    Returns:
        How near it is, as a ratio above 1 where it is past the threshold, and the measure in words. (0, "") without
        measures.
    """
    worst = (0.0, "")
    for rule in _RULES:
        if rule.measure in measures and rule.threshold:
            value, limit = measures[rule.measure], _limit(rule, config)
            if rule.above:
                ratio = value / max(limit, 1e-4)
            elif limit > 0.5:  # a share that should be 1: what is missing of it counts
                ratio = (1 - value) / max(1 - limit, 1e-4)
            else:
                ratio = limit / max(value, 1e-4)
            worst = max(worst, (ratio, f"{rule.measure} {value:.3g}, limit {limit:.3g}"))
    return worst


def _limit(rule: _Rule, config: FilterConfig) -> float:
    return float(getattr(config, rule.threshold)) if rule.threshold else 0.0


def _broken(rule: _Rule, measures: Mapping[str, float], config: FilterConfig) -> bool:
    value, limit = measures[rule.measure], _limit(rule, config)
    return not (value <= limit if rule.above else value >= limit)  # NaN is a fault


def _explain(rule: _Rule, measures: Mapping[str, float], config: FilterConfig) -> str:
    sign = ">" if rule.above else "<"
    return f"{rule.measure} {measures[rule.measure]:g} {sign} {_limit(rule, config):.4g}"


def _measure(rendered: Rendered, cameras: Cameras, config: FilterConfig) -> dict[str, float]:
    alpha = rendered.rgba[..., 3]
    areas = alpha.mean(dim=(1, 2))
    ring = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, 1:-1, 0], alpha[:, 1:-1, -1]], dim=1)
    measures = {
        "empty_views": (areas < config.empty_view).float().mean().item(),
        "coverage": areas.mean().item(),
        "border": (ring > 0.5).float().mean(dim=1).max().item(),
        "thin": (areas.min() / areas.max().clamp_min(1e-9)).item(),
    }
    for name in ("opacity", "overexposed", "missing_textures", "inverted_hull"):
        if name in rendered.facts:
            measures[name] = _number(rendered.facts[name])
    covered = _subsample(torch.nonzero((alpha > 0.5).flatten())[:, 0])
    if len(covered) == 0:
        return measures | {"empty_views": 1.0}
    colours = rendered.rgba.reshape(-1, 4)[covered, :3]
    normals = rendered.normals.reshape(-1, 3)[covered]
    red, green, blue = colours.unbind(dim=-1)
    magenta = (red > 0.5) & (green < 0.02) & ((red - blue).abs() < 0.02)
    return measures | {
        "brightest": colours.max().item(),
        "mask_agreement": (normals.abs().amax(dim=-1) > 0).float().mean().item(),
        "magenta": magenta.float().mean().item(),
        "colour_spread": colour_spread(colours, normals),
        "normals_agree": normals_agreement(rendered, cameras, config.normals_angle_deg),
    }


def _number(fact: Any) -> float:
    return float(len(fact)) if isinstance(fact, list | tuple) else float(fact)


def colour_spread(colours: Tensor, normals: Tensor) -> float:
    """Measure how far colours deviate from those of a uniform matt surface, relative to their mean.

    Distant light of any kind reaches a matt surface as 9 coefficients of its normal (Ramamoorthi and Hanrahan 2001).
    What their least-squares fit leaves over in linear light is texture, or shadow.

    Args:
        colours: [n,3] in [0,1], sRGB.
        normals: [n,3], unit.

    Returns:
        The root mean square of the residual over the mean, both in linear light.
    """
    linear = srgb_to_linear(colours)
    x, y, z = normals.unbind(dim=-1)
    harmonics = torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, z * z], dim=-1)
    gram = harmonics.T @ harmonics + 1e-4 * len(x) * torch.eye(9, device=x.device)
    residual = linear - harmonics @ torch.linalg.solve(gram, harmonics.T @ linear)
    return (residual.square().mean().sqrt() / linear.mean().clamp_min(1e-4)).item()


def normals_agreement(rendered: Rendered, cameras: Cameras, angle_deg: float) -> float:
    """Measure how often normals agree with the gradient of the depth.

    Only pixels count that are covered with all their neighbours, away from steps of depth, and not seen at a grazing
    angle. In camera axes a normal is (dd/dx, dd/dy, 1) of an orthographic depth d, and
    -(dw/du, dw/dv, u dw/du + v dw/dv - w) of w = 1/d in a perspective picture.

    Args:
        rendered: v views.
        cameras: their v cameras.
        angle_deg: the largest angle at which a normal agrees.

    Returns:
        The share of pixels that agree; 1 where too few count.
    """
    depth, inside = rendered.depth, rendered.rgba[..., 3] > 0.99
    view, row, column = _subsample(torch.nonzero(inside[:, 1:-1, 1:-1])).T
    row, column = row + 1, column + 1
    crosses = [(view, row + i, column + j) for i, j in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))]
    covered = torch.stack([inside[cross] for cross in crosses]).all(dim=0)
    # The depth of a plane is affine in the pixels of an orthographic picture, its inverse in those of a perspective.
    perspective = cameras.model == "perspective"
    values = torch.stack([depth[cross] for cross in crosses])
    centre, left, right, up, down = 1 / values.clamp_min(1e-6) if perspective else values
    fx, fy, cx, cy = cameras.intrinsics.to(depth.device)[view].T
    step = (left + right - 2 * centre).abs() + (up + down - 2 * centre).abs()
    usable = covered & (step < _STEP * (centre if perspective else 1) / fx)
    dx, dy = (right - left) / 2 * fx, (up - down) / 2 * fy  # rows grow downwards, +Y is up
    if perspective:
        u, v = (column + 0.5 - cx) / fx, (cy - row - 0.5) / fy
        geometric = torch.stack([-dx, -dy, centre - u * dx - v * dy], dim=-1)
    else:
        geometric = torch.stack([dx, dy, torch.ones_like(dx)], dim=-1)
    geometric = F.normalize(geometric, dim=-1)
    usable = usable & (geometric[:, 2] > _GRAZING)
    if int(usable.sum()) < _MIN_PIXELS:
        return 1.0
    rotation = cameras.c2w.to(depth.device)[view, :3, :3]
    given = torch.einsum("nji,nj->ni", rotation, rendered.normals[view, row, column])
    agrees = (given * geometric).sum(dim=-1) >= math.cos(math.radians(angle_deg))
    return agrees[usable].float().mean().item()


def _subsample(pixels: Tensor) -> Tensor:
    """Return at most _MAX_PIXELS rows, evenly spaced."""
    return pixels[:: max(1, -(-len(pixels) // _MAX_PIXELS))]
