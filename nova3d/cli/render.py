"""The verbs render and pack: a render job from its plan to checked shards, with a word of its own for each step."""

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

CONFIG = "mini"
_NEEDS = {"retry": " --reason timeout", "pack-views": " --views renders"}  # what the step cannot do without


def render_parser(step: str = "run") -> common.Parser:
    """The arguments of a step of `render`, a key of STEPS."""
    _, summary = STEPS[step]
    others = "".join(f"\n  render {name:12}{text}" for name, (_, text) in STEPS.items())
    arguments = common.parser(
        f"{summary[0].upper()}{summary[1:]}.\n\nsteps, each with its own --help (without one: run):{others}",
        "nova3d pack renders out=data/shards"
        if step == "pack"
        else f"nova3d render {step}{_NEEDS.get(step, '')} --config {CONFIG} "
        + ("source.path=objects out=data/shards" if step in ("plan", "run") else "out=data/shards"),
    )
    common.add_config(arguments, CONFIG, "nova3d.data.jobs.config:RenderConfig", "render")
    if step == "run":
        text = "run the code that engine.name=package.module:factory names"
        arguments.add_argument("--allow-code", action="store_true", help=text)
    if step == "retry":
        arguments.add_argument("--reason", action="append", required=True, help="as in `status`; may be repeated")
    if step == "pack":
        common.add_files(arguments, "FOLDER")
        arguments.add_argument("--incomplete", action="store_true", help="pack what there is, objects may be missing")
    if step == "pack-views":
        arguments.add_argument(
            "--views", required=True, metavar="FOLDER", help="a folder with a view folder per object"
        )
    if step in ("pack", "pack-views"):
        arguments.add_argument("--layout", default="auto", help="of the view folders (default: from the files)")
        arguments.add_argument("--assume", action="append", default=[], metavar="KEY=VALUE", help="see `evaluate`")
    if step == "verify":
        arguments.add_argument("--deep", action="store_true", help="read every byte and decode every picture")
    if step in ("sheet", "attribution"):
        arguments.add_argument("--out", metavar="FOLDER", help="where to write (default: the job folder)")
    else:
        common.add_flag(arguments, "--out", "out", "the job folder", metavar="FOLDER")
    if step == "sheet":
        arguments.add_argument("--count", type=int, default=40, help="objects to show (default: %(default)s)")
    return arguments


def render(argv: Sequence[str] | None = None) -> None:
    """Render meshes into training shards: plan, run, look, mend, pack, check."""
    words = list(sys.argv[1:] if argv is None else argv)
    step = words.pop(0) if words and words[0] in STEPS else "run"
    if words and "=" not in words[0] and not words[0].startswith("-"):
        raise InputError(f"render: '{words[0]}' is not one of the steps {', '.join(STEPS)}")
    _run_step(step, words)


def pack_parser() -> common.Parser:
    """The arguments of `pack`."""
    return render_parser("pack")


def pack(argv: Sequence[str] | None = None) -> None:
    """Write training shards of a rendered job, or of a folder of view folders that were made elsewhere."""
    _run_step("pack", list(sys.argv[1:] if argv is None else argv))


def _run_step(step: str, words: Sequence[str]) -> None:
    options = render_parser(step).parse(words)

    from nova3d.data.jobs.config import RenderConfig

    settings = common.load_config(RenderConfig, "render", options)
    settings.check()
    function, _ = STEPS[step]
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
        common.closing({}, "", f"look at them: nova3d render sheet out={settings.out}")
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
    if options.files:
        if len(options.files) > 1:
            raise InputError(f"pack takes one folder of view folders, and {len(options.files)} are given")
        options.views = options.files[0]
        return _pack_views(settings, options)

    from nova3d.data.jobs.pack import pack

    with common.progress_bar("packing") as bar:
        packed = pack(settings, options.incomplete, bar)
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


# Step of a job -> its function and its line in --help.
STEPS: dict[str, tuple[Callable[["RenderConfig", argparse.Namespace], None], str]] = {
    "plan": (_plan, "decide what to render and estimate the cost"),
    "run": (_run, "render the remaining objects, then pack; plans first where there is no plan"),
    "status": (_status, "where a job stands, also from another terminal while it runs"),
    "retry": (_retry, "queue failed objects again, by reason"),
    "pack": (_pack, "write shards of a FOLDER of view folders, or again those of a job (`run` packs by itself)"),
    "pack-views": (_pack_views, "the same as `nova3d pack FOLDER`, in its former form"),
    "verify": (_verify, "check packed shards"),
    "sheet": (_sheet, "contact sheets of the renders, doubtful ones first"),
    "attribution": (_attribution, "credits of what was packed"),
    "doctor": (_doctor, "what this machine has and lacks for a job"),
}
