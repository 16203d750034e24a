"""The verbs from a picture to a mesh: sample (the views), reconstruct (the mesh), generate (both)."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nova3d import config
from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.utils.files import check_folder, names_one_file
from nova3d.utils.resources import locate

if TYPE_CHECKING:
    from nova3d.settings import GenerateConfig


def generate_parser() -> common.Parser:
    """The arguments of `generate`."""
    arguments = common.parser(
        "One picture to 16 views, 16 normal maps, a textured mesh and a report. Several pictures, a folder or a "
        "pattern: all of them, each into a folder of its own below OUT; finished results are kept.",
        "nova3d generate photo.png --out outputs/photo sample.seed=1",
    )
    common.add_config(arguments, "mini", "nova3d.settings:GenerateConfig", "generate")
    common.add_files(arguments, "PICTURE")
    arguments.add_argument(
        "--image", nargs="+", default=[], help="the same: a picture (sample.image=), several, a folder or a pattern"
    )
    _add_sampling(arguments, "sample.")
    common.add_flag(arguments, "--out", "out", "the output folder")
    common.add_workers(arguments, "processes that share several pictures, each with one thread")
    common.add_device(arguments)
    return arguments


def _add_sampling(arguments: common.Parser, prefix: str) -> None:
    common.add_flag(arguments, "--mask", f"{prefix}mask", "white where the object is", metavar="FILE")
    common.add_flag(
        arguments, "--cutout", f"{prefix}cutout", "alpha, plain, model, none or auto, the default", metavar="METHOD"
    )
    common.add_flag(arguments, "--model", f"{prefix}model", "a model folder, a shipped model or a hub id")
    common.add_flag(arguments, "--seed", f"{prefix}seed", "of all noise", metavar="N")
    common.add_flag(
        arguments,
        "--seeds",
        f"{prefix}seeds",
        "make candidates with these seeds, and take the views that agree best",
        type=common.names,
        metavar="0,1,2",
    )
    common.add_flag(
        arguments,
        "--keep-candidates",
        f"{prefix}keep_candidates",
        "write the views of all candidates too",
        action="store_const",
        const=True,
    )


def generate(argv: Sequence[str] | None = None) -> None:
    """One picture to 16 views, 16 normal maps, a textured mesh and a report."""
    options = generate_parser().parse(argv)
    given = [*options.files, *options.image]

    from nova3d.settings import GenerateConfig, check_inputs, results_folder

    one = given[0] if len(given) == 1 else None
    settings = common.load_config(GenerateConfig, "generate", options, {"sample.image": one})
    if len(given) > 1 or (given and not names_one_file(settings.sample.image)):
        return _generate_all(given, settings, options.device, options.workers)
    _check_named(settings.sample.image, options)
    check_inputs(settings.sample)
    results_folder(settings, make=False)  # made once the device is known to be there

    from nova3d import generation

    with common.progress_bar("generating") as bar:
        made = generation.generate(config=settings, device=common.pick_device(options.device), progress=bar)
    for note in made.notes:
        print(note)
    seen = made.agreement
    common.closing(
        {
            "views and normal maps": made.views,
            "textured mesh": made.mesh,
            "turntable": made.turntable,
            "record": made.record,
            "report": made.report,
        },
        f"seen as in the picture, outline IoU {seen.input_iou:.2f}, colours {seen.input_psnr:.1f} dB PSNR",
        "open the report in a browser; another seed gives other sides: --seed 1",
    )


def _check_named(picture: str, options: Namespace) -> None:
    """Refuse a command that names no picture: the default of the settings is an example."""
    from nova3d.settings import SampleConfig

    overridden = {text.partition("=")[0] for text in options.overrides} & {"image", "sample.image"}
    named = bool(options.files or options.image or overridden)
    if not named and Path(picture) == locate(SampleConfig.image, "asset"):
        raise InputError(f"no picture is named: give one or more, or the shipped example, {SampleConfig.image}")


def _generate_all(given: Sequence[str], settings: "GenerateConfig", device: str, workers: int) -> None:
    from nova3d.batch import SUMMARY, check_all, find_pictures, generate_all

    pictures = find_pictures(given)
    out = check_all(pictures, settings)
    with common.progress_bar("generating") as bar:
        outcomes = generate_all(pictures, settings, common.pick_device(device), bar, workers)
    for outcome in outcomes:
        print(f"{outcome.status:6} {outcome.picture}: {outcome.reason or (out / outcome.folder).resolve()}")
    summary = (out / SUMMARY).resolve()
    if failed := sum(outcome.status == "failed" for outcome in outcomes):
        raise InputError(f"{failed} of {len(outcomes)} pictures failed; the reasons stand in {summary}")
    kept = sum(outcome.status == "kept" for outcome in outcomes)
    common.closing(
        {"results": out, "summary": summary},
        f"{len(outcomes) - kept} made, {kept} kept, none failed; every folder's record.json has its figures",
        "open report.html of each folder in a browser",
    )


def sample_parser() -> common.Parser:
    """The arguments of `sample`."""
    arguments = common.parser(
        "Generate 16 views and 16 normal maps of the object in a picture.",
        "nova3d sample photo.png --out outputs/views seed=1",
    )
    common.add_config(arguments, "mini", "nova3d.settings:SampleConfig", "sample")
    common.add_files(arguments, "PICTURE")
    arguments.add_argument("--image", nargs="+", default=[], metavar="PICTURE", help="the same (same as image=)")
    _add_sampling(arguments, "")
    common.add_flag(arguments, "--out", "out", "the view folder to write")
    common.add_device(arguments)
    return arguments


def sample(argv: Sequence[str] | None = None) -> None:
    """Generate 16 views and 16 normal maps of the object in a picture."""
    options = sample_parser().parse(argv)
    given = [*options.files, *options.image]
    if len(given) > 1:
        raise InputError(f"sample takes one picture, and {len(given)} are given; `nova3d generate` takes several")

    from nova3d.settings import SampleConfig, check_inputs, views_folder

    settings = common.load_config(SampleConfig, "sample", options, {"image": given[0] if given else None})
    _check_named(settings.image, options)
    check_inputs(settings)
    views_folder(settings, make=False)

    from nova3d.sampling import sample_views
    from nova3d.utils.files import read_json

    with common.progress_bar("sampling") as bar:
        folder, views, *_ = sample_views(settings, common.pick_device(options.device), bar)
    agreement = read_json(folder / "record.json", dict, "record")["task_iou"]
    depth = "" if settings.depth_ratio is None else f" extract.depth_ratio={settings.depth_ratio:g}"
    common.closing(
        {f"{len(views)} views and normal maps": folder, "contact sheet": folder / "contact_sheet.png"},
        f"colours and normals show one outline with an IoU of {sum(agreement) / len(agreement):.2f} (mean of the "
        f"views; least {min(agreement):.2f})",
        f"nova3d reconstruct {folder} --out {folder}.glb{depth}",
    )


def reconstruct_parser() -> common.Parser:
    """The arguments of `reconstruct`."""
    arguments = common.parser(
        "Fuse the views of one object into a textured mesh. The folder may be ours (rgb/, normal/, transforms.json), a "
        "transforms.json of any tool, or the output of a published method: docs/layouts.md lists them.",
        "nova3d reconstruct outputs/mug --out outputs/mug.glb --config cpu",
    )
    common.add_config(arguments, "cpu", "nova3d.fusion:FusionConfig", "fusion")
    common.add_files(arguments, "FOLDER")
    arguments.add_argument("--views", metavar="FOLDER", help="the same: a view folder")
    arguments.add_argument("--layout", default="auto", help="the folder's layout (default: recognised by its files)")
    arguments.add_argument(
        "--assume", nargs="+", default=[], metavar="KEY=VALUE", help="what a layout leaves open: elevation_deg=30, ..."
    )
    arguments.add_argument("--out", required=True, metavar="FILE", help="the mesh to write: .glb, .obj, .ply or .stl")
    arguments.add_argument(
        "--frame",
        choices=("nova3d", "source"),
        default="nova3d",
        help="of the mesh: nova3d (+Y up, centred, longest side about 1), or that of the views' files",
    )
    common.add_flag(
        arguments,
        "--time-budget",
        "optim.time_budget",
        "seconds, which the schedule is hurried to meet",
        type=float,
        metavar="S",
    )
    arguments.add_argument("--resume", action="store_true", help="continue the fit an interrupted run has saved")
    common.add_device(arguments)
    return arguments


def reconstruct(argv: Sequence[str] | None = None) -> None:
    """Fuse a folder of views into a textured mesh with a report."""
    options = reconstruct_parser().parse(argv)
    folders = [*options.files, *([options.views] if options.views else [])]

    from nova3d.fusion import FusionConfig
    from nova3d.fusion.output import check_output

    settings = common.load_config(FusionConfig, "fusion", options)
    if len(folders) != 1:
        raise InputError(f"reconstruct takes one view folder, and {len(folders) or 'none'} is given")
    (views,) = folders
    if not (Path(views).suffix.lower() == ".json" and Path(views).is_file()):  # a transforms.json stands for its folder
        check_folder(views, "view folder")
    check_output(options.out, make=False)

    from nova3d import layouts
    from nova3d.reconstruction import reconstruct_folder

    assume = config.load(layouts.Assume, overrides=options.assume)
    with common.progress_bar("fusing") as bar:
        made = reconstruct_folder(
            views,
            options.out,
            settings,
            common.pick_device(options.device),
            options.layout,
            assume,
            options.frame == "source",
            options.resume,
            bar,
        )
    if options.frame == "source":
        print(f"the mesh is in the frame of '{views}'; record.json's `placement` leads to nova3d's")
    elif made.moved:
        print(
            f"the mesh is in nova3d's frame; record.json's `placement` leads there from that of '{views}', "
            "and --frame source writes the mesh in that"
        )
    health = made.health
    common.closing(
        {"conflict maps, refined cameras, record and pictures": made.folder, "report": made.report},
        f"{health['faces']} faces, {health['components']} component(s), "
        f"{'watertight' if health['watertight'] else 'NOT watertight'}, "
        f"{100 * health['unseen_share']:.1f} % of the texture unseen, mean conflict {health['conflict_mean']:.3f}, "
        f"poses moved {health['rotation_deg_mean']:.2f} degrees, {health['seconds']:.0f} s",
        "open the report in a browser",
    )
    print(made.mesh)
