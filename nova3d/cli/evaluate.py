"""Score predictions of any method against references and print the table. The same command goes on where it ended."""

from dataclasses import asdict
from pathlib import Path

from nova3d import cli, config
from nova3d.utils import provenance

PROTOCOLS = Path(__file__).resolve().parent.parent / "configs/eval"


def main() -> None:
    arguments = cli.parser(
        "Score DIR/<object>/ (views, a mesh.glb or both) or DIR/<object>.glb against references laid out alike.",
        "python scripts/evaluate.py --protocol nova3d-el0 --predictions outputs/gso --references data/gso "
        "--out outputs/scores",
    )
    arguments.add_argument(
        "--protocol", default="nova3d-el0", help="a name in configs/eval or a YAML file (default: %(default)s)"
    )
    arguments.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="folder of predicted objects; several are seeds"
    )
    arguments.add_argument("--references", type=Path, required=True, help="folder of reference objects")
    arguments.add_argument("--out", type=Path, required=True, help="folder for scores.md, .tex, .csv and .json")
    arguments.add_argument(
        "--workers", type=int, default=1, help="processes that share the objects; on cuda each has a GPU of its own"
    )
    arguments.add_argument("--layout", default="auto", help="layout of the predicted views (default: from the files)")
    arguments.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what that layout does not say, e.g. elevation_deg=10; may be repeated",
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
    cli.add_device(arguments)
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any key of the protocol")
    given = arguments.parse_intermixed_args()  # overrides may stand anywhere

    from nova3d import layouts
    from nova3d.errors import InputError
    from nova3d.evaluation import Protocol, Table  # after parsing: --help need not wait for torch
    from nova3d.evaluation.cache import score_folders
    from nova3d.evaluation.comparison import compare
    from nova3d.evaluation.published import Published
    from nova3d.evaluation.tables import hardware
    from nova3d.utils.files import writable_folder

    if wrong := [text for text in given.weights if "=" not in text]:
        raise InputError(f"--weights '{wrong[0]}' is not of the form METRIC=FILE")
    protocol = config.load(Protocol, _protocol(given.protocol), given.overrides)
    assume = config.load(layouts.Assume, overrides=given.assume)
    baseline = Table.load(given.baseline) if given.baseline else None
    if baseline and baseline.protocol_hash != protocol.hash:  # before the work, not after it
        raise InputError(
            f"the baseline '{given.baseline}' was scored under {baseline.protocol} ({baseline.protocol_hash}), this is "
            f"{protocol.name} ({protocol.hash}): not comparable; score both under one protocol"
        )
    quoted = Published.load(PROTOCOLS / "published.yaml").of(*protocol.kinds) if given.published else None
    writable_folder(given.out)
    with cli.progress_bar("scoring") as progress:
        table = score_folders(
            given.predictions,
            given.references,
            protocol,
            given.out / "objects",
            layout=given.layout,
            assume=assume,
            weights=dict(text.split("=", 1) for text in given.weights),
            device=cli.pick_device(given.device),
            workers=given.workers,
            progress=progress,
        )
    facts = {"commit": provenance.commit(), "hardware": hardware()}
    sources = {"predictions": [str(path) for path in given.predictions], "references": str(given.references)}
    record = provenance.record("evaluate", asdict(protocol), **sources)
    table.save(given.out, record, facts, quoted)
    print(table.markdown(facts))
    if quoted:
        print(quoted.markdown())
    if baseline:
        compared = compare({"baseline": baseline, "predictions": table}, "baseline")
        compared.save(given.out / "comparison", record)
        print(compared.markdown())
    print(f"written: {given.out.resolve()}/scores.md, scores.tex, scores.csv, scores.json")


def _protocol(name: str) -> Path:
    """The YAML of a protocol's name; a path is taken as it is."""
    from nova3d.errors import InputError

    shipped = {path.stem: path for path in sorted(PROTOCOLS.glob("*.yaml")) if path.stem != "published"}
    if name not in shipped and not Path(name).is_file():
        raise InputError(f"protocol '{name}' is neither a file nor one of {', '.join(shipped)}")
    return shipped.get(name, Path(name))


if __name__ == "__main__":
    cli.run(main)
