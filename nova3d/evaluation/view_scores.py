"""From two ViewSets to a row: which views, on what background, and one column per metric of the protocol."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nova3d import metrics as pictures
from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.evaluation import variants
from nova3d.evaluation.protocols import ViewRules
from nova3d.metrics import perceptual
from nova3d.views import ViewSet

MAX_CAMERA_GAP = 0.5  # pixels; a wider shift already costs more PSNR than published methods differ by

_PER_VIEW: Mapping[str, Callable[[ViewSet, ViewSet], Tensor]] = {
    "psnr": lambda pred, ref: pictures.psnr(pred.rgb, ref.rgb),
    "psnr_u8": lambda pred, ref: variants.psnr_u8(pred.rgb, ref.rgb),
    "psnr_foreground": lambda pred, ref: pictures.foreground_psnr(pred.rgb, ref.rgb, ref.mask),
    "psnr_registered4": lambda pred, ref: pictures.registered_psnr(pred.rgb, ref.rgb, max_shift=4),
    "ssim": lambda pred, ref: pictures.ssim(pred.rgb, ref.rgb),
    "ssim_foreground": lambda pred, ref: pictures.foreground_ssim(pred.rgb, ref.rgb, ref.mask),
    "ssim_own_range": lambda pred, ref: variants.ssim_own_range(pred.rgb, ref.rgb),
    "ssim_uniform7_u8": lambda pred, ref: variants.ssim_uniform7_u8(pred.rgb, ref.rgb),
    "mask_iou": lambda pred, ref: pictures.mask_iou(pred.mask, ref.mask),
}


@dataclass(frozen=True)
class Networks:
    """The perceptual metrics of a protocol: those that can be computed, and why the others cannot.

    found: column -> network. missing: column -> reason, for the table.
    """

    found: Mapping[str, perceptual.Metric] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def load(metrics: tuple[str, ...], weights: Mapping[str, str | Path], device: torch.device | str) -> "Networks":
        """The networks that `metrics` name, on `device`. weights: column -> file, where it is not the published one."""
        makers: dict[str, Callable[[], perceptual.Metric]] = {
            "lpips_vgg": lambda: perceptual.Lpips("vgg", weights.get("lpips_vgg")).to(device),
            "lpips_alex": lambda: perceptual.Lpips("alex", weights.get("lpips_alex")).to(device),
            "clip_vit_l_14": lambda: _clip(weights.get("clip_vit_l_14")).to(device),
        }
        if unknown := [name for name in weights if name not in makers]:
            raise InputError(f"weights for '{unknown[0]}': the metrics with weights are {', '.join(makers)}")
        found, missing = perceptual.available({name: makers[name] for name in metrics if name in makers})
        return Networks(found, missing)

    def facts(self) -> dict[str, str]:
        """`weights`: the hash of each network's weights, for the table; empty without networks."""
        hashes = [f"{name} {network.weights_hash}" for name, network in self.found.items()]
        return {"weights": ", ".join(hashes)} if hashes else {}


def _clip(file: str | Path | None) -> perceptual.ClipSimilarity:
    return perceptual.ClipSimilarity() if file is None else perceptual.ClipSimilarity("ViT-L-14-quickgelu", file)


def score_views(
    pred: ViewSet, ref: ViewSet, rules: ViewRules, networks: Networks | None = None, name: str = "object"
) -> dict[str, float]:
    """Column -> value for one object: images averaged over its scored views, angles pooled over them.

    A column whose network is missing is nan. Raises InputError where the two sides differ in number, size or cameras.
    """
    check_same_cameras(pred.cameras, ref.cameras, name)
    index = scored_views(len(ref), rules, name)
    pred, ref = on_background(pred[index], rules), on_background(ref[index], rules, rules.edges == "hard")
    return image_row(pred, ref, rules.metrics, networks or Networks())


def image_row(pred: ViewSet, ref: ViewSet, metrics: tuple[str, ...], networks: Networks) -> dict[str, float]:
    """The columns of `metrics` (protocols.IMAGE_METRICS), in their order, over all views of both."""
    row: dict[str, float] = {}
    for metric in metrics:
        if metric == "normals":
            angles = pictures.normal_angle(pred.normals, ref.normals, ref.mask)
            row |= {
                f"normal_{key}" + ("_deg" if key in ("mean", "median") else ""): angle for key, angle in angles.items()
            }
        elif metric in _PER_VIEW:
            # nan only for a view in which the reference shows no surface, which has no foreground to score
            row[metric] = float(_PER_VIEW[metric](pred, ref).nanmean())
        elif metric in networks.found:
            row[metric] = float(networks.found[metric](pred.rgb, ref.rgb).mean())
        else:
            row[metric] = math.nan
    return row


def scored_views(count: int, rules: ViewRules, name: str) -> list[int]:
    """The indices that the rules score of `count` views; raises InputError where none is left or one is not there."""
    index = [i for i in (rules.scored or range(count)) if i or rules.include_input_view]
    if not index or max(index) >= count:
        last = f"views up to {max(index)} are scored" if index else "nothing is left to score besides the input view"
        raise InputError(f"object '{name}' has {count} views: {last}")
    return index


def on_background(views: ViewSet, rules: ViewRules, hard: bool = False) -> ViewSet:
    """The views with `rules.background` in place of white; `hard`: every pixel with any alpha in its full colour."""
    rgb = views.rgb
    coverage = views.mask[..., None]
    if hard:
        straight = torch.stack([views.straight_alpha(i) for i in range(len(views))])
        coverage = (straight[..., 3:] > 0).to(rgb)
        rgb = torch.where(coverage > 0, straight[..., :3], 1.0)
    return replace(views, rgb=rgb + (rules.background - 1) * (1 - coverage))


def check_rig(ref: ViewSet, rules: ViewRules, name: str) -> None:
    """Raise InputError where reference views are not what the rules fix: their number, size or cameras."""
    width, height = ref.cameras.width, ref.cameras.height
    if rules.size and (width, height) != (rules.size, rules.size):
        raise InputError(
            f"reference '{name}' is {width}x{height}, the protocol scores {rules.size}x{rules.size}: render it so, or "
            f"give views.size={width}, which is another protocol with another hash"
        )
    if rules.count and len(ref) != rules.count:
        raise InputError(f"reference '{name}' has {len(ref)} views, the protocol scores {rules.count}")
    if rules.cameras != "any":
        check_same_cameras(
            ref.cameras, preset(rules.cameras, width), f"{name}' against the protocol's '{rules.cameras}"
        )


def check_same_cameras(pred: Cameras, ref: Cameras, name: str) -> None:
    """Raise InputError naming the object where number, size or any camera differs by more than MAX_CAMERA_GAP."""
    ours, theirs = ((len(c), c.width, c.height) for c in (pred, ref))
    if ours != theirs:
        raise InputError(
            f"object '{name}' has {ours[0]} views of {ours[1]}x{ours[2]} where {theirs[0]} of {theirs[1]}x{theirs[2]} "
            "are expected: render or sample both sides alike"
        )
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    gap = (pred.project(corners)[0] - ref.project(corners)[0]).norm(dim=-1).amax(dim=1)
    if not bool((gap <= MAX_CAMERA_GAP).all()):
        raise InputError(
            f"object '{name}': the camera of view {int(gap.argmax())} is {float(gap.max()):.1f} px off the expected "
            "one; score views made with the same cameras"
        )
