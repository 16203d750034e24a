"""The command line: one typed function a verb, in one module a family.

`scripts/VERB.py` and `python -m nova3d VERB` run the same function with the same arguments.
"""

import importlib
import sys
from pathlib import Path

from nova3d.cli import common

# Modules load when their verb runs: most of them import torch.
VERBS = {
    "generate": "nova3d.cli.generate",
    "sample": "nova3d.cli.generate",
    "reconstruct": "nova3d.cli.generate",
    "train": "nova3d.cli.train",
    "train_autoencoder": "nova3d.cli.train",
    "cache_latents": "nova3d.cli.train",
    "render": "nova3d.cli.render",
    "evaluate": "nova3d.cli.evaluate",
    "reproduce": "nova3d.cli.studies",
    "ablate": "nova3d.cli.studies",
    "export": "nova3d.cli.models",
    "inspect_weights": "nova3d.cli.models",
    "calibrate": "nova3d.cli.models",
    "doctor": "nova3d.cli.doctor",
}


def main(verb: str | None = None) -> None:
    """Run a verb with the arguments of the command line; see `nova3d.cli.common.run` for how it ends.

    Args:
        verb: a key of VERBS; None takes it from the command line's first argument.
    """
    if verb is None:
        parser = common.parser("NOVA3D: one picture to 16 views and a textured mesh.", "python -m nova3d sample --help")
        parser.prog = "python -m nova3d" if Path(sys.argv[0]).name == "__main__.py" else "nova3d"
        parser.add_argument("verb", choices=VERBS, metavar="VERB", help=", ".join(VERBS))
        verb = str(parser.parse_args(sys.argv[1:2]).verb)
        sys.argv = [f"{parser.prog} {verb}", *sys.argv[2:]]  # the first is the name in usage lines
    common.run(getattr(importlib.import_module(VERBS[verb]), verb))
