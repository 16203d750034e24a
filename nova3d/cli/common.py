"""What the verbs share: arguments, configs by name, logging, devices, and exit codes."""

import argparse
import difflib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeVar, cast

from nova3d import config
from nova3d.cli.progress import progress_bar as progress_bar
from nova3d.errors import InputError, system_reason
from nova3d.utils import lazy, resources, yaml_text
from nova3d.utils.allocator import keep_freed_memory
from nova3d.utils.hub import is_hub_id
from nova3d.utils.plugins import import_modules
from nova3d.utils.resources import find, locate

Schema = TypeVar("Schema")


class Parser(argparse.ArgumentParser):
    """An argument parser of a verb: `key=value` anywhere, every key of its config in --help, errors in one line."""

    schemas: dict[str, str]
    """Title in --help -> a config's dataclass as "module:Class". They are imported for --help and completion only."""
    stage: str
    """The folder of `configs/` in which --config is looked up."""
    flags: dict[str, str]
    """An option's name in the parsed arguments -> the config key that it stands for."""
    takes_files: bool
    """Whether arguments without "=" are files."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.schemas, self.stage, self.flags, self.takes_files = {}, "", {}, False

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line.

        `key=value` is the option --key where there is one and the config has no such key. What --help calls overrides
        ends in `overrides`, files in `files`, and in `flags` the values of options that stand for config keys. The
        modules of --import are imported.

        Args:
            argv: the words; None takes them from the command line.

        Returns:
            The values.

        Raises:
            SystemExit: with code 2 and one line on stderr for an unknown argument, with 0 after --help.
            InputError: for a module of --import that is not found.
        """
        words = [self._as_option(word) for word in (sys.argv[1:] if argv is None else argv)]
        options, unknown = self.parse_known_intermixed_args(words)
        rest = [*getattr(options, "overrides", []), *self._taken_too_much(options)]
        if not hasattr(options, "overrides"):
            unknown += rest
        if unknown:
            self.error(f"unknown argument '{unknown[0]}'{self._near(unknown[0])}")
        options.files = [word for word in rest if "=" not in word or Path(word).exists()] if self.takes_files else []
        options.overrides = [word for word in rest if word not in options.files]
        given = {key: getattr(options, name) for name, key in self.flags.items()}
        options.flags = {key: value for key, value in given.items() if value is not None}
        import_modules(getattr(options, "modules", []))
        return options

    def error(self, message: str) -> NoReturn:
        """End with one line on stderr and exit code 2.

        Args:
            message: what is wrong.
        """
        sys.stderr.write(f"error: {message}; {self.prog} --help lists what there is\n")
        sys.exit(2)

    def format_help(self) -> str:
        """The help, with the keys of the configs before the example."""
        body, example, rest = super().format_help().rpartition("\nexample:\n")
        for title, schema in self.schemas.items():
            body += f"\n{title}\n{config.help_text(load_schema(schema))}\n"
        return f"{body}{example}{rest}"

    def option_strings(self) -> dict[str, Sequence[str]]:
        """Every option -> the values that it may have; empty where it may have others, or none."""
        return {
            text: [str(choice) for choice in action.choices or ()]
            for action in self._actions
            for text in action.option_strings
        }

    def options_with_values(self) -> dict[str, bool]:
        """Every option -> whether a value follows it."""
        return {text: action.nargs != 0 for action in self._actions for text in action.option_strings}

    def config_keys(self) -> list[str]:
        """The keys of the verb's configs, each once; those below a name that a user chooses are left out."""
        return list(self.key_choices())

    def key_choices(self) -> dict[str, tuple[str, ...]]:
        """Every key of `config_keys` -> the values that it may have; empty where they are not a fixed set."""
        every = (key for schema in self.schemas.values() for key in config.fields(load_schema(schema)))
        return {key.name: key.choices for key in every if ".NAME" not in key.name}

    def _as_option(self, word: str) -> str:
        key, equals, _ = word.partition("=")
        option = f"--{key.replace('_', '-')}"
        known = equals and key and option in self._option_string_actions and not Path(word).exists()
        return f"--{key.replace('_', '-')}{word[len(key) :]}" if known and key not in self.config_keys() else word

    def _taken_too_much(self, options: argparse.Namespace) -> list[str]:
        """Take the overrides out of options of several files, among which argparse counts them."""
        overrides: list[str] = []
        for action in self._actions:
            if action.option_strings and action.nargs == "+" and "=" not in str(action.metavar):
                given = getattr(options, action.dest) or []
                found = [str(word) for word in given if "=" in str(word) and not Path(word).exists()]
                setattr(options, action.dest, [word for word in given if str(word) not in found])
                overrides += found
        return overrides

    def _near(self, word: str) -> str:
        near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
        return f"; did you mean '{near[0]}'?" if near else ""


def load_schema(name: str) -> type:
    """The dataclass that "module:Class" names."""
    return cast(type, lazy.resolve(name))


def parser(description: str, example: str) -> Parser:
    """An argument parser with `--import`, whose --help ends with a real example."""
    arguments = Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="import a module that adds an alignment arm, a layout, a metric or a source; may be repeated",
    )
    return arguments


def add_config(arguments: Parser, default: str | None, schema: str | None = None, stage: str = "") -> None:
    """Add `--config`, `key=value` overrides, and the keys of the config to --help.

    Args:
        arguments: the verb's parser.
        default: the config that is read where none is given, None where the verb chooses.
        schema: the config's dataclass as "module:Class".
        stage: the folder of `configs/` in which a bare name is looked up; --help lists its names.
    """
    shown = f" (default: {default})" if default else ""
    known = resources.names("config", stage) if stage else []
    what = f"one of {', '.join(known)}" if known else "the name of a shipped config"
    arguments.add_argument("--config", default=default, help=f"YAML file, or {what}{shown}")
    arguments.stage = stage
    add_overrides(arguments, schema)


def add_overrides(arguments: Parser, schema: str | None = None) -> None:
    """Add `key=value` overrides, `--print-config`, and the keys of `schema` ("module:Class") to --help."""
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="override any config key")
    arguments.add_argument("--print-config", action="store_true", help="print the merged config as YAML and stop")
    if schema:
        arguments.schemas["config keys, with the defaults of what --config leaves out:"] = schema


def add_files(arguments: Parser, what: str) -> None:
    """Take arguments without "=" as files, which `parse` leaves in `files`; `what` names one in --help."""
    arguments.takes_files = True
    overrides = next(action for action in arguments._actions if action.dest == "overrides")
    overrides.metavar, overrides.help = f"{what} | key=value", f"{what.lower()}, or an override of any config key"


def add_flag(arguments: Parser, option: str, key: str, text: str, **settings: Any) -> None:
    """Add an option that stands for a config key and takes precedence over `key=value`.

    Args:
        arguments: the verb's parser.
        option: as "--out".
        key: the dotted key.
        text: for --help.
        **settings: more of `argparse.ArgumentParser.add_argument`.
    """
    action = arguments.add_argument(option, help=f"{text} (same as {key}=)", **settings)
    arguments.flags[action.dest] = key


def add_device(arguments: argparse.ArgumentParser) -> None:
    """Add `--device`, for `pick_device`."""
    arguments.add_argument("--device", help="cpu, cuda, mps ... (default: a GPU where there is one)")


def add_workers(arguments: argparse.ArgumentParser, text: str) -> None:
    """Add `--workers`, at least 1; `text` is for --help."""
    arguments.add_argument("--workers", type=_count, default=1, metavar="N", help=f"{text} (default: 1)")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def load_config(
    schema: type[Schema], stage: str, options: argparse.Namespace, flags: Mapping[str, Any] | None = None
) -> Schema:
    """The config of a command line, with the paths of what is shipped.

    Args:
        schema: a dataclass.
        stage: the folder of `configs/` in which a bare name is looked up.
        options: what `Parser.parse` returns.
        flags: dotted key -> value, for more options that stand for a config key; None values were not given. They
            take precedence over overrides.

    Returns:
        An instance of `schema`. With --print-config it is printed, and the program ends.

    Raises:
        InputError: for an unknown config, key or value.
    """
    path = None
    if options.config is not None:
        path = find(options.config, "protocol") if stage == "eval" else find(options.config, "config", stage)
    given = getattr(options, "flags", {}) | dict(flags or {})
    values = {key: value for key, value in given.items() if value is not None}
    values |= config.shipped_paths(config.load(schema, path, options.overrides, values))
    settings = config.load(schema, path, options.overrides, values)
    if getattr(options, "print_config", False):
        sys.stdout.write(yaml_text.dump(config.to_dict(settings)))
        sys.exit(0)
    return settings


def check_exists(what: str, *paths: str | Path | None, model: bool = False) -> None:
    """Refuse paths that do not exist, before the packages that would read them are imported.

    Args:
        what: the option, key or noun that the message begins with.
        *paths: those that are None or "" are skipped.
        model: whether the name of a shipped model and a hub id are accepted too.

    Raises:
        InputError: for the first path that does not exist.
    """
    for path in paths:
        if not path or Path(path).exists() or (model and (locate(path, "model") or is_hub_id(path))):
            continue
        raise InputError(f"{what} '{path}' does not exist")


def names(text: str | None) -> list[str] | None:
    """The names in an option's text A,B; None stays None."""
    return None if text is None else [name for name in text.split(",") if name]


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Logs to what stderr is at the moment: a bar that is drawn there puts log lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Where it writes."""
        return sys.stderr


def run(main: Callable[[], None]) -> None:
    """Run a verb, and end in one line on stderr for every error that is not a bug.

    Errors of input and of the system (a full disk, a file that cannot be read) end in exit code 2, Ctrl-C in 130,
    SIGTERM in 143. A closed pipe of the output ends it without a message, with 141.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)  # `with` blocks release locks, files and processes
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    keep_freed_memory()
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of diffusers, transformers and others beside ours
    log = _StderrHandler()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[log])
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
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))  # Windows does not have it
    except OSError as error:
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        _silence_stdout()
        where = f": '{error.filename}'" if error.filename is not None else ""
        sys.stderr.write(f"error: {system_reason(error)}{where}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _terminate(number: int, _: FrameType | None) -> None:
    sys.stderr.write("terminated\n")
    sys.exit(128 + number)


def _silence_stdout() -> None:
    """Discard what is left in the buffer of stdout, so that the interpreter's last flush does not fail."""
    with suppress(io.UnsupportedOperation):  # no file of the system, as under pytest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def closing(made: Mapping[str, Path | str], quality: str = "", look: str = "") -> None:
    """Print how a run ends: what was made, how good it is, what to look at next.

    Args:
        made: what it is -> its path, in the order of printing.
        quality: one line of figures, "" where there are none.
        look: what to do next, "" where nothing follows.
    """
    for name, path in made.items():
        print(f"{name}: {Path(path).resolve()}")
    if quality:
        print(f"quality: {quality}")
    if look:
        print(f"next: {look}")


def pick_device(asked: str | None) -> str:
    """The requested device, else CUDA where there is one, else MPS, else the CPU. It is logged.

    Args:
        asked: "cpu", "cuda", "cuda:1", "mps" ...; None leaves the choice to this function.

    Returns:
        The device's name.

    Raises:
        InputError: for a device that torch does not support or does not find here.
    """
    import torch

    if asked and asked.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device '{asked}' was asked for, but torch finds no CUDA GPU; use --device cpu")
    if asked and not _usable(asked):
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"device '{asked}' is not available in torch here; use --device {' or '.join(there)}")
    device = asked or next((name for name in ("cuda", "mps") if getattr(torch, name).is_available()), "cpu")
    untried = " (this project has not been run on it; --device cpu always works)" if device == "mps" else ""
    logging.getLogger(__name__).info("device: %s%s", device, untried)
    return device


def _usable(name: str) -> bool:
    """Whether torch finds a device. Nothing is put on a GPU: each process of a run would take memory of the first."""
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda":
            return device.index is None or device.index < torch.cuda.device_count()
        return torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        return False
