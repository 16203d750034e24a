#!/usr/bin/env python
"""Ablations: arms of the attention trained alike and scored, or arms of the fusion on planted faults."""

from argparse import Namespace

from nova3d import cli, config

EXAMPLE = """python scripts/ablate.py --suite attention --objects GSO --out outputs/attention budget=flops
  python scripts/ablate.py --suite fusion --objects GSO --out outputs/fusion-suite --config configs/fusion/cpu.yaml"""
CONFIGS = {"attention": "configs/ablation/attention.yaml", "fusion": "configs/fusion/cpu.yaml"}


def main() -> None:
    arguments = cli.parser(f"{__doc__} The same command goes on where it was interrupted.", EXAMPLE)
    arguments.add_argument("--suite", choices=tuple(CONFIGS), required=True)
    arguments.add_argument("--config", help="YAML config (default: the suite's)")
    arguments.add_argument("--objects", required=True, help="folder of meshes; attention: held out from the training")
    arguments.add_argument("--names", default="", metavar="A,B", help="only these objects")
    arguments.add_argument("--faults", default="", metavar="A,B", help="fusion: only none, poses or conflicts")
    arguments.add_argument("--arms", default="", metavar="A,B", help="fusion: only these arms")
    arguments.add_argument("--out", help="the output folder")
    arguments.add_argument("--workers", type=int, default=1, help="processes; on cuda each has a GPU of its own")
    arguments.add_argument("--retry", action="store_true", help="attention: try objects again that failed")
    cli.add_device(arguments)
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any config key")
    options = arguments.parse_args()
    options.names = options.names.split(",") if options.names else []
    options.config = options.config or CONFIGS[options.suite]
    {"attention": attention, "fusion": fusion}[options.suite](options)


def attention(options: Namespace) -> None:
    from nova3d.experiments.attention import AttentionConfig, attention_suite

    named = {"held_out": options.objects, "out": options.out}
    flags = [f"{key}={value}" for key, value in named.items() if value is not None]
    settings = config.load(AttentionConfig, options.config, [*options.overrides, *flags])
    settings.names = options.names or settings.names
    with cli.progress_bar("attention suite") as bar:
        report, path = attention_suite(settings, cli.pick_device(options.device), options.workers, options.retry, bar)
    print(report.markdown())
    print(f"written: {path.resolve()}")


def fusion(options: Namespace) -> None:
    from pathlib import Path

    from nova3d.errors import InputError
    from nova3d.experiments.fusion import SUITE, report, run
    from nova3d.experiments.fusion_inputs import meshes_in
    from nova3d.fusion import FusionConfig
    from nova3d.utils.files import writable_folder

    settings = config.load(FusionConfig, options.config, options.overrides)
    objects = meshes_in(Path(options.objects), options.names)
    cases = SUITE
    for name, wanted in (("fault", options.faults), ("arm", options.arms)):
        there = dict.fromkeys(getattr(case, name) for case in SUITE)
        if unknown := sorted(set(filter(None, wanted.split(","))) - there.keys()):
            raise InputError(f"--{name}s: '{unknown[0]}' is none of {', '.join(there)}")
        cases = tuple(case for case in cases if not wanted or getattr(case, name) in wanted.split(","))
    out = writable_folder(options.out or "outputs/fusion-suite")
    with cli.progress_bar("fusion suite") as bar:
        rows = run(objects, cases, out, settings, cli.pick_device(options.device), options.workers, bar)
    text = report(rows)
    (out / "report.md").write_text(text)
    print(text)
    print(f"written: {(out / 'report.md').resolve()}")


if __name__ == "__main__":
    cli.run(main)
