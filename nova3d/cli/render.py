#!/usr/bin/env python
"""Render meshes into training shards: plan, run, look, mend, pack, check."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from nova3d import cli, config
from nova3d.errors import InputError

CONFIG = "configs/render/mini.yaml"
VERBS = {
    "plan": "decide what to render and estimate the cost",
    "run": "render what is not done yet, then pack; plans first where there is no plan",
    "status": "where a job stands, also from another terminal while it runs",
    "retry": "queue failed objects again, by reason",
    "pack": "write the shards of a rendered job",
    "verify": "check packed shards",
    "sheet": "contact sheets of the renders, doubtful ones first",
    "attribution": "credits of what was packed",
    "doctor": "what this machine has and lacks for a job",
}


def parse() -> argparse.Namespace:
    arguments = cli.parser(
        __doc__ or "", f"python scripts/render.py run --config {CONFIG} source.path=objects out=data/shards"
    )
    verbs = arguments.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  python scripts/render.py {name} --config {CONFIG} out=data/shards",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        cli.add_config(verb, CONFIG)
        if name == "retry":
            verb.add_argument("--reason", action="append", required=True, help="as in `status`; may be repeated")
        if name == "pack":
            verb.add_argument("--incomplete", action="store_true", help="pack what there is, objects may be missing")
        if name == "verify":
            verb.add_argument("--deep", action="store_true", help="read every byte and decode every picture")
        if name in ("sheet", "attribution"):
            verb.add_argument("--out", default="", metavar="FOLDER", help="where to write (default: the job folder)")
        if name == "sheet":
            verb.add_argument("--count", type=int, default=40, help="objects to show (default: %(default)s)")
    return arguments.parse_args()


def main() -> None:
    options = parse()
    from nova3d.data.jobs.config import RenderConfig

    settings = config.load(RenderConfig, options.config, options.overrides)
    settings.check()
    globals()[f"{options.verb}_job"](settings, options)


def plan_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs.plan import write_plan

    with cli.progress_bar("planning") as bar:
        plan = write_plan(settings, bar)
    print(plan)


def run_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job
    from nova3d.data.jobs.scheduler import Stop

    stop = Stop()

    def drain(number: int, _: Any) -> None:
        stop.reason = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, drain)
    with cli.progress_bar("rendering") as bar:
        tally, packed = job.run(settings, bar, stop)
    print(f"this run: {tally}")
    if packed:
        print(f"shards: {packed}")
    elif tally.ended:
        print(f"ended by {tally.ended}; the same command resumes")
        sys.exit(130 if tally.ended == "SIGINT" else 0)


def status_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job

    print(job.status(settings))


def retry_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job

    uids = job.retry(settings, options.reason)
    print(f"{len(uids)} objects queued again; `run` renders them")


def pack_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs import job
    from nova3d.data.jobs.pack import pack

    with cli.progress_bar("packing") as bar:
        packed = pack(settings, job.load_plan(settings), options.incomplete, bar)
    print(f"shards: {packed}")


def verify_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs.verify import verify

    with cli.progress_bar("verifying") as bar:
        verified = verify(settings.out, options.deep, bar)
    for problem in verified.problems:
        print(problem)
    if verified.problems:
        raise InputError(f"{len(verified.problems)} problem(s) in '{settings.out}', the first: {verified.problems[0]}")
    print(f"{verified.objects} objects in {verified.shards} shards are sound{'' if options.deep else ' (not deep)'}")


def sheet_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs.sheet import contact_sheets

    with cli.progress_bar("drawing") as bar:
        sheets = contact_sheets(settings.out, options.out or settings.out, options.count, bar)
    print("\n".join(map(str, sheets)))


def attribution_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs.attribution import write_attribution
    from nova3d.data.jobs.pack import manifest_rows

    print(write_attribution(manifest_rows(settings.out), options.out or settings.out))


def doctor_job(settings: Any, options: argparse.Namespace) -> None:
    from nova3d.data.jobs.doctor import examine

    faults = []
    for finding in examine(settings):
        print(f"{finding.name:17}{finding.value}")
        faults += [f"{finding.name}: {finding.fault}"] if finding.fault else []
    if faults:
        raise InputError(f"{len(faults)} problem(s): {'; '.join(faults)}")
    print(f"ready to render into '{Path(settings.out)}'")


if __name__ == "__main__":
    cli.run(main)
