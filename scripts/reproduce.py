#!/usr/bin/env python
"""Make a table of the paper anew: generate, reconstruct, score, and print ours beside the paper's."""

from pathlib import Path

from nova3d import cli, config

CONFIGS = Path(__file__).resolve().parent.parent / "configs/reproduce"
TABLES = ("table1", "mesh", "texture", "fusion-ablation", "attention-ablation")


def main() -> None:
    arguments = cli.parser(
        f"{__doc__} The same command goes on where it was interrupted.",
        "python scripts/reproduce.py table1 --model assets/nova3d-mini --objects GSO --out outputs/reproduce",
    )
    arguments.add_argument("table", choices=TABLES)
    arguments.add_argument("--config", help="YAML config (default: configs/reproduce/TABLE.yaml)")
    arguments.add_argument("--model", help="a model folder (same as sample.model=)")
    arguments.add_argument("--objects", help="a folder of meshes (same as objects=)")
    arguments.add_argument("--names", metavar="A,B", help="only these objects")
    arguments.add_argument("--seeds", metavar="0,1", help="seeds to sample with")
    arguments.add_argument("--out", help="the output folder (same as out=)")
    arguments.add_argument("--workers", type=int, default=1, help="processes; on cuda each has a GPU of its own")
    arguments.add_argument("--retry", action="store_true", help="try objects again that failed")
    cli.add_device(arguments)
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any config key")
    options = arguments.parse_intermixed_args()  # overrides may stand anywhere after the table's name
    from nova3d.experiments.reproduce import ReproduceConfig, reproduce

    lists = {"names": options.names, "seeds": options.seeds}
    named = {"sample.model": options.model, "objects": options.objects, "out": options.out}
    named |= {key: f"[{value}]" for key, value in lists.items() if value is not None}
    flags = [f"{key}={value}" for key, value in named.items() if value is not None]
    path = options.config or CONFIGS / f"{options.table}.yaml"
    settings = config.load(ReproduceConfig, path, [*options.overrides, *flags])
    with cli.progress_bar(options.table) as bar:
        report, written = reproduce(settings, cli.pick_device(options.device), options.workers, options.retry, bar)
    print(report.markdown())
    print(f"written: {written.resolve()}")


if __name__ == "__main__":
    cli.run(main)
