"""From a ViewSet to a textured mesh: the stages in order."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from nova3d import config as configs
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.foreground import foreground_colours
from nova3d.fusion import atlas, export, isosurface, texture
from nova3d.fusion.config import FusionConfig, TextureConfig
from nova3d.fusion.conflict import conflict_maps
from nova3d.fusion.optimize import fit
from nova3d.fusion.outline import Outline, front_view
from nova3d.fusion.state import FusionState
from nova3d.layouts import check_for_fusion
from nova3d.utils.progress import Progress, silent
from nova3d.views import ViewSet, match_detail

log = logging.getLogger(__name__)

_FIT_PERCENT = 85  # of the progress
_FIT_TIME = 0.65  # share of a time budget; surface, atlas and texture take the rest


@dataclass
class FusionResult:
    """What `reconstruct` returns.

    Attributes:
        mesh: textured; vertices are doubled on UV seams. World frame.
        cameras: the refined cameras.
        conflict: [v,h,w] float32 H in [0,1], 0 where there is no surface. It and the residual are those of the fit,
            before `extract.depth_ratio`.
        residual: [v,h,w] float32, ||C - C^||_2 between each picture and the field's colours on the surface, else 0.
        history: the fit's losses every ten steps.
        timings: seconds per stage.
        report: health of the mesh (components, watertight, unseen share of the texture, mean H, pose changes). For
            views of a picture from the front: `depth_ratio`, its length from front to back over its longest side in
            the picture, and `depth_known`, whether the settings say it.
        solid: the same surface with welded vertices and vertex colours, the mesh to measure.
    """

    mesh: trimesh.Trimesh
    cameras: Cameras
    conflict: Tensor
    residual: Tensor
    history: list[dict[str, float]]
    timings: dict[str, float]
    report: dict[str, Any]
    solid: trimesh.Trimesh

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> Path:
        """Write the mesh.

        Args:
            path: a file that ends in .glb, .obj, .ply or .stl.
            record: goes into a GLB's extras; default: nothing.

        Returns:
            The absolute path.

        Raises:
            InputError: where it cannot be written.
        """
        return export.write(path, self.mesh, self.solid, record)


def reconstruct(
    views: ViewSet,
    config: FusionConfig | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    detail: ViewSet | None = None,
) -> FusionResult:
    """Fuse views of one object into a textured mesh (paper III).

    Args:
        views: two or more, of orthographic or perspective cameras. The object lies within the box of half side
            `field.radius` around the origin.
        config: all settings; default: those of the schema.
        device: where to fit; default: the views' own.
        progress: called with the percentage done, 100 and a line of text; what it raises ends the run.
        checkpoint: a file to which the fit saves itself, from which it continues where the file is of this very run,
            and which is removed at the end.
        detail: trusted views of `views` at another resolution, such as the input picture's. Each has the pose and the
            field of view of one of `views`.

    Returns:
        The mesh with refined cameras, conflict maps and a report, on the CPU.

    Raises:
        InputError: for settings outside their ranges, and where the views show no object, no surface is found, a view
            of `detail` has the camera of none of the trusted views, a depth is given for views without a picture from
            the front, or an optional package is missing.
        DivergedError: where the fit fails.
    """
    config, progress = config or FusionConfig(), progress or silent
    configs.validate(config)
    if not isinstance(views, ViewSet):
        raise InputError(f"views must be a ViewSet, got {type(views).__name__}: ViewSet.load(FOLDER) reads a folder")
    check_for_fusion(views)
    detailed = match_detail(views, detail) if detail is not None else []
    atlas.check_atlas(config.texture.atlas)
    isosurface.check_kernel(config.extract.kernel)
    from_front, known_depth = front_view(views) is not None, config.extract.depth_ratio
    if known_depth is not None and not from_front:
        raise InputError(
            "extract.depth_ratio needs views made from one picture: exactly one true view, and that one level, "
            "orthographic and from the front"
        )
    checkpoint = Path(checkpoint) if checkpoint else None
    budget = config.optim.time_budget
    timings: dict[str, float] = {}

    with _record_time(timings, "fit"):
        state = fit(
            views.to(device) if device is not None else views,
            config,
            lambda done, total, stage: progress(round(_FIT_PERCENT * done / total), 100, stage),
            checkpoint,
            budget and budget * _FIT_TIME,
            detail,
        )
    views = replace(views.to("cpu"), cameras=state.cameras.to("cpu"))
    if detail is not None:
        size = detail.cameras.width, detail.cameras.height
        detail = replace(detail.to("cpu"), cameras=views.cameras[detailed].resized(*size))

    progress(_FIT_PERCENT, 100, "extracting the surface")
    with _record_time(timings, "mesh"):
        solid = extract_surface(state, views, detail)

    progress(90, 100, "rendering the conflict maps")
    with _record_time(timings, "conflict"):
        conflict, residual = conflict_maps(state, solid, views)

    progress(93, 100, "painting the texture")
    with _record_time(timings, "texture"):
        blended = blended_projector(state, solid, views, conflict)
        trusted = trusted_projectors(solid, views, detail, detailed, config.texture)
        mesh, solid, texture_report = texture.texture_mesh(
            solid, blended, lambda points: state.surface_colours(points.to(state.device)).cpu(), trusted
        )

    if known_depth is not None:
        for surface in (mesh, solid):
            set_depth(surface, known_depth)

    foreground = views.mask > 0.5
    report: dict[str, Any] = isosurface.health(solid) | {
        **texture_report,
        "conflict_mean": float(conflict[foreground].mean()),
        "residual_mean": float(residual[foreground].mean()),
        "inv_s": state.sharpness.item(),
        "seconds": sum(timings.values()),
        **state.poses.deltas(),
    }
    if from_front:
        report |= {"depth_ratio": depth_ratio(solid), "depth_known": known_depth is not None}
    if report["conflict_mean"] > config.conflict.warn_mean:
        log.warning("mean conflict on the object is %.2f: the views contradict each other", report["conflict_mean"])
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    progress(100, 100, "done")
    return FusionResult(mesh, views.cameras, conflict, residual, state.history, timings, report, solid)


def extract_surface(state: FusionState, views: ViewSet, detail: ViewSet | None = None) -> trimesh.Trimesh:
    """Extract the fitted surface as a mesh.

    Where the fit has an outline view, the mesh has its outline.

    Args:
        state: the finished fit.
        views: the views with refined cameras, on the CPU.
        detail: the outline view at a resolution of its own, likewise.

    Returns:
        A closed manifold in the world frame.

    Raises:
        InputError: where no surface is found.
    """
    config, radius = state.config.extract, state.config.field.radius
    box = state.hull.bounds(state.margin)
    if state.outline_view is None:
        return isosurface.extract_mesh(state.bounded_sdf, box, config, radius)
    step = 2 * radius / config.resolution
    picture = views[[state.outline_view]] if detail is None else detail
    outline = Outline.of(picture.mask[0], picture.cameras, step)
    sdf = outline.bound(*state.smooth_sdf(), state.hull, step)
    return isosurface.extract_mesh(sdf, box, config, radius, outline.cells_at(step), outline.parts)


def depth_ratio(mesh: trimesh.Trimesh) -> float:
    """Length of a mesh along the z axis over its longer side across."""
    across, up, along = mesh.extents.tolist()
    return float(along / max(across, up))


def set_depth(mesh: trimesh.Trimesh, ratio: float) -> None:
    """Stretch or compress a mesh along the z axis, the axis of the picture's camera, in place.

    Its outline from there and what the picture painted stay, because the camera is orthographic.

    Args:
        mesh: in the world frame.
        ratio: the wanted length along z over the longer side across.
    """
    mesh.apply_transform(np.diag([1.0, 1.0, ratio / depth_ratio(mesh), 1.0]))


def blended_projector(
    state: FusionState, solid: trimesh.Trimesh, views: ViewSet, conflict: Tensor
) -> texture.Projector:
    """Prepare the views whose colours are blended: all but those trusted among others.

    Args:
        state: the finished fit.
        solid: its surface.
        views: the views with refined cameras, on the CPU.
        conflict: [v,h,w] float32 H in [0,1].

    Returns:
        Their projector. Where the fit has an outline view, each view has its calibrated share of the colours, and its
        colours are rid of white (`nova3d.foreground`).
    """
    others = torch.nonzero(~views.trusted_among_others)[:, 0].tolist()
    colour_shares, calibration = None, views.calibration
    if calibration is not None and state.outline_view is not None:
        views = foreground_colours(views, state.outline_view)
        azimuths = views.cameras.azimuth_elevation()[:, 0]
        colour_shares = calibration.colour_shares(azimuths[others] - azimuths[state.outline_view])
    return texture.make_projector(views[others], solid, conflict[others], state.config.texture, colour_shares)


def trusted_projectors(
    solid: trimesh.Trimesh, views: ViewSet, detail: ViewSet | None, detailed: Sequence[int], config: TextureConfig
) -> tuple[texture.TrustedProjector, ...]:
    """Prepare the views that are trusted among others, each at its finest resolution.

    Args:
        solid: the surface.
        views: the views with refined cameras, on the CPU.
        detail: some of them at a resolution of their own, likewise.
        detailed: the views that `detail` shows.
        config: settings of the texture.

    Returns:
        One projector per resolution, the finest first; none where all views are alike.
    """
    trusted = torch.nonzero(views.trusted_among_others)[:, 0].tolist()
    if not trusted:
        return ()
    coarse = [view for view in trusted if view not in detailed]
    pictures = ([] if detail is None else [detail]) + ([views[coarse]] if coarse else [])
    return tuple(texture.make_trusted_projector(picture, solid, config) for picture in pictures)


@contextmanager
def _record_time(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started
