"""What every script shares: arguments, logging, and the promise that bad input ends in one line and exit code 2."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from nova3d.errors import InputError


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose --help ends with a real example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(arguments: argparse.ArgumentParser, default: str) -> None:
    """Add `--config FILE` and trailing `key=value` overrides."""
    arguments.add_argument("--config", default=default, help="YAML config (default: %(default)s)")
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any config key")


def add_device(arguments: argparse.ArgumentParser) -> None:
    """Add `--device`, for `pick_device`."""
    arguments.add_argument("--device", default="", help="cpu, cuda, ... (default: cuda where there is one)")


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: errors of input end in one line on stderr and exit code 2, Ctrl-C in 130."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "PIL", "trimesh"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int, str], None]]:
    """A tqdm bar behind the library's progress callback `(done, total, message)`."""
    bar = tqdm(desc=description, file=sys.stderr, dynamic_ncols=True)

    def update(done: int, total: int, message: str) -> None:
        bar.total = total
        bar.set_postfix_str(message, refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        bar.close()


def pick_device(asked: str) -> str:
    """The device asked for, else CUDA where there is one, else the CPU; logged once. Raises InputError for CUDA
    without a GPU."""
    import torch

    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device '{asked}' was asked for, but torch finds no CUDA GPU; use --device cpu")
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger(__name__).info("device: %s", device)
    return device
