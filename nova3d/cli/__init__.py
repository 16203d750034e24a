"""The command line: one typed function a verb, in one module a family.

`nova3d VERB`, `python -m nova3d VERB` and `scripts/VERB.py` run the same function with the same arguments. A verb
`train-autoencoder` is the function `train_autoencoder`; its arguments are those of `train_autoencoder_parser`.
"""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nova3d
from nova3d.cli import common

VERBS = {
    "generate": "nova3d.cli.generate",
    "sample": "nova3d.cli.generate",
    "reconstruct": "nova3d.cli.generate",
    "evaluate": "nova3d.cli.evaluate",
    "render": "nova3d.cli.render",
    "pack": "nova3d.cli.render",
    "train": "nova3d.cli.train",
    "train-autoencoder": "nova3d.cli.train",
    "cache-latents": "nova3d.cli.train",
    "export": "nova3d.cli.models",
    "inspect": "nova3d.cli.models",
    "calibrate": "nova3d.cli.models",
    "ablate": "nova3d.cli.studies",
    "reproduce": "nova3d.cli.studies",
    "doctor": "nova3d.cli.doctor",
    "app": "nova3d.cli.app",
    "completion": "nova3d.cli.completion",
}
FORMER = {"train_autoencoder": "train-autoencoder", "cache_latents": "cache-latents", "inspect_weights": "inspect"}
"""A verb's former name -> its name. Both work."""


def main(verb: str | None = None) -> None:
    """Run a verb with the arguments of the command line; see `nova3d.cli.common.run` for how it ends.

    Args:
        verb: a key of VERBS; None takes it from the command line's first argument.
    """
    if verb is None:
        prog = "python -m nova3d" if Path(sys.argv[0]).name == "__main__.py" else "nova3d"
        first = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if first in ("-h", "--help", "help"):
            sys.stdout.write(overview(prog))
            return
        if first == "--version":
            sys.stdout.write(f"nova3d {nova3d.__version__}\n")
            return
        if first in FORMER:
            sys.stderr.write(f"hint: '{first}' is now called '{FORMER[first]}'\n")
        verb = FORMER.get(first, first)
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
            sys.stderr.write(
                f"error: unknown verb '{verb}'{f', did you mean {near[0]!r}?' if near else ';'} `{prog} --help` lists "
                "all\n"
            )
            sys.exit(2)
        sys.argv = [f"{prog} {verb}", *sys.argv[2:]]  # the first is the name in usage lines
    common.run(function_of(verb))


def function_of(verb: str) -> Callable[..., None]:
    """The function of a verb, which takes the words behind it."""
    return _named(verb, "")


def parser_of(verb: str) -> common.Parser:
    """The parser of a verb's arguments."""
    parser = _named(verb, "_parser")()
    assert isinstance(parser, common.Parser)
    return parser


def overview(prog: str) -> str:
    """What `nova3d --help` prints: every verb with the first line of its docstring."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:{width}}{(inspect.getdoc(function_of(verb)) or '').splitlines()[0]}" for verb in VERBS]
    return "\n".join(
        [
            f"usage: {prog} VERB [options] [key=value ...]",
            "",
            "NOVA3D: one picture to 16 views, 16 normal maps and a textured mesh.",
            "",
            "verbs:",
            *lines,
            "",
            f"`{prog} VERB --help` lists the options and config keys of a verb, with defaults. --version prints the "
            "version.",
            "",
            "example:",
            f"  {prog} generate photo.png",
            "",
        ]
    )


def _named(verb: str, suffix: str) -> Any:
    return getattr(importlib.import_module(VERBS[verb]), verb.replace("-", "_") + suffix)
