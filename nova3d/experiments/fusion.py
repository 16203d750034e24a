"""The fusion suite: arms of the fusion on injected faults in true views of real objects (nova3d ablate)."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trimesh
from torch import Tensor

from nova3d import config as configs
from nova3d.data import render_object
from nova3d.errors import InputError
from nova3d.evaluation import fusion_baselines
from nova3d.evaluation.classification import auroc
from nova3d.evaluation.mesh_metrics import match_points, sample_surface
from nova3d.evaluation.statistics import paired
from nova3d.experiments import fusion_inputs
from nova3d.experiments.fusion_inputs import (
    GroundTruth,
    load_ground_truth,
    perturb_poses,
    plant_conflicts,
    visible,
)
from nova3d.experiments.objects import mesh_hash
from nova3d.fusion import FusionConfig, reconstruct
from nova3d.fusion.export import write
from nova3d.metrics.poses import pose_errors
from nova3d.metrics.views import pooled_psnr_union
from nova3d.utils import provenance
from nova3d.utils.files import append_json_lines, locked, read_json_lines
from nova3d.utils.progress import Progress
from nova3d.utils.workers import in_parts
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

Row = dict[str, Any]

DEGREES, SHIFT = 3.0, 0.03  # of injected pose errors


@dataclass(frozen=True)
class Case:
    """What is done to the true views, and what reconstructs them."""

    fault: str  # "none", "poses" or "conflicts"
    arm: str  # "full", another name in ARMS, "carving" or "poisson"


# Arm -> overrides of the fusion's config.
ARMS: dict[str, list[str]] = {
    "full": [],
    "no_pose": ["pose.enabled=false"],
    "no_conflict": ["conflict.mode=none"],
    "trimmed": ["conflict.mode=trimmed"],
    "closed_form": ["conflict.mode=closed_form"],
    "paper_alone": ["conflict.consensus=false"],
}
BASELINES = {"carving": fusion_baselines.carve, "poisson": fusion_baselines.poisson}

# The cases of each fault; "full" is the arm that the others are compared with.
SUITE = (
    Case("none", "full"),
    Case("none", "no_conflict"),
    Case("poses", "full"),
    Case("poses", "no_pose"),
    Case("conflicts", "full"),
    Case("conflicts", "no_conflict"),
    Case("conflicts", "trimmed"),
    Case("conflicts", "closed_form"),
    Case("conflicts", "paper_alone"),
)
BENCHMARK = (Case("none", "full"), Case("none", "carving"), Case("none", "poisson"))


def run(
    source: Path,
    names: Sequence[str],
    cases: Sequence[Case],
    out: Path,
    config: FusionConfig,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure every case of every object.

    Rows are appended to out/rows.jsonl. Those of the same config and mesh are reused.

    Args:
        source: a folder of meshes, as `nova3d.experiments.objects.object_names` reads it.
        names: the objects to take of it.
        cases: what is measured of each.
        out: folder for the rows and the meshes.
        config: of the fusion; each arm adds its overrides.
        device: of the fit.
        workers: processes with one thread each, on "cuda" each with a GPU of its own. 1: this process, with torch's
            own threads.
        progress: called as rows are finished.

    Returns:
        The last row of every case. A failed case is a row with `error`, and the next call repeats it.

    Raises:
        InputError: without objects or cases.
    """
    if not names or not cases:
        raise InputError("nothing to measure: give at least one mesh and one case")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "another study"):
        made_with, earlier = provenance.hash_json(configs.to_dict(config)), read_rows(out)
        meshes = {name: mesh_hash(source, name) for name in names}

        def is_ours(row: Row) -> bool:  # a row of an earlier version names no mesh
            return row.get("config") == made_with and row.get("mesh") in (None, meshes.get(row["object"]))

        succeeded = [row for row in earlier if is_ours(row) and "error" not in row]
        finished = {(row["object"], row["fault"], row["arm"]) for row in succeeded}
        todo = tuple((n, c) for n in names for c in cases if (n, c.fault, c.arm) not in finished)

        def report_progress() -> None:
            if progress:
                progress(len(read_rows(out)) - len(earlier), len(todo), "measuring")

        if todo:
            in_parts(partial(_measure_part, source, todo, out, config), workers, device, report_progress)
        return _latest([row for row in read_rows(out) if is_ours(row)], names, cases)


def _measure_part(
    source: Path,
    todo: Sequence[tuple[str, Case]],
    out: Path,
    config: FusionConfig,
    part: int,
    parts: int,
    device: str,
    tick: Callable[[], None],
) -> None:
    """The cases part, part + parts, ...; each row is one write, so lines of several processes do not mix."""
    for name, case in todo[part::parts]:
        append_json_lines(out / "rows.jsonl", [_row(source, name, case, out, config, device)])
        tick()


def _latest(rows: Sequence[Row], names: Sequence[str], cases: Sequence[Case]) -> list[Row]:
    """The last row of every case of every object, in the order of the rows."""
    wanted = {(name, case.fault, case.arm) for name in names for case in cases}
    latest = {(row["object"], row["fault"], row["arm"]): row for row in rows}
    return [row for key, row in latest.items() if key in wanted]


def read_rows(out: Path) -> list[Row]:
    """The rows kept so far; a line cut short by an interruption is left out."""
    path = out / "rows.jsonl"
    return read_json_lines(path, "rows", cut=True) if path.is_file() else []


def _row(source: Path, name: str, case: Case, out: Path, config: FusionConfig, device: str) -> Row:
    row: Row = {"object": name, "fault": case.fault, "arm": case.arm, "threads": torch.get_num_threads()}
    row |= {"config": provenance.hash_json(configs.to_dict(config)), "mesh": mesh_hash(source, name)}
    try:
        return row | measure(load_ground_truth(source, name, out / "truth"), case, out, config, device)
    except InputError as error:
        log.warning("%s, %s, %s: %s", name, case.fault, case.arm, error)
        return row | {"error": str(error)}


def measure(truth: GroundTruth, case: Case, out: Path, config: FusionConfig, device: str) -> Row:
    """All figures of one case of one object; its mesh is written to out/FAULT-ARM/OBJECT.glb."""
    seed = sum(truth.name.encode())  # of the fault: each object its own, the same for every arm
    views, changed, patches = truth.views, None, None
    if case.fault == "poses":
        views = perturb_poses(views, DEGREES, SHIFT, seed)
    elif case.fault == "conflicts":
        views, changed, patches = plant_conflicts(views, seed)
    started = time.perf_counter(), time.process_time()
    found: Row = {}
    if case.arm in BASELINES:
        mesh, solid = BASELINES[case.arm](views, config)
    else:
        mesh, solid, found = _fuse(truth, views, case, config, device, changed, patches)
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    folder = out / f"{case.fault}-{case.arm}"
    folder.mkdir(parents=True, exist_ok=True)
    written = write(folder / f"{truth.name}.glb", mesh, solid)
    closed = {"watertight": float(solid.is_watertight)}
    measured = found | closed | _geometry_columns(truth, solid) | _texture_columns(truth, written)
    return {"seconds": seconds, "cpu": cpu} | measured


def _fuse(
    truth: GroundTruth,
    views: ViewSet,
    case: Case,
    config: FusionConfig,
    device: str,
    changed: Tensor | None,
    patches: Tensor | None,
) -> tuple[trimesh.Trimesh, trimesh.Trimesh, Row]:
    result = reconstruct(views, configs.changed(config, ARMS[case.arm]), device)
    object_pixels = truth.views.mask > 0.9
    errors = pose_errors(result.cameras.c2w, truth.views.cameras.c2w)[1:]
    found: Row = {
        "unseen": result.report["unseen_share"],
        "components": result.report["components"],
        "conflict": float(result.conflict[object_pixels].mean()),
        "pose_deg": float(errors.mean()),
        "pose_deg_max": float(errors.max()),
        **{f"seconds_{stage}": seconds for stage, seconds in result.timings.items()},
    }
    if changed is not None and patches is not None:
        clean = object_pixels & ~patches
        found["auroc_conflict"] = auroc(result.conflict, changed, clean)
        found["auroc_residual"] = auroc(result.residual, changed, clean)
    return result.mesh, result.solid, found


def _geometry_columns(truth: GroundTruth, mesh: trimesh.Trimesh) -> Row:
    """Chamfer distance (longest sides), |cos| of normals and F-score; `_seen`: on what the 16 views see of either."""
    found = sample_surface(mesh, fusion_inputs.SURFACE_SAMPLES, 1)
    match = match_points(found, truth.surface)
    seen = match.among(visible(found, mesh), truth.seen)
    return {
        "chamfer": match.chamfer(),
        "chamfer_seen": seen.chamfer(),
        "normals": match.normal_consistency(),
        "normals_seen": seen.normal_consistency(),
        "f_score_0.01": match.f_score(0.01),
    }


def _texture_columns(truth: GroundTruth, written: Path) -> Row:
    """Pooled PSNR in dB of a mesh file, drawn at the 16 true views and at the 16 in between."""
    found = {}
    for name, views in (("psnr", truth.views), ("psnr_between", truth.between)):
        drawn = render_object(written, views.cameras, light="flat", normalise=False)
        found[name] = pooled_psnr_union(drawn.rgb, views.rgb, drawn.mask, views.mask)
    return found


COLUMNS = {
    "seconds": 1,
    "cpu": 1,
    "chamfer": 4,
    "chamfer_seen": 4,
    "normals": 3,
    "normals_seen": 3,
    "psnr": 2,
    "psnr_between": 2,
    "unseen": 3,
    "watertight": 2,
    "pose_deg": 2,
    "conflict": 3,
    "auroc_conflict": 3,
    "auroc_residual": 3,
}


def report(rows: Sequence[Row]) -> str:
    """Markdown: mean and median of every figure per case, then each arm against "full" with paired 95 % intervals."""
    cases = list(dict.fromkeys((row["fault"], row["arm"]) for row in rows))
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| injected | arm | n | failed | " + " | ".join(names) + " |", "|:--|:--|--:|--:|" + "--:|" * len(names)]
    for fault, arm in cases:
        kept = [row for row in rows if (row["fault"], row["arm"]) == (fault, arm)]
        succeeded = [row for row in kept if "error" not in row]
        cells = [_cell([row[n] for row in succeeded if _finite(row.get(n))], COLUMNS[n]) for n in names]
        lines.append(f"| {fault} | {arm} | {len(succeeded)} | {len(kept) - len(succeeded)} | {' | '.join(cells)} |")
    lines += ["", "Cells are mean (median).", "", *_differences(rows, cases)]
    return "\n".join(lines) + "\n"


def per_object(rows: Sequence[Row]) -> str:
    """Markdown: one line per object of the case ("none", "full"), its mean and its median last; empty without any."""
    succeeded = [r for r in rows if (r["fault"], r["arm"]) == ("none", "full") and "error" not in r]
    names = [name for name in COLUMNS if any(name in row for row in succeeded)]
    lines = ["| object | " + " | ".join(names) + " |", "|:--|" + "--:|" * len(names)]
    for row in sorted(succeeded, key=lambda r: str(r["object"])):
        lines.append(f"| {row['object']} | " + " | ".join(_summary([row[n]], COLUMNS[n]) for n in names) + " |")
    for label, q in (("mean", None), ("median", 0.5)):
        cells = [_summary([r[n] for r in succeeded if _finite(r.get(n))], COLUMNS[n], q) for n in names]
        lines.append(f"| **{label} of {len(succeeded)}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if succeeded else ""


def _differences(rows: Sequence[Row], cases: Sequence[tuple[str, str]]) -> list[str]:
    compared = [n for n in ("chamfer", "chamfer_seen", "psnr", "psnr_between", "pose_deg") if any(n in r for r in rows)]
    lines = ["| injected | full minus | " + " | ".join(compared) + " |", "|:--|:--|" + "--:|" * len(compared)]
    for fault, arm in cases:
        if arm == "full" or (fault, "full") not in cases:
            continue
        full = {r["object"]: r for r in rows if (r["fault"], r["arm"]) == (fault, "full") and "error" not in r}
        other = {r["object"]: r for r in rows if (r["fault"], r["arm"]) == (fault, arm) and "error" not in r}
        names = sorted(full.keys() & other.keys())
        cells = []
        for n in compared:
            cells.append(_difference([full[o] for o in names], [other[o] for o in names], n))
        lines.append(f"| {fault} | {arm} | {' | '.join(cells)} |")
    return [*lines, "", "Brackets: 95 % bootstrap intervals of the mean difference over the objects both have."]


def _difference(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> str:
    found = paired([row.get(name, math.nan) for row in ours], [row.get(name, math.nan) for row in theirs])
    low, high, digits = found.interval.low, found.interval.high, COLUMNS[name]
    mean = f"{found.mean - found.baseline_mean:+.{digits}f}"
    return f"{mean} [{low:+.{digits}f}, {high:+.{digits}f}]" if _finite(low) else "-"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _cell(values: list[float], digits: int) -> str:
    return f"{_summary(values, digits)} ({_summary(values, digits, 0.5)})" if values else "-"


def _summary(values: list[float], digits: int, quantile: float | None = None) -> str:
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{float(tensor.mean() if quantile is None else tensor.quantile(quantile)):.{digits}f}"
