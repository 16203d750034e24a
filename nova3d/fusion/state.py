"""The state of a fit, from its first step to the mesh: fields, poses, first solid, optimiser and counters."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from nova3d.cameras import Cameras
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.encoding import pick_backend
from nova3d.fusion.fields import ColourField, ConflictField, SDFField, Sharpness
from nova3d.fusion.occupancy import Hull, consistent_hull, pixel_size, visual_hull
from nova3d.fusion.outline import SignedDistance, find_outline_view
from nova3d.fusion.poses import PoseRefiner
from nova3d.fusion.rays import Marcher, PixelSampler, pick_marcher
from nova3d.hull import grid_points
from nova3d.views import ViewSet

_OUTSIDE = 0.1  # cached SDF where the hull forbids a surface
_CHUNK = 1 << 16  # points evaluated at a time
_SMOOTH_PX = 1.35  # pixels of the coarsest view, by which the deviation from a consistent volume is smoothed
_LEAST_SIGMA = 0.75  # steps of the hull's grid: a smaller deviation would be cut off by the grid, not smoothed
_NEAR_STEPS, _WEIGHT_STEPS = 4.0, 1.5  # of the hull's grid: the deviation is read so near, with such a weight


@dataclass
class FusionState:
    """Fields, poses, what rays are drawn from, optimiser and counters of one fit; all tensors on the views' device.

    Attributes:
        views: the views as given; `cameras` are the refined ones.
        hull: signed distance to the first solid: the visual hull by the poses when it was last carved, or the
            consistent volume.
        outline_view: index of the view whose outline the mesh gets (`nova3d.fusion.outline`); None where there is none.
        margin: how far outside the first solid the surface may lie, in world units; with an outline view, also how far
            inside.
        occupancy: [z,y,x] bool cells that may hold a surface.
        box: [2,3] float32 corners of the box around them.
        cached_sdf: [z,y,x] float32 SDF on the hull's nodes, evaluated every few steps.
        carved_at: share of the run at which the hull was last carved.
        step: steps done.
        seconds: time spent on them.
        mean_residual: running mean of the colour residual on the object.
        lambda_0: the penalty of eq. 5 at the end of the fit.
        rate_scale: factor of all learning rates, halved at each restart.
        restarts: how often the fit diverged and was restarted from an earlier state.
        history: the losses every few steps.
    """

    config: FusionConfig
    views: ViewSet
    sdf: SDFField
    colour: ColourField
    conflict: ConflictField
    sharpness: Sharpness
    poses: PoseRefiner
    optimizer: torch.optim.Optimizer
    pixels: PixelSampler
    marcher: Marcher
    hull: Hull
    outline_view: int | None = None
    margin: float = 0.0
    occupancy: Tensor = field(default_factory=lambda: torch.empty(0))
    box: Tensor = field(default_factory=lambda: torch.empty(0))
    cached_sdf: Tensor = field(default_factory=lambda: torch.empty(0))
    carved_at: float = 0.0
    step: int = 0
    seconds: float = 0.0
    mean_residual: float = 0.0
    lambda_0: float = 1.0
    rate_scale: float = 1.0
    restarts: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def modules(self) -> dict[str, nn.Module]:
        """Everything that is trained, by name."""
        return {
            "sdf": self.sdf,
            "colour": self.colour,
            "conflict": self.conflict,
            "sharpness": self.sharpness,
            "poses": self.poses,
        }

    @cached_property
    def trusted_among_others(self) -> Tensor:
        """[v] bool, `ViewSet.trusted_among_others` of the views."""
        return self.views.trusted_among_others

    @cached_property
    def view_weights(self) -> Tensor:
        """[2,v] float32, weights of the views' rays in the losses: with fixed poses, and while poses are refined.

        Views that are trusted among others weigh `loss.input_view`, the others 1. Where all views are alike, view 0
        weighs as much while poses are refined: its pose is fixed, which keeps the other poses and the surface from
        drifting together.
        """
        trusted = self.trusted_among_others
        first = torch.arange(len(self.views), device=trusted.device) == 0
        heavier = torch.stack([trusted, trusted if bool(trusted.any()) else first])
        return torch.where(heavier, self.config.loss.input_view, 1.0)

    @property
    def cameras(self) -> Cameras:
        """The refined cameras."""
        return self.poses.cameras(self.views.cameras)

    @property
    def device(self) -> torch.device:
        """Where the fields are."""
        return self.sdf.weight_in.device

    def refresh_occupancy(self, progress: float) -> None:
        """Carve the hull by the current poses where that is due, and evaluate the cached SDF.

        While poses may be wrong, the hull is too small in some places and too large in others, so the surface may lie
        further outside it. When the poses are frozen, the hull is carved for the last time and its margin shrinks.

        Args:
            progress: share of the run in [0,1].
        """
        config = self.config
        poses_move = config.pose.enabled and progress < config.pose.stop
        slack = config.pose.slack if poses_move else 0.0
        margin = config.hull.reach if self.outline_view is not None else config.hull.dilate + slack
        if config.pose.enabled and 0 < margin < self.margin:
            self.poses.freeze()
        is_due = poses_move and progress - self.carved_at >= config.pose.recarve
        if margin != self.margin or len(self.box) == 0 or is_due:
            self.carved_at = progress
            if config.pose.enabled and self.step > 0:
                views = replace(self.views, cameras=self.cameras)
                self.hull = visual_hull(views, config.hull, config.field.radius, slack)
            self.margin = margin
            self.occupancy, self.box = self.hull.occupancy(margin), self.hull.bounds(margin)
        self.cached_sdf = self.evaluate_grid()

    @torch.no_grad()
    def evaluate_grid(self) -> Tensor:
        """The SDF on the hull's nodes [z,y,x] float32, evaluated only where a surface may be."""
        distance = self.hull.distance
        values = distance.flatten().clamp_min(_OUTSIDE)
        allowed = torch.nonzero(distance.flatten() < self.margin)[:, 0]
        values[allowed] = self._sdf_at_nodes(allowed)
        return values.reshape(distance.shape)

    @torch.no_grad()
    def bounded_sdf(self, x: Tensor) -> Tensor:
        """The SDF [n] at points x [n,3], kept positive beyond the hull's margin, where no surface may be.

        With an outline view it is also kept negative deeper than the margin inside the consistent volume, so that
        views which contradict that volume cannot carve it away.
        """
        to_hull = self.hull.signed_distance(x)
        bounded = torch.maximum(self.sdf.sdf(x), to_hull - self.margin)
        return bounded if self.outline_view is None else torch.minimum(bounded, to_hull + self.margin)

    @torch.no_grad()
    def smooth_sdf(self) -> tuple[SignedDistance, Tensor]:
        """The bounded SDF without what is finer than the views show.

        How far the field deviates from the hull is smoothed over `_SMOOTH_PX` pixels. Generated views contradict each
        other, and a fit to them is rough between pixels. Where that is too little for the hull's grid, nothing is done.

        Returns:
            The field, a function of points [n,3], and its values [z,y,x] on the hull's nodes.
        """
        hull = self.hull
        distance, n = hull.distance, len(hull.distance)
        step = 2 * hull.radius / (n - 1)
        sigma = _SMOOTH_PX * pixel_size(self.cameras) / step
        if sigma < _LEAST_SIGMA:
            return self.bounded_sdf, torch.minimum(self.evaluate_grid(), distance + self.margin)
        near = torch.nonzero(distance.flatten().abs() < _NEAR_STEPS * step)[:, 0]
        weight, deviation = torch.zeros(2, n**3, device=distance.device)
        weight[near] = torch.exp(-0.5 * (distance.flatten()[near] / (_WEIGHT_STEPS * step)) ** 2)
        deviation[near] = (self._sdf_at_nodes(near) - distance.flatten()[near]).clamp(-self.margin, self.margin)
        total, smooth = (
            ndimage.gaussian_filter(values.reshape(n, n, n).cpu().numpy(), sigma)
            for values in (weight, weight * deviation)
        )
        values = distance + torch.from_numpy(smooth / np.maximum(total, 1e-4)).to(distance)
        return replace(hull, distance=values).signed_distance, values

    def _sdf_at_nodes(self, nodes: Tensor) -> Tensor:
        """The SDF [n] at some of the hull's nodes, [n] int64 flat indices."""
        points = grid_points(len(self.hull.distance), self.hull.radius, nodes.device)[nodes]
        return torch.cat([self.sdf.sdf(part) for part in points.split(_CHUNK)])

    @torch.no_grad()
    def surface_colours(self, x: Tensor) -> Tensor:
        """The field's sRGB colours [n,3] float32 in [0,1] at surface points x [n,3] float32."""
        return torch.cat([self._surface(part)[0] for part in x.split(_CHUNK)])

    @torch.no_grad()
    def surface_features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The field at surface points.

        Args:
            x: [n,3] float32.

        Returns:
            rgb: [n,3] float32 sRGB in [0,1].
            f_c: [n,c] float32 colour features.
            f_g: [n,g] float32 geometry features.
        """
        rgb, f_c, f_g = zip(*(self._surface(part) for part in x.split(_CHUNK)), strict=True)
        return torch.cat(rgb), torch.cat(f_c), torch.cat(f_g)

    def _surface(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.sdf(x)
        rgb, f_c = self.colour(x, F.normalize(sample.gradient, dim=-1, eps=1e-6), sample.features)
        return rgb, f_c, sample.features

    @torch.no_grad()
    def surface_conflict(self, f_c: Tensor, f_g: Tensor, directions: Tensor, view: Tensor, x: Tensor) -> Tensor:
        """h = f_psi [n] float32 in [0,1] at surface points; arguments as of `ConflictField.forward`."""
        parts = zip(*(tensor.split(_CHUNK) for tensor in (f_c, f_g, directions, view, x)), strict=True)
        return torch.cat([self.conflict(*part) for part in parts])


def initial_state(views: ViewSet, config: FusionConfig, detail: ViewSet | None = None) -> FusionState:
    """Set up a fit on the views' device: seeded networks, first solid, optimiser.

    With an outline view (`nova3d.fusion.outline`) the first solid is the consistent volume. The cameras are then those
    that the model was asked for, so poses are not refined.

    Args:
        views: the views, on the device to fit on.
        config: all settings.
        detail: the outline view at a resolution of its own.

    Returns:
        The state before the first step.

    Raises:
        InputError: where the views show no object, or a backend cannot work here.
    """
    generator = torch.Generator().manual_seed(config.optim.seed)
    device = views.mask.device
    outline_view, consistent = find_outline_view(views), None
    if outline_view is not None:
        config = replace(config, pose=replace(config.pose, enabled=False))
        hull, consistent = consistent_hull(views, outline_view, detail, config.hull.resolution, config.field.radius)
    else:
        slack = config.pose.slack if config.pose.enabled else 0.0
        hull = visual_hull(views, config.hull, config.field.radius, slack)
    backend = pick_backend(config.encoding.backend, device)
    sdf = SDFField(config.encoding, config.field, config.encoding.finest or views.cameras.height, generator, backend)
    features = 1 + config.field.geometry_features
    colour = ColourField(features, config.field.colour_hidden, generator)
    conflict = ConflictField(
        config.field.colour_hidden, features, len(views), config.conflict, generator, config.field.radius
    )
    sharpness, poses = Sharpness(config.field.inv_s), PoseRefiner(views.cameras, config.pose)
    for module in (sdf, colour, conflict, sharpness, poses):
        module.to(device)
    return FusionState(
        config,
        views,
        sdf,
        colour,
        conflict,
        sharpness,
        poses,
        optimizer=_make_optimizer(config, sdf, colour, conflict, sharpness, poses),
        pixels=PixelSampler(views, config.sampling, consistent),
        marcher=pick_marcher(config.sampling.backend, device),
        hull=hull,
        outline_view=outline_view,
    )


def _make_optimizer(
    config: FusionConfig,
    sdf: SDFField,
    colour: ColourField,
    conflict: ConflictField,
    sharpness: Sharpness,
    poses: PoseRefiner,
) -> torch.optim.Optimizer:
    """Make an Adam optimiser, without weight decay, which would pull the hash tables to zero.

    Each parameter group has a name, its first learning rate (initial_lr), the share of it that is left at the end
    (final_lr), and the share of the run at which its schedule ends (stop).
    """
    optim, pose = config.optim, config.pose
    mlps = [p for n, p in sdf.named_parameters() if n != "grid.table"] + list(colour.parameters())
    rest = {"final_lr": optim.final_lr, "stop": 1.0}
    groups = [
        {"name": "grid", "params": [sdf.grid.table], "initial_lr": optim.lr_grid, **rest},
        {"name": "networks", "params": mlps, "initial_lr": optim.lr_mlp, **rest},
        {"name": "sharpness", "params": list(sharpness.parameters()), "initial_lr": optim.lr_inv_s, **rest},
        {
            "name": "poses",
            "params": list(poses.parameters()),
            "initial_lr": pose.lr,
            "final_lr": pose.final_lr,
            "stop": pose.stop,
        },
        {"name": "conflict", "params": list(conflict.parameters()), "initial_lr": optim.lr_conflict, **rest},
    ]
    return torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-15, fused=True)


def fit_to_hull(state: FusionState) -> None:
    """Fit the SDF to the first solid's signed distance, so that the surface starts near the object.

    Does nothing where `field.init` is not "hull".

    Args:
        state: its `sdf` is updated.
    """
    config, hull = state.config, state.hull
    if config.field.init != "hull":
        return
    generator = torch.Generator().manual_seed(config.optim.seed)
    state.sdf.open_levels = config.encoding.start_levels
    optimizer = torch.optim.Adam(
        [
            {"params": [state.sdf.grid.table], "lr": config.optim.lr_grid},
            {"params": [p for n, p in state.sdf.named_parameters() if n != "grid.table"], "lr": 5e-3},
        ],
        betas=(0.9, 0.99),
        eps=1e-15,
        fused=True,
    )
    nodes = grid_points(hull.distance.shape[0], config.field.radius, hull.distance.device)
    near = nodes[hull.distance.flatten().abs() < 0.05]
    cell = 2 * config.field.radius / (hull.distance.shape[0] - 1)
    for _ in range(config.hull.fit_steps):
        close = near[torch.randint(len(near), (3072,), generator=generator).to(near.device)]
        anywhere = nodes[torch.randint(len(nodes), (1024,), generator=generator).to(near.device)]
        x = torch.cat([close, anywhere])
        x = x + ((torch.rand(x.shape, generator=generator) - 0.5) * cell).to(x.device)
        loss = (state.sdf.sdf(x) - hull.signed_distance(x)).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
