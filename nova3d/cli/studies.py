"""The verbs that run studies: reproduce (a table of the paper) and ablate (arms against each other)."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from nova3d.cli import common
from nova3d.errors import InputError

TABLES = ("table1", "mesh", "texture", "fusion-ablation", "attention-ablation")
SUITE_CONFIGS = {"attention": "configs/ablation/attention.yaml", "fusion": "configs/fusion/cpu.yaml"}
OBJECTS = "a folder of meshes, or of Google Scanned Objects as downloaded (MODEL/meshes/model.obj)"
ABLATE_EXAMPLE = """nova3d ablate --suite attention --objects GSO --out outputs/attention budget=flops
  nova3d ablate --suite fusion --objects GSO --out outputs/fusion-suite --config configs/fusion/cpu.yaml"""


def reproduce_parser() -> common.Parser:
    """The arguments of `reproduce`."""
    arguments = common.parser(
        "Reproduce a table of the paper: generate, reconstruct, score, and print ours beside the paper's. The same "
        "command resumes an interrupted study.",
        "nova3d reproduce table1 --model assets/nova3d-mini --objects GSO --out outputs/reproduce",
    )
    arguments.add_argument("table", choices=TABLES)
    common.add_flag(arguments, "--model", "sample.model", "a model folder, a shipped model or a hub id")
    common.add_flag(arguments, "--objects", "objects", f"{OBJECTS}, or of shards")
    arguments.add_argument("--names", metavar="A,B", help="only these objects")
    arguments.add_argument("--seeds", metavar="0,1", help="seeds to sample with")
    common.add_flag(arguments, "--out", "out", "the output folder")
    common.add_workers(arguments, "processes; on cuda each has a GPU of its own")
    arguments.add_argument("--retry", action="store_true", help="try objects again that failed")
    common.add_device(arguments)
    common.add_config(arguments, None, "nova3d.experiments.config:ReproduceConfig", "reproduce")
    return arguments


def reproduce(argv: Sequence[str] | None = None) -> None:
    """Reproduce a table of the paper: generate, reconstruct, score, and print ours beside the paper's."""
    options = reproduce_parser().parse(argv)
    options.config = options.config or f"configs/reproduce/{options.table}.yaml"

    from nova3d.experiments.config import ReproduceConfig

    flags = {"names": common.names(options.names), "seeds": common.names(options.seeds)}
    settings = common.load_config(ReproduceConfig, "reproduce", options, flags)
    common.check_exists("objects", settings.objects)
    common.check_exists("sample.model", settings.sample.model, model=True)

    from nova3d.experiments.reproduce import reproduce as reproduce_table

    device = common.pick_device(options.device)
    with common.progress_bar(options.table) as bar:
        report, written = reproduce_table(settings, device, options.workers, options.retry, bar)
    print(report.markdown())
    common.closing({"written": written})


def ablate_parser() -> common.Parser:
    """The arguments of `ablate`."""
    arguments = common.parser(
        "Ablations: arms of the attention trained alike and scored, or arms of the fusion on injected faults. The same "
        "command resumes an interrupted study.",
        ABLATE_EXAMPLE,
    )
    arguments.add_argument("--suite", choices=tuple(SUITE_CONFIGS), required=True)
    text = f"{OBJECTS}; attention: also of shards, and held out from the training"
    arguments.add_argument("--objects", required=True, help=text)
    arguments.add_argument("--names", metavar="A,B", help="only these objects")
    arguments.add_argument("--faults", metavar="A,B", help="fusion: only none, poses or conflicts")
    arguments.add_argument("--arms", metavar="A,B", help="only these arms")
    arguments.add_argument("--out", help="the output folder")
    common.add_workers(arguments, "processes; on cuda each has a GPU of its own")
    arguments.add_argument("--retry", action="store_true", help="attention: try objects again that failed")
    common.add_device(arguments)
    common.add_config(arguments, None)
    arguments.schemas = {
        "config keys of --suite attention:": "nova3d.experiments.config:AttentionConfig",
        "config keys of --suite fusion:": "nova3d.fusion:FusionConfig",
    }
    return arguments


def ablate(argv: Sequence[str] | None = None) -> None:
    """Ablations: arms of the attention trained alike and scored, or arms of the fusion on injected faults."""
    options = ablate_parser().parse(argv)
    options.config = options.config or SUITE_CONFIGS[options.suite]
    {"attention": _attention, "fusion": _fusion}[options.suite](options)


def _attention(options: Namespace) -> None:
    from nova3d.experiments.config import AttentionConfig

    flags = {"held_out": options.objects, "out": options.out, "names": common.names(options.names or None)}
    settings = common.load_config(AttentionConfig, "ablation", options, flags)
    common.check_exists("--objects", settings.held_out)

    from nova3d.experiments.attention import attention_suite, select_arms

    settings = select_arms(settings, _choose("arm", options.arms, list(select_arms(settings).arms)))
    device = common.pick_device(options.device)
    with common.progress_bar("attention suite") as bar:
        report, path = attention_suite(settings, device, options.workers, options.retry, bar)
    print(report.markdown())
    common.closing({"written": path})


def _fusion(options: Namespace) -> None:
    from nova3d.fusion import FusionConfig

    settings = common.load_config(FusionConfig, "fusion", options)
    common.check_exists("--objects", options.objects)

    from nova3d.experiments.fusion import SUITE, report, run
    from nova3d.experiments.objects import object_names
    from nova3d.utils.files import writable_folder, write_text

    source = Path(options.objects)
    names = object_names(source, common.names(options.names) or [], meshes_only=True)
    faults = _choose("fault", options.faults, [case.fault for case in SUITE])
    arms = _choose("arm", options.arms, [case.arm for case in SUITE])
    cases = tuple(case for case in SUITE if case.fault in faults and case.arm in arms)
    if not cases:
        there = (f"fault '{fault}' has {', '.join(c.arm for c in SUITE if c.fault == fault)}" for fault in faults)
        raise InputError(f"no case is left of --faults and --arms: {'; '.join(there)}")
    device = common.pick_device(options.device)
    out = writable_folder(options.out or "outputs/fusion-suite")
    with common.progress_bar("fusion suite") as bar:
        rows = run(source, names, cases, out, settings, device, options.workers, bar)
    text = report(rows)
    write_text(out / "report.md", text)
    print(text)
    common.closing({"written": out / "report.md"})


def _choose(what: str, wanted: str | None, there: Sequence[str]) -> list[str]:
    """The names of `wanted` ("A,B") in the order of `there`; all where it is None or names nothing."""
    names = list(dict.fromkeys(there))
    asked = common.names(wanted) or []
    if unknown := sorted(set(asked) - set(names)):
        raise InputError(f"--{what}s: '{unknown[0]}' is not one of {', '.join(names)}")
    return [name for name in names if not asked or name in asked]
