"""The verb evaluate: scores of any method's predictions against references."""

from collections.abc import Sequence
from pathlib import Path

from nova3d import config
from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.utils import provenance
from nova3d.utils.files import check_file
from nova3d.utils.resources import find


def evaluate_parser() -> common.Parser:
    """The arguments of `evaluate`."""
    arguments = common.parser(
        "Score DIR/<object>/ (views, a mesh.glb or both) or DIR/<object>.glb against references laid out alike.",
        "nova3d evaluate --protocol nova3d-el0 --predictions outputs/gso --references data/gso --out outputs/scores",
    )
    arguments.add_argument(
        "--protocol",
        "--config",
        dest="config",
        default="nova3d-el0",
        help="a shipped protocol's name or a YAML file (default: %(default)s)",
    )
    arguments.stage = "eval"
    arguments.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="folder of predicted objects; several are seeds"
    )
    arguments.add_argument(
        "--references", type=Path, required=True, help="folder of reference objects; views are drawn from meshes alone"
    )
    arguments.add_argument("--out", type=Path, required=True, help="folder for scores.md, .tex, .csv and .json")
    common.add_workers(arguments, "processes that share the objects; on cuda each has a GPU of its own")
    arguments.add_argument("--layout", default="auto", help="layout of the predicted views (default: from the files)")
    arguments.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what that layout leaves open, e.g. elevation_deg=10; may be repeated",
    )
    arguments.add_argument(
        "--mesh-axes",
        default="+y,+z",
        metavar="UP,FRONT",
        help="of the predicted meshes, +z,-y for example (default: %(default)s)",
    )
    arguments.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="METRIC=FILE",
        help="weights of lpips_vgg, lpips_alex or clip_vit_l_14; may be repeated",
    )
    arguments.add_argument("--baseline", type=Path, help="scores of another method, to compare with object by object")
    arguments.add_argument("--published", action="store_true", help="quote published numbers below the table")
    common.add_device(arguments)
    common.add_overrides(arguments, "nova3d.evaluation:Protocol")
    return arguments


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Score predictions against references and print the table; the same command resumes."""
    options = evaluate_parser().parse(argv)
    if not options.print_config:
        common.check_exists("--predictions", *options.predictions)
        common.check_exists("--references", options.references)
        common.check_exists("--baseline", options.baseline)

    from nova3d.evaluation import Protocol

    protocol = common.load_config(Protocol, "eval", options)
    if wrong := [text for text in options.weights if "=" not in text]:
        raise InputError(f"--weights '{wrong[0]}' is not of the form METRIC=FILE")
    for text in options.weights:
        check_file(text.partition("=")[2], "weights file")

    from nova3d import layouts
    from nova3d.evaluation import Table, score
    from nova3d.evaluation.comparison import compare, compare_with_baselines
    from nova3d.evaluation.published import Published
    from nova3d.evaluation.tables import hardware
    from nova3d.utils.files import writable_folder

    assume = config.load(layouts.Assume, overrides=options.assume)
    baseline = Table.load(options.baseline) if options.baseline else None
    if baseline and baseline.protocol_hash != protocol.hash:  # before the work, not after it
        raise InputError(
            f"the baseline '{options.baseline}' was scored under {baseline.protocol} ({baseline.protocol_hash}), "
            f"this is {protocol.name} ({protocol.hash}): not comparable; score both under one protocol"
        )
    quoted = Published.load(find("eval/published", "config")).of(*protocol.kinds) if options.published else None
    device = common.pick_device(options.device)
    writable_folder(options.out)
    with common.progress_bar("scoring") as progress:
        table = score(
            options.predictions,
            options.references,
            protocol,
            layout=options.layout,
            assume=assume,
            axes=options.mesh_axes,
            weights=dict(text.split("=", 1) for text in options.weights),
            device=device,
            workers=options.workers,
            cache=options.out / "objects",
            progress=progress,
        )
    facts = {"commit": provenance.commit(), "hardware": hardware()}
    sources = {"predictions": [str(path) for path in options.predictions], "references": str(options.references)}
    record = provenance.record("evaluate", protocol, **sources)
    table.save(options.out, record, facts, quoted)
    shown = (table.beside_published() if quoted else table).shown()
    print(shown.markdown(facts))
    if others := [name for name in table.metrics if name not in shown.metrics]:
        print(f"{len(others)} more columns are in {options.out}/scores.md and scores.json: {', '.join(others)}\n")
    if quoted:
        print(quoted.markdown())
    if baseline:
        compared = compare({"baseline": baseline, "predictions": table}, "baseline")
        compared.save(options.out / "comparison", record)
        print(compared.markdown())
    for key, one in compare_with_baselines({"predictions": table}).items():
        one.save(options.out / key, record)
        print(one.markdown())
    common.closing(
        {"scores.md, .tex, .csv, .json": options.out},
        "",
        f"compare another method, object by object: nova3d evaluate ... --baseline {options.out / 'scores.json'}",
    )
