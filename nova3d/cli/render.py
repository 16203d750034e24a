"""The verb render: a render job from its plan to checked shards, with a verb of its own for each step."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nova3d.cli import common
from nova3d.errors import InputError

if TYPE_CHECKING:
    from nova3d.data.jobs.config import RenderConfig

CONFIG = "configs/render/mini.yaml"
_NEEDS = {"retry": " --reason timeout", "pack-views": " --views renders"}  # what the verb cannot do without


def render(argv: Sequence[str] | None = None) -> None:
    """Render meshes into training shards: plan, run, look, mend, pack, check."""
    arguments = common.parser(
        "Render meshes into training shards: plan, run, look, mend, pack, check.",
        f"python scripts/render.py run --config {CONFIG} source.path=objects out=data/shards",
    )
    steps = arguments.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, summary) in VERBS.items():
        example = f"python scripts/render.py {name}{_NEEDS.get(name, '')} --config {CONFIG} out=data/shards"
        step = steps.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        common.add_config(step, CONFIG, "nova3d.data.jobs.config:RenderConfig")
        if name == "run":
            text = "run the code that engine.name=package.module:factory names"
            step.add_argument("--allow-code", action="store_true", help=text)
        if name == "retry":
            step.add_argument("--reason", action="append", required=True, help="as in `status`; may be repeated")
        if name == "pack":
            step.add_argument("--incomplete", action="store_true", help="pack what there is, objects may be missing")
        if name == "pack-views":
            step.add_argument("--views", required=True, metavar="FOLDER", help="a folder with a view folder per object")
            step.add_argument("--layout", default="auto", help="of the view folders (default: from the files)")
            step.add_argument("--assume", action="append", default=[], metavar="KEY=VALUE", help="see `evaluate`")
        if name == "verify":
            step.add_argument("--deep", action="store_true", help="read every byte and decode every picture")
        if name in ("sheet", "attribution"):
            step.add_argument("--out", default="", metavar="FOLDER", help="where to write (default: the job folder)")
        if name == "sheet":
            step.add_argument("--count", type=int, default=40, help="objects to show (default: %(default)s)")
    options = arguments.parse_args(argv)

    from nova3d.data.jobs.config import RenderConfig

    settings = common.load_config(RenderConfig, "render", options)
    settings.check()
    function, _ = VERBS[options.verb]
    function(settings, options)


def _plan(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs.plan import write_plan

    with common.progress_bar("planning") as bar:
        plan = write_plan(settings, bar)
    print(plan)


def _run(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job
    from nova3d.data.jobs.scheduler import Stop

    if ":" in settings.engine.name and not options.allow_code:
        raise InputError(
            f"engine.name '{settings.engine.name[:80]}' names code to import and run: give --allow-code if you trust it"
        )
    stop = Stop()

    def drain(number: int, _: Any) -> None:
        stop.reason = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, drain)
    with common.progress_bar("rendering") as bar:
        tally, packed = job.run(settings, bar, stop)
    print(f"this run: {tally}")
    if packed:
        print(f"shards: {packed}")
    elif tally.ended:
        print(f"ended by {tally.ended}; the same command resumes")
        sys.exit(128 + signal.Signals[tally.ended])


def _status(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job

    print(job.status(settings))


def _retry(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job

    uids = job.retry(settings, options.reason)
    print(f"{len(uids)} objects queued again; `run` renders them")


def _pack(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job
    from nova3d.data.jobs.pack import pack

    with common.progress_bar("packing") as bar:
        packed = pack(settings, job.load_plan(settings), options.incomplete, bar)
    print(f"shards: {packed}")


def _pack_views(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d import config
    from nova3d.data.jobs.pack_views import pack_views
    from nova3d.layouts import Assume

    assume = config.load(Assume, overrides=options.assume)
    with common.progress_bar("packing") as bar:
        packed = pack_views(options.views, settings, options.layout, assume, bar)
    print(f"shards: {packed}")


def _verify(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs.verify import verify

    with common.progress_bar("verifying") as bar:
        verified = verify(settings.out, options.deep, bar)
    for problem in verified.problems:
        print(problem)
    if verified.problems:
        raise InputError(f"{len(verified.problems)} problem(s) in '{settings.out}', the first: {verified.problems[0]}")
    print(f"{verified.objects} objects in {verified.shards} shards are sound{'' if options.deep else ' (not deep)'}")


def _sheet(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs.sheet import contact_sheets

    with common.progress_bar("drawing") as bar:
        sheets = contact_sheets(settings.out, options.out or settings.out, options.count, bar)
    print("\n".join(map(str, sheets)))


def _attribution(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs.attribution import write_attribution
    from nova3d.data.jobs.pack import manifest_rows

    print(write_attribution(manifest_rows(settings.out), options.out or settings.out))


def _doctor(settings: "RenderConfig", options: argparse.Namespace) -> None:
    from nova3d.data.jobs.devices import examine

    faults = []
    for finding in examine(settings):
        print(f"{finding.name:17}{finding.value}")
        faults += [f"{finding.name}: {finding.fault}"] if finding.fault else []
    if faults:
        raise InputError(f"{len(faults)} problem(s): {'; '.join(faults)}")
    print(f"ready to render into '{Path(settings.out)}'")


# Verb of the job -> its function and its line in --help.
VERBS: dict[str, tuple[Callable[["RenderConfig", argparse.Namespace], None], str]] = {
    "plan": (_plan, "decide what to render and estimate the cost"),
    "run": (_run, "render what is not done yet, then pack; plans first where there is no plan"),
    "status": (_status, "where a job stands, also from another terminal while it runs"),
    "retry": (_retry, "queue failed objects again, by reason"),
    "pack": (_pack, "write the shards of a rendered job"),
    "pack-views": (_pack_views, "write shards of view folders that were made elsewhere"),
    "verify": (_verify, "check packed shards"),
    "sheet": (_sheet, "contact sheets of the renders, doubtful ones first"),
    "attribution": (_attribution, "credits of what was packed"),
    "doctor": (_doctor, "what this machine has and lacks for a job"),
}
