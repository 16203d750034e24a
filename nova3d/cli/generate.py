"""The verbs from a picture to a mesh: sample (the views), reconstruct (the mesh), generate (both)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nova3d import config
from nova3d.cli import common
from nova3d.errors import InputError

if TYPE_CHECKING:
    from nova3d.generation import GenerateConfig


def generate(argv: Sequence[str] | None = None) -> None:
    """One picture to 16 views, 16 normal maps, a textured mesh and a report."""
    arguments = common.parser(
        "One picture to 16 views, 16 normal maps, a textured mesh and a report. Several pictures, a folder or a "
        "pattern: all of them, each into a folder of its own below OUT; what is done is kept.",
        "python scripts/generate.py --image photo.png --out outputs/photo sample.seed=1",
    )
    common.add_config(arguments, "configs/generate/mini.yaml", "nova3d.generation:GenerateConfig")
    arguments.add_argument("--image", nargs="+", help="the picture (same as sample.image=), or several, or a folder")
    arguments.add_argument("--mask", metavar="FILE", help="white where the object is (same as sample.mask=)")
    arguments.add_argument(
        "--cutout", metavar="METHOD", help="auto, alpha, plain, model or none (same as sample.cutout=)"
    )
    arguments.add_argument("--model", help="a model folder (same as sample.model=)")
    arguments.add_argument("--out", help="the output folder (same as out=)")
    common.add_device(arguments)
    options = arguments.parse_intermixed_args(argv)

    from nova3d import batch, generation

    named = options.image or []  # argparse counts the overrides after --image among the pictures
    given = [text for text in named if "=" not in text or Path(text).exists()]
    options.overrides += [text for text in named if text not in given]
    one = given[0] if batch.is_one_file(given) else None
    flags = {
        "sample.image": one,
        "sample.mask": options.mask,
        "sample.cutout": options.cutout,
        "sample.model": options.model,
        "out": options.out,
    }
    settings = common.load_config(generation.GenerateConfig, "generate", options, flags)
    if given and one is None:
        return _generate_all(batch.find_pictures(given), settings, options.device)
    with common.progress_bar("generating") as bar:
        made = generation.generate(config=settings, device=common.pick_device(options.device), progress=bar)
    for note in made.notes:
        print(note)
    print(f"views and normal maps: {made.views.resolve()}")
    print(f"textured mesh:         {made.mesh.resolve()}")
    print(f"turntable:             {made.turntable.resolve()}")
    print(f"record:                {made.record.resolve()}")
    print(f"report:                {made.report.resolve()}")


def _generate_all(pictures: "Sequence[Path]", settings: "GenerateConfig", device: str) -> None:
    from nova3d.batch import SUMMARY, generate_all

    with common.progress_bar("generating") as bar:
        outcomes = generate_all(pictures, settings, common.pick_device(device), bar)
    for outcome in outcomes:
        print(
            f"{outcome.status:6} {outcome.picture}: {outcome.reason or (Path(settings.out) / outcome.folder).resolve()}"
        )
    summary = (Path(settings.out) / SUMMARY).resolve()
    if failed := sum(outcome.status == "failed" for outcome in outcomes):
        raise InputError(f"{failed} of {len(outcomes)} pictures failed; the reasons stand in {summary}")
    print(f"summary: {summary}")


def sample(argv: Sequence[str] | None = None) -> None:
    """Generate 16 views and 16 normal maps of the object in a picture."""
    arguments = common.parser(
        "Generate 16 views and 16 normal maps of the object in a picture.",
        "python scripts/sample.py --config configs/sample/mini.yaml image=photo.png out=outputs/views seed=1",
    )
    common.add_config(arguments, "configs/sample/mini.yaml", "nova3d.sampling:SampleConfig")
    common.add_device(arguments)
    options = arguments.parse_intermixed_args(argv)

    from nova3d.sampling import SampleConfig, sample_views

    settings = common.load_config(SampleConfig, "sample", options)
    with common.progress_bar("sampling") as bar:
        folder, views, *_ = sample_views(settings, common.pick_device(options.device), bar)
    print(f"{len(views)} views and normal maps: {folder.resolve()}")


def reconstruct(argv: Sequence[str] | None = None) -> None:
    """Fuse a folder of views into a textured mesh with a report."""
    arguments = common.parser(
        "Fuse the views of one object into a textured mesh. The folder may be ours (rgb/, normal/, transforms.json), a "
        "transforms.json of any tool, or the output of a published method: docs/layouts.md lists them.",
        "python scripts/reconstruct.py --views outputs/mug --out outputs/mug.glb --config configs/fusion/cpu.yaml",
    )
    arguments.add_argument("--views", required=True, metavar="FOLDER", help="a view folder")
    arguments.add_argument("--layout", default="auto", help="the folder's layout (default: told from its files)")
    arguments.add_argument(
        "--assume", nargs="+", default=[], metavar="KEY=VALUE", help="what a layout does not say: elevation_deg=30, ..."
    )
    arguments.add_argument("--out", required=True, metavar="FILE", help="the mesh to write: .glb, .obj, .ply or .stl")
    arguments.add_argument(
        "--time-budget", type=float, metavar="S", help="seconds, which the schedule is hurried to meet"
    )
    arguments.add_argument("--resume", action="store_true", help="continue the fit an interrupted run has saved")
    common.add_device(arguments)
    common.add_config(arguments, "configs/fusion/cpu.yaml", "nova3d.fusion:FusionConfig")
    options = arguments.parse_intermixed_args(argv)

    from nova3d import layouts
    from nova3d.fusion import FusionConfig
    from nova3d.fusion import reconstruct as fuse
    from nova3d.fusion.export import check_output, maps_folder, write_maps
    from nova3d.generation import write_fusion_report
    from nova3d.utils import provenance
    from nova3d.utils.files import locked, writable_folder
    from nova3d.views import load_detail

    out = check_output(options.out)
    settings = common.load_config(FusionConfig, "fusion", options, {"optim.time_budget": options.time_budget or None})
    assume = config.load(layouts.Assume, overrides=options.assume)
    loaded = layouts.load(options.views, options.layout, assume=assume)
    views, placement, detail = loaded.views, loaded.placement, None
    if loaded.layout == "nova3d":
        detail = load_detail(options.views)
    else:  # ours are in their place, even where a generated object is a little off
        views, moved = layouts.normalise(views)
        placement = moved @ placement
    device = common.pick_device(options.device)
    checkpoint = maps_folder(out) / "fit.pt"
    with locked(writable_folder(checkpoint.parent), "another reconstruction"):
        if not options.resume:
            checkpoint.unlink(missing_ok=True)
        with common.progress_bar("fusing") as bar:
            result = fuse(views, settings, device, bar, checkpoint, detail)
        entry = provenance.record(
            "fusion",
            settings,
            views=Path(options.views).absolute().name,
            layout=loaded.layout,
            placement=placement.matrix.tolist(),
            seed=settings.optim.seed,
            device=device,
            timings=result.timings,
            report=result.report,
        )
        result.save(out, entry)
        folder = write_maps(out, result.cameras, result.conflict)
        page = write_fusion_report(out, folder, views, result, entry)
        provenance.write(folder, entry | {"history": result.history})
    report = result.report
    print(
        f"{report['faces']} faces, {report['components']} component(s), "
        f"{'watertight' if report['watertight'] else 'NOT watertight'}, "
        f"{100 * report['unseen_share']:.1f} % of the texture unseen, mean conflict {report['conflict_mean']:.3f}, "
        f"poses moved {report['rotation_deg_mean']:.2f} degrees, {report['seconds']:.0f} s"
    )
    if not placement.is_identity:
        print(f"the mesh is in nova3d's frame; record.json's `placement` leads there from that of '{options.views}'")
    print(f"conflict maps, refined cameras, record and pictures: {folder}")
    print(f"report: {page}")
    print(out)
