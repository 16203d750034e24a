"""From a ViewSet to a textured mesh: the stages in order, with their times."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.fusion import export, meshing, texture
from nova3d.fusion.config import FusionConfig
from nova3d.fusion.maps import conflict_maps
from nova3d.fusion.optimize import fit
from nova3d.fusion.state import Fit
from nova3d.layouts import check_for_fusion
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_FIT_SHARE = 0.85  # of the progress bar
_FIT_TIME = 0.65  # of a time budget; surface, atlas and texture take the rest


@dataclass
class FusionResult:
    """mesh: textured (vertices doubled on UV seams), world frame. cameras: refined. conflict: [v,h,w] H in [0,1].

    residual: [v,h,w] ||C - C^||_2 between each picture and the field's colours on the surface, 0 where there is none.
    history: the fit's losses every ten steps. timings: seconds per stage. report: health of the mesh (components,
    watertight, unseen share of the texture, mean H, pose changes). solid: the same surface with welded vertices and
    vertex colours, the mesh to measure.
    """

    mesh: trimesh.Trimesh
    cameras: Cameras
    conflict: Tensor
    residual: Tensor
    history: list[dict[str, float]]
    timings: dict[str, float]
    report: dict[str, Any]
    solid: trimesh.Trimesh
    record: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> Path:
        """Write GLB, OBJ or PLY by the suffix; `record` (default: this result's) goes into a GLB's extras.

        Raises InputError where it cannot be written.
        """
        return export.write(path, self.mesh, self.solid, record or self.record)


def reconstruct(
    views: ViewSet,
    config: FusionConfig | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[float, str], None] | None = None,
    checkpoint: str | Path | None = None,
) -> FusionResult:
    """Fuse views of one object into a textured mesh (paper III).

    views: any number, of orthographic or perspective cameras, the object within the box of half side `field.radius`
    around the origin. device: where to fit (default: the views' own). progress: called with the share done and a
    line of text; what it raises ends the run. checkpoint: a file the fit saves itself to now and then, continues from
    where it holds this very run, and removes at the end. Raises InputError where the views show no object or no
    surface is found, DivergedError where the fit fails.
    """
    config = config or FusionConfig()
    tell = progress or (lambda share, message: None)
    timings: dict[str, float] = {}
    check_for_fusion(views)
    checkpoint = Path(checkpoint) if checkpoint else None
    budget = config.optim.time_budget
    on_device = views.to(device) if device is not None else views
    with _timed(timings, "fit"):
        state, history = fit(
            on_device,
            config,
            lambda share, text: tell(_FIT_SHARE * share, text),
            checkpoint,
            budget and budget * _FIT_TIME,
        )
    tell(_FIT_SHARE, "extracting the surface")
    with _timed(timings, "mesh"):
        box = state.hull.extent(state.margin)
        solid = meshing.extract(state.bounded_sdf, box, config.extract, config.field.radius)
    cameras = state.cameras.to("cpu")
    views = views.to("cpu")
    tell(0.90, "rendering the conflict maps")
    with _timed(timings, "conflict"):
        conflict, residual = conflict_maps(state, solid, replace(views, cameras=cameras))
    tell(0.93, "painting the texture")
    with _timed(timings, "texture"):
        seen_by = texture.projector(views, cameras, solid, conflict, config.texture)
        mesh, solid, painted = _paint(state, solid, seen_by)
    foreground = views.mask > 0.5
    report: dict[str, Any] = meshing.health(solid) | {
        **painted,
        "conflict_mean": float(conflict[foreground].mean()),
        "residual_mean": float(residual[foreground].mean()),
        "inv_s": state.sharpness.number(),
        "seconds": sum(timings.values()),
        **state.poses.deltas(),
    }
    if report["conflict_mean"] > config.conflict.warn_mean:
        log.warning("mean conflict on the object is %.2f: the views contradict each other", report["conflict_mean"])
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    tell(1.0, "done")
    return FusionResult(mesh, cameras, conflict, residual, history, timings, report, solid)


def _paint(
    state: Fit, solid: trimesh.Trimesh, views: texture.Projector
) -> tuple[trimesh.Trimesh, trimesh.Trimesh, dict[str, Any]]:
    """The textured mesh, the welded mesh with vertex colours, and for the report the share of the texture that no
    view sees and which atlas it has."""
    device = state.sdf.weight_in.device

    def fill(points: Tensor) -> Tensor:
        return state.colours(points.to(device)).cpu()

    normals = np.array(solid.vertex_normals)
    vertices = torch.from_numpy(np.array(solid.vertices)).float()
    colours, weight = texture.complete(vertices, torch.from_numpy(normals).float(), views, fill)
    welded = export.coloured(solid, colours.numpy())
    if views.config.mode == "vertex":
        return welded, welded, {"unseen_share": float((weight <= 0).float().mean()), "atlas": "none"}
    config = views.config
    atlas = texture.unwrap(solid, config.size, config.atlas, config.atlas_seconds)
    picture, unseen = texture.bake(solid, atlas, views, fill)
    mesh = export.textured(
        np.asarray(solid.vertices)[atlas.source], atlas.faces, atlas.uv, picture, normals[atlas.source]
    )
    return mesh, welded, {"unseen_share": unseen, "atlas": atlas.kind}


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started
