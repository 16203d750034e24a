"""`score`: two folders of objects and a protocol to a table."""

import logging
from pathlib import Path

import torch
import trimesh

from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.evaluation import floors, meshes, views
from nova3d.evaluation.protocols import Protocol
from nova3d.evaluation.tables import Rows, Table
from nova3d.views import ViewSet

logger = logging.getLogger(__name__)

MESH_FILE = "mesh.glb"
VIEWS_FILE = "transforms.json"
MAX_CAMERA_GAP = 0.5  # pixels; a wider shift already costs more PSNR than published methods differ by


def score(predictions: str | Path, references: str | Path, protocol: Protocol | None = None) -> Table:
    """Score DIR/<object>/ (a view folder, a mesh.glb or both) against references laid out alike.

    Views are scored where both sides hold views, meshes where both hold meshes; what is scored for one object must be
    there for all. Floors come from the references alone. Raises InputError naming missing objects, and where sizes,
    view counts or cameras differ.
    """
    protocol = protocol or Protocol()
    predictions, references = _folder(predictions, "predictions"), _folder(references, "references")
    objects = sorted(protocol.objects) or sorted(path.name for path in references.iterdir() if _held(path))
    if not objects:
        raise InputError(f"'{references}' has no object folders (DIR/<object>/{VIEWS_FILE} or {MESH_FILE})")
    kinds = _common_kinds(predictions, references, objects)
    rows: Rows = {}
    floor_rows: dict[str, Rows] = {}
    for name in objects:
        rows[name] = {}
        if VIEWS_FILE in kinds:
            ref = ViewSet.load(references / name)
            _check_rig(ref, protocol, name)
            rows[name] |= score_views(ViewSet.load(predictions / name), ref, protocol, name)
            for label, floor in floors.VIEW_FLOORS.items():
                floor_rows.setdefault(label, {})[name] = score_views(floor(ref), ref, protocol, name)
        if MESH_FILE in kinds:
            mesh = meshes.load_mesh(references / name / MESH_FILE)
            rows[name] |= score_meshes(meshes.load_mesh(predictions / name / MESH_FILE), mesh, protocol)
            for label, mesh_floor in floors.MESH_FLOORS.items():
                floor_rows.setdefault(label, {})[name] = score_meshes(mesh_floor(mesh), mesh, protocol)
        logger.info("scored %s (%d of %d)", name, len(rows), len(objects))
    return Table(protocol.name, protocol.hash, rows, floor_rows)


def score_views(pred: ViewSet, ref: ViewSet, protocol: Protocol, name: str = "object") -> dict[str, float]:
    """Metric name to value for one object: image metrics averaged over its scored views, angles pooled over them.

    Raises InputError where the two sides differ in number, size or cameras.
    """
    _check_same_cameras(pred.cameras, ref.cameras, name)
    first = 0 if protocol.include_input_view else 1
    if len(ref) <= first:
        raise InputError(f"object '{name}' has {len(ref)} view: nothing to score besides the input view")
    pred, ref = pred[first:], ref[first:]
    angles = views.normal_angle(pred.normals, ref.normals, ref.mask)
    return {
        "psnr": float(views.psnr(pred.rgb, ref.rgb).mean()),
        # nan only for a view in which the reference shows no surface, which has no foreground to score
        "psnr_foreground": float(views.foreground_psnr(pred.rgb, ref.rgb, ref.mask).nanmean()),
        "ssim": float(views.ssim(pred.rgb, ref.rgb).mean()),
        "mask_iou": float(views.mask_iou(pred.mask, ref.mask).mean()),
        **{f"normal_{key}" + ("_deg" if key in ("mean", "median") else ""): value for key, value in angles.items()},
    }


def score_meshes(pred: trimesh.Trimesh, ref: trimesh.Trimesh, protocol: Protocol) -> dict[str, float]:
    """Metric name to value for one object; `watertight` is 1 or 0 for the prediction, to read the IoU by."""
    matched = meshes.match_surfaces(pred, ref, protocol.surface_samples, protocol.seed)
    iou = meshes.volume_iou(pred, ref, protocol.iou_resolution)
    return {
        "chamfer": matched.chamfer(),
        **{f"f_score_{limit:g}": matched.f_score(limit) for limit in protocol.f_score_thresholds},
        "normal_consistency": matched.normal_consistency(),
        f"iou{protocol.iou_resolution}_flood": iou,
        "watertight": float(meshes.is_closed(pred)),
    }


def _folder(path: str | Path, role: str) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"{role} folder '{path}' does not exist")
    return Path(path)


def _held(folder: Path) -> list[str]:
    return [file for file in (VIEWS_FILE, MESH_FILE) if (folder / file).is_file()]


def _common_kinds(predictions: Path, references: Path, objects: list[str]) -> list[str]:
    sides = {side: {name: _held(side / name) for name in objects} for side in (references, predictions)}
    for side, held in sides.items():
        missing = [name for name in objects if not held[name]]
        if missing:
            raise InputError(f"'{side}' lacks {', '.join(missing)}: each needs a {VIEWS_FILE} or a {MESH_FILE}")
    kinds = [
        file for file in (VIEWS_FILE, MESH_FILE) if all(any(file in h for h in s.values()) for s in sides.values())
    ]
    if not kinds:
        raise InputError(f"'{predictions}' and '{references}' have nothing in common: one holds views, one meshes")
    for side, held in sides.items():
        for file in kinds:
            missing = [name for name in objects if file not in held[name]]
            if missing:
                raise InputError(f"'{side}' has a {file} for some objects but not for {', '.join(missing)}")
        for file in {VIEWS_FILE, MESH_FILE} - set(kinds):
            if any(file in files for files in held.values()):
                logger.info("not scored: '%s' holds %s, the other side does not", side, file)
    return kinds


def _check_rig(ref: ViewSet, protocol: Protocol, name: str) -> None:
    if protocol.cameras != "any":
        _check_same_cameras(
            ref.cameras, preset(protocol.cameras, ref.cameras.width), f"{name}, protocol {protocol.name}"
        )


def _check_same_cameras(pred: Cameras, ref: Cameras, name: str) -> None:
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
