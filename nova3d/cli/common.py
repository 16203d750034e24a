"""What the verbs share: arguments, configs by name, logging, the progress bar, and exit codes."""

import argparse
import importlib
import io
import logging
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

from nova3d import config
from nova3d.errors import InputError, first_line
from nova3d.utils.progress import Progress
from nova3d.utils.resources import Shipped, find, locate

Schema = TypeVar("Schema")


class Parser(argparse.ArgumentParser):
    """An argument parser whose --help lists every key of the verb's config."""

    schema: str | None = None
    """The config's dataclass as "module:Class". Only --help imports it, since most of these modules import torch."""

    def format_help(self) -> str:
        """The help, with the config's keys before the example."""
        text = super().format_help()
        if self.schema is None:
            return text
        module, _, name = self.schema.partition(":")
        keys = config.help_text(getattr(importlib.import_module(module), name))
        body, example, rest = text.rpartition("\nexample:\n")
        title = "config keys, with the defaults of what --config leaves out:"
        return f"{body}\n{title}\n{keys}\n{example}{rest}"


def parser(description: str, example: str) -> Parser:
    """An argument parser whose --help ends with a real example."""
    return Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(arguments: Parser, default: str | None, schema: str | None = None) -> None:
    """Add `--config`, `key=value` overrides, and the keys of the config to --help.

    Args:
        arguments: the verb's parser.
        default: the config that is read where none is given, None where the verb chooses.
        schema: the config's dataclass as "module:Class".
    """
    shown = f" (default: {default})" if default else ""
    arguments.add_argument("--config", default=default, help=f"YAML file, or the name of a shipped config{shown}")
    add_overrides(arguments, schema)


def add_overrides(arguments: Parser, schema: str | None = None) -> None:
    """Add `key=value` overrides, and the keys of `schema` ("module:Class") to --help."""
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any config key")
    arguments.schema = schema


def add_device(arguments: argparse.ArgumentParser) -> None:
    """Add `--device`, for `pick_device`."""
    arguments.add_argument("--device", default="", help="cpu, cuda, ... (default: cuda where there is one)")


def load_config(
    schema: type[Schema], stage: str, options: argparse.Namespace, flags: Mapping[str, Any] | None = None
) -> Schema:
    """The config that the command line asks for, with the paths of what is shipped (see `Shipped`).

    Args:
        schema: a dataclass.
        stage: the folder of `configs/` in which a bare name is looked up.
        options: what `add_config` added: `config` and `overrides`.
        flags: dotted key -> value of options that stand for a config key; None values were not given. They beat
            overrides.

    Returns:
        An instance of `schema`.

    Raises:
        InputError: for an unknown config, key or value.
    """
    path = find(options.config, "config", stage)
    values = {key: value for key, value in (flags or {}).items() if value is not None}
    settings = config.load(schema, path, options.overrides, values)
    marked = [(key.name, mark) for key in config.fields(schema) for mark in key.marks if isinstance(mark, Shipped)]
    for name, mark in marked:
        value = operator.attrgetter(name)(settings)
        if isinstance(value, str) and (found := locate(value, mark.kind, mark.stage)):
            values[name] = str(found)
    return config.load(schema, path, options.overrides, values)


def names(text: str | None) -> list[str] | None:
    """The names in an option's text A,B; None stays None."""
    return None if text is None else [name for name in text.split(",") if name]


def run(main: Callable[[], None]) -> None:
    """Run a verb, and end in one line on stderr for all that is no bug.

    Errors of input and of the system (a full disk, a file that cannot be read) end in exit code 2, Ctrl-C in 130,
    SIGTERM in 143. A reader of the output that leaves early ends it in silence, with 141.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)  # what holds locks, files and processes lets go of them
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "PIL", "trimesh"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        _silence_stdout()
        where = f": '{error.filename}'" if error.filename is not None else ""
        sys.stderr.write(f"error: {error.strerror or first_line(error)}{where}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _terminate(number: int, _: FrameType | None) -> None:
    sys.stderr.write("terminated\n")
    sys.exit(128 + number)


def _silence_stdout() -> None:
    """Have what is left in the buffer of stdout go nowhere, so that the interpreter's last flush does not fail."""
    with suppress(io.UnsupportedOperation):  # no file of the system, as under pytest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A tqdm bar behind the library's progress callback."""
    bar = tqdm(desc=description, file=sys.stderr, dynamic_ncols=True)

    def update(done: int, total: int, stage: str) -> None:
        bar.total = total
        bar.set_postfix_str(stage, refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        bar.close()


def pick_device(asked: str) -> str:
    """The device asked for, else CUDA where there is one, else the CPU; logged once.

    Args:
        asked: "cpu", "cuda", "cuda:1" ..., or "" for no wish.

    Returns:
        The device's name.

    Raises:
        InputError: for a device that torch does not know or does not find here.
    """
    import torch

    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device '{asked}' was asked for, but torch finds no CUDA GPU; use --device cpu")
    try:
        usable = not asked or torch.empty(0, device=asked).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        usable = False
    if not usable:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"device '{asked}' is none that torch has here; use --device {' or '.join(there)}")
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger(__name__).info("device: %s", device)
    return device
