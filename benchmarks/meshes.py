"""Generated meshes of scans beside their inflated and cut-out outlines: shape, sides and hidden views."""

from collections.abc import Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from nova3d.cli import common

COLUMNS = {
    "mask IoU": ("mask_iou", 3),
    "PSNR, union, dB": ("psnr_union", 2),
    "PSNR on the object, dB": ("psnr_foreground", 2),
    "normals, degrees": ("normal_mean_deg", 1),
    "Chamfer": ("cd_l2_area100k", 4),
    "volume IoU": ("iou128_flood", 3),
}
SIDES = {"thin share": "thin_share", "width": "side_width", "edge angle": "rim_angle_deg", "parts": "parts"}
BASELINES = ("inflated", "cut-out")
PHOTO_PX, MARGINS = 512, (40, 10, 20, 60)  # a photo's view, and pixels above, below, left and right of the object


def main() -> None:
    """Score meshes, print the paired tables."""
    arguments = common.parser(str(__doc__), "python benchmarks/meshes.py outputs/reproduce --photos GSO")
    arguments.add_argument("study", type=Path, help="a folder of `nova3d reproduce mesh`, for references and meshes")
    arguments.add_argument(
        "--photos", type=Path, metavar="OBJECTS", help="score meshes that `generate` makes of photos"
    )
    arguments.add_argument(
        "--known-depth", action="store_true", help="with --photos: tell `sample.depth_ratio`, measured on the scan"
    )
    arguments.add_argument("--every", type=int, default=3, help="with --photos: of these scans every so many")
    arguments.add_argument("--out", type=Path, default=Path("outputs/meshes"), help="kept rows and photos' meshes")
    options = arguments.parse_args()

    from nova3d.errors import InputError
    from nova3d.evaluation.formats import plain
    from nova3d.utils.files import read_json, write_json

    meshes = options.study / "meshes" / "seed0"
    if options.photos:
        meshes = options.out / ("photos-known-depth" if options.known_depth else "photos")
        make_of_photos(sorted(options.photos.glob("*.glb"))[:: options.every], meshes, options.known_depth)
    kept = options.out / f"{meshes.name}.json"
    rows = with_nan(read_json(kept, dict, "rows")) if kept.is_file() else {}
    for mesh in sorted(meshes.glob("*/mesh.glb")):
        name = mesh.parent.name
        if name not in rows:
            rows[name] = score(mesh, options.study / "references" / name, options.known_depth)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, plain(rows))
    if not rows:
        raise InputError(f"'{meshes}' has no NAME/mesh.glb: run `nova3d reproduce mesh` first")
    print(tables(rows))


def with_nan(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows as they were before `evaluation.formats.plain`, whose None is nan."""
    return {
        key: with_nan(value) if isinstance(value, Mapping) else nan if value is None else value
        for key, value in rows.items()
    }


def make_of_photos(scans: list[Path], out: Path, known_depth: bool = False) -> None:
    """Generate meshes of pictures of scans, and put them back where the scans are.

    A photo shows view 0 anywhere in the picture, at any size, so `generate` frames it by its outline. The mesh is then
    scaled and moved by what the framing undid, which the outline tells.
    """
    import torch
    import trimesh

    from nova3d import generate, images, render_object
    from nova3d.cameras import ORTHO_SPAN, preset
    from nova3d.evaluation import mesh_metrics
    from nova3d.fusion.reconstruction import depth_ratio
    from nova3d.generation import default_config
    from nova3d.sampling import load_pipeline

    config, pixel, pipeline = default_config(), ORTHO_SPAN / PHOTO_PX, None
    above, below, left, right = MARGINS
    for scan in (scan for scan in scans if not (out / scan.stem / "mesh.glb").is_file()):
        folder = out / scan.stem
        folder.mkdir(parents=True, exist_ok=True)
        rgba = render_object(scan, preset("ortho16", PHOTO_PX)[[0]]).straight_alpha(0)
        rows, columns = (index.aminmax() for index in torch.nonzero(rgba[..., 3] > 0.5, as_tuple=True))
        (top, bottom), (first, last) = ((int(low), int(high) + 1) for low, high in (rows, columns))
        window = slice(max(top - above, 0), bottom + below), slice(max(first - left, 0), last + right)
        photo = folder / "photo.png"
        images.save_image(photo, rgba[window])
        pipeline = pipeline or load_pipeline(config.sample, "cpu")
        ratio = round(depth_ratio(mesh_metrics.read_surface(scan)), 2) if known_depth else None
        sample = replace(config.sample, depth_ratio=ratio)
        settings = replace(config, sample=sample, turntable_frames=1)
        made = generate(photo, folder / "generated", settings, "cpu", pipeline=pipeline)
        mesh = trimesh.load_scene(made.mesh)
        mesh.apply_scale(max(bottom - top, last - first) * pixel * sample.framing_ratio)
        mesh.apply_translation([(first + last - PHOTO_PX) / 2 * pixel, (PHOTO_PX - top - bottom) / 2 * pixel, 0])
        mesh.export(folder / "mesh.glb")


def score(mesh: Path, reference: Path, known_depth: bool = False) -> dict[str, dict[str, float]]:
    """Scores of a mesh, of what its input gives without a model, and the scan's own sides.

    With a known depth, what the input gives is stretched to it too.

    Meshes are drawn under flat light, because the colours that they took from the pictures hold the light already.
    """
    from nova3d import config as configs
    from nova3d.cameras import ORTHO_SPAN
    from nova3d.evaluation import mesh_metrics
    from nova3d.evaluation.baselines import cut_out_mesh
    from nova3d.evaluation.mesh_scores import MeshReference, score_meshes
    from nova3d.evaluation.protocols import Protocol, ViewRules
    from nova3d.evaluation.rerender import draw
    from nova3d.evaluation.shape_figures import shape_figures
    from nova3d.evaluation.view_scores import score_views
    from nova3d.fusion.reconstruction import depth_ratio, set_depth
    from nova3d.inflate import inflated_mesh
    from nova3d.rendering.meshes import from_trimesh, load_mesh
    from nova3d.utils import resources
    from nova3d.views import ViewSet

    only = ["meshes.alignments=[known]", "meshes.mirror_margin=false"]
    protocol = configs.load(Protocol, resources.find("mesh-aligned", "protocol"), only)
    truth = ViewSet.load(reference)
    hidden = tuple(range(1, len(truth)))
    rules = ViewRules(
        size=truth.cameras.width, metrics=("psnr", "psnr_foreground", "mask_iou", "normals"), scored=hidden
    )
    scan = MeshReference.prepare(mesh_metrics.read_surface(reference / "mesh.glb"), protocol.meshes, protocol.seed)
    picture, pixel = truth.straight_alpha(0), ORTHO_SPAN / truth.cameras.width
    baselines = {"inflated": inflated_mesh(picture, pixel), "cut-out": cut_out_mesh(picture, pixel)}
    if known_depth:
        for baseline in baselines.values():
            set_depth(baseline, round(depth_ratio(scan.mesh), 2))
    surfaces = {"mesh": mesh_metrics.read_surface(mesh), **baselines}
    drawn = {"mesh": load_mesh(mesh)} | {name: from_trimesh([baseline]) for name, baseline in baselines.items()}
    rows = {"scan": shape_figures(scan.mesh, scan.mesh, scan.front)}
    for name, surface in surfaces.items():
        shape, _ = score_meshes(surface, scan, protocol.meshes, protocol.seed)
        rows[name] = shape | score_views(draw(drawn[name], truth.cameras, 3, name), truth, rules)
    return rows


def tables(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Means, paired differences with 95 % intervals, and the sides beside the scans', in Markdown."""
    from statistics import fmean

    from nova3d.evaluation.statistics import holm, paired

    lines = [f"{len(rows)} objects", "", "| | mesh | baseline | mean | difference | 95 % interval | p (Holm) |"]
    lines.append("|:--|--:|:--|--:|--:|--:|--:|")
    found = []
    for label, (column, digits) in COLUMNS.items():
        for baseline in BASELINES:
            ours, theirs = ([row[method][column] for row in rows.values()] for method in ("mesh", baseline))
            found.append((label, baseline, digits, paired(ours, theirs, family=len(COLUMNS) * len(BASELINES))))
    for (label, baseline, digits, result), p in zip(found, holm([entry[3].p for entry in found]), strict=True):
        gap = result.interval
        lines.append(
            f"| {label} | {result.mean:.{digits}f} | {baseline} | {result.baseline_mean:.{digits}f} "
            f"| {gap.mean:+.{digits}f} | {gap.low:+.{digits}f} to {gap.high:+.{digits}f} | {p:.3f} |"
        )
    lines += ["", "| | " + " | ".join(SIDES) + " |", "|:--|" + "--:|" * len(SIDES)]
    for method in ("scan", "mesh", *BASELINES):
        means = (fmean(row[method][column] for row in rows.values()) for column in SIDES.values())
        lines.append(f"| {method} | " + " | ".join(f"{mean:.3g}" for mean in means) + " |")
    lines += ["", "| object | " + " | ".join(COLUMNS) + " |", "|:--|" + "--:|" * len(COLUMNS)]
    for name, row in rows.items():
        values = (f"{row['mesh'][column]:.{digits}f}" for column, digits in COLUMNS.values())
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run(main)
