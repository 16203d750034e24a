"""Scores of pictures: predicted views against reference views, and pictures of textured meshes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.evaluation import baselines
from nova3d.evaluation.folders import ObjectFolder, mesh_turn
from nova3d.evaluation.mesh_metrics import read_surface, to_unit
from nova3d.evaluation.protocols import Protocol, ViewRules
from nova3d.evaluation.rerender import rerender
from nova3d.metrics import perceptual
from nova3d.metrics.registry import VIEW_METRICS, with_companions
from nova3d.views import ViewSet

Row = dict[str, float]

MAX_CAMERA_GAP = 0.5  # pixels; a larger shift costs more PSNR than published methods differ by


@dataclass(frozen=True)
class Networks:
    """The networks of a protocol's perceptual metrics.

    Attributes:
        found: metric -> network, of the metrics that can be computed.
        missing: metric -> reason, of the others, for the table.
    """

    found: Mapping[str, perceptual.Metric] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def load(metrics: tuple[str, ...], weights: Mapping[str, str | Path], device: torch.device | str) -> "Networks":
        """Load what a protocol needs.

        Args:
            metrics: names of `metrics.VIEW_METRICS`; those without a network are skipped.
            weights: metric -> weights file, where it is not the published one.
            device: the networks' device.

        Raises:
            InputError: where `weights` names no metric with a network, or a file holds other weights.
        """
        makers = {name: metric.network for name, metric in VIEW_METRICS.items() if metric.network}
        if unknown := [name for name in weights if name not in makers]:
            raise InputError(f"weights for '{unknown[0]}': the metrics with weights are {', '.join(makers)}")
        wanted: dict[str, Callable[[], perceptual.Metric]] = {
            name: partial(makers[name], weights.get(name), device) for name in metrics if name in makers
        }
        return Networks(*perceptual.available(wanted))

    def facts(self) -> dict[str, str]:
        """`weights`: the hash of each network's weights, for the table; empty without networks."""
        hashes = [f"{name} {network.weights_hash}" for name, network in self.found.items()]
        return {"weights": ", ".join(hashes)} if hashes else {}


class ViewScorer:
    """Scores predicted views of one object; the reference is read once.

    Raises InputError where the reference is missing or is not of the protocol's rig.
    """

    def __init__(self, name: str, references: ObjectFolder, protocol: Protocol, networks: Networks):
        self.name, self.rules, self.networks = name, protocol.views, networks
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        self.ref = references.views(name, self.rules)
        check_rig(self.ref, self.rules, name)

    def score(self, prediction: ObjectFolder) -> Row:
        """Column -> value; raises InputError where the prediction is missing or unusable."""
        return score_views(prediction.views(self.name, self.rules), self.ref, self.rules, self.networks, self.name)

    def score_failure(self) -> Row:
        """The row of a failed prediction: white pictures."""
        return score_views(baselines.all_white(self.ref), self.ref, self.rules, self.networks, self.name)

    def score_baselines(self) -> Iterator[tuple[str, Row]]:
        """Name and row of every baseline."""
        for label, views in baselines.view_baselines(self.ref, self.rules.shifts, self.hull_cells):
            rules = replace(self.rules, include_input_view=False) if label in baselines.SHOW_INPUT else self.rules
            yield label, score_views(views, self.ref, rules, self.networks, self.name)


class TextureScorer:
    """Scores the textured mesh of one object by pictures of it and of the reference, drawn in the same way.

    Raises InputError where the reference is missing or cannot be drawn.
    """

    def __init__(self, name: str, references: ObjectFolder, protocol: Protocol, networks: Networks, device: str):
        self.name, self.rules, self.networks, self.device = name, protocol.textures, networks, device
        self.missing: dict[str, str] = {}
        self.hull_cells = protocol.hull_cells
        path = references.mesh(name)
        self.to_unit = to_unit(read_surface(path))
        self.ref = rerender(path, self.to_unit, self.rules, device)

    def score(self, prediction: ObjectFolder) -> Row:
        """Column -> value; raises InputError where the prediction is missing or cannot be drawn."""
        turn = mesh_turn(prediction.axes)
        pictures = rerender(prediction.mesh(self.name), self.to_unit, self.rules, self.device, turn)
        return image_row(pictures, self.ref, self.rules.metrics, self.networks)

    def score_failure(self) -> Row:
        """The row of a failed prediction: white pictures."""
        return image_row(baselines.all_white(self.ref), self.ref, self.rules.metrics, self.networks)

    def score_baselines(self) -> Iterator[tuple[str, Row]]:
        """Name and row of every baseline."""
        for label, views in baselines.view_baselines(self.ref, (1,), self.hull_cells):
            scored = slice(1 if label in baselines.SHOW_INPUT else 0, None)
            yield label, image_row(views[scored], self.ref[scored], self.rules.metrics, self.networks)


def score_views(
    pred: ViewSet, ref: ViewSet, rules: ViewRules, networks: Networks | None = None, name: str = "object"
) -> Row:
    """Score the views of one object.

    Args:
        pred: predicted views.
        ref: reference views.
        rules: which views are scored, on what background, by which metrics.
        networks: of the perceptual metrics; a column whose network is missing is nan.
        name: the object, for messages.

    Returns:
        Column -> value: images averaged over the scored views, angles pooled over them.

    Raises:
        InputError: where the two sides differ in number, size or cameras.
    """
    check_same_cameras(pred.cameras, ref.cameras, name)
    index = scored_views(len(ref), rules, name)
    pred, ref = on_background(pred[index], rules), on_background(ref[index], rules, rules.edges == "hard")
    return image_row(pred, ref, rules.metrics, networks or Networks())


def image_row(pred: ViewSet, ref: ViewSet, metrics: tuple[str, ...], networks: Networks) -> Row:
    """The columns of `metrics` (names of `metrics.VIEW_METRICS`) and their companions, over all views of both."""
    row: Row = {}
    for name in with_companions(metrics):
        compute = VIEW_METRICS[name].compute
        if compute is None:
            row[name] = float(networks.found[name](pred.rgb, ref.rgb).mean()) if name in networks.found else math.nan
            continue
        values = compute(pred, ref)
        # A view is nan where no pixel counts: a reference without foreground.
        row |= values if isinstance(values, Mapping) else {name: float(values.nanmean())}
    return row


def scored_views(count: int, rules: ViewRules, name: str) -> list[int]:
    """Indices of the scored views of `count`; raises InputError where none is left or an index is too large."""
    index = [i for i in (rules.scored or range(count)) if i or rules.include_input_view]
    if not index or max(index) >= count:
        last = f"views up to {max(index)} are scored" if index else "nothing is left to score besides the input view"
        raise InputError(f"object '{name}' has {count} views: {last}")
    return index


def on_background(views: ViewSet, rules: ViewRules, hard: bool = False) -> ViewSet:
    """The views with `rules.background` in place of white; `hard`: pixels with any alpha get their full colour."""
    rgb = views.rgb
    coverage = views.mask[..., None]
    if hard:
        straight = views.rgba
        coverage = (straight[..., 3:] > 0).to(rgb)
        rgb = torch.where(coverage > 0, straight[..., :3], 1.0)
    return replace(views, rgb=rgb + (rules.background - 1) * (1 - coverage))


def check_rig(ref: ViewSet, rules: ViewRules, name: str) -> None:
    """Raise InputError where reference views differ from the rules in number, size or cameras."""
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
