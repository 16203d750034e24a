"""Typed configs: a dataclass schema, an optional YAML file and `key=value` overrides, merged by OmegaConf.

Precedence, lowest first: the schema's defaults, the file, the overrides. Nothing here knows of torch.

A schema is a dataclass. The string literal below an attribute documents that key:

    @dataclass
    class TrainConfig:
        steps: int = 30_000
        \"""Optimizer steps in all.\"""
        limit: Annotated[int | None, Sentinel(0)] = None
        \"""The most objects to read; null reads all.\"""

`fields` reads these texts for `--help` (`help_text`) and for the reference pages (`markdown`).

An optional key (`T | None`) is unset by `key=null`, by `key=` and by an empty string. `Sentinel` names a further value
that meant "unset" in files of earlier versions; it is read as null.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nova3d.errors import InputError, first_line

Schema = TypeVar("Schema")

REQUIRED = "required"
SECTION = "section"


class ConfigError(InputError):
    """An unknown key, a value of the wrong type or an unreadable file; the message names key and source."""


@dataclass(frozen=True)
class Sentinel:
    """Marks an optional key whose unset state had a value of its own before: `Annotated[int | None, Sentinel(0)]`."""

    value: int | float | str
    """The value that is read as null."""


@dataclass(frozen=True)
class Key:
    """One key of a schema, or one section."""

    name: str
    """The dotted name, as in an override. `NAME` stands for any key of a mapping: `arms.NAME.model`."""
    type: str
    """The type as the schema writes it, without `Annotated`; SECTION for a section."""
    default: str
    """The default as YAML writes it, or REQUIRED."""
    text: str
    """The attribute docstring on one line, "" where there is none; of a section else its class's first line."""
    marks: tuple[Any, ...] = ()
    """The further arguments of `Annotated`: Sentinel, or what another module defines."""


def load(schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Schema:
    """Merge a schema's defaults, a YAML file and overrides.

    Args:
        schema: a dataclass.
        path: a YAML file, None for the defaults alone.
        overrides: `key=value` texts, the key dotted and the value YAML.

    Returns:
        An instance of `schema`.

    Raises:
        ConfigError: naming the key, where it stands and the nearest valid key.
    """
    merged = OmegaConf.structured(schema)
    if path is not None:
        merged = _merge(merged, schema, _read_yaml(Path(path)), str(path))
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override '{override}' is not of the form key=value")
        try:
            value = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override '{override}': {first_line(error)}") from error
        merged = _merge(merged, schema, value, f"override '{override}'")
    return cast(Schema, _instance(merged, str(path or "config")))


def from_dict(schema: type[Schema], content: Mapping[str, Any], source: str) -> Schema:
    """An instance of a schema from a mapping that `to_dict` made, also in an earlier version.

    Args:
        schema: a dataclass.
        content: nested keys and values; keys that are not given take their defaults.
        source: where the mapping comes from, for messages.

    Returns:
        An instance of `schema`.

    Raises:
        ConfigError: as `load` does.
    """
    merged = _merge(OmegaConf.structured(schema), schema, OmegaConf.create(dict(content)), source)
    return cast(Schema, _instance(merged, source))


def to_dict(config: Any) -> dict[str, Any]:
    """A plain nested dict of a config instance, for records and checkpoints."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def save(config: Any, path: str | Path) -> None:
    """Write a config instance as YAML that `load` reads back."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def is_config(value: Any) -> bool:
    """Whether `value` is an instance of a config schema (a dataclass instance)."""
    return is_dataclass(value) and not isinstance(value, type)


def fields(schema: type) -> Iterator[Key]:
    """Every key of a schema, sections flattened, in the order of the source.

    Args:
        schema: a dataclass. Its source must be readable for the texts; without it they are "".

    Yields:
        One Key per attribute that is not a section. A section is an attribute whose type is a dataclass.
    """
    yield from (entry for entry in _entries(schema, "", None) if entry.type != SECTION)


def help_text(schema: type, width: int = 100) -> str:
    """The keys of a schema with types, defaults and texts, for a terminal of `width` columns."""
    lines = []
    for key in fields(schema):
        lines.append(f"  {key.name}={key.default} ({key.type})")
        lines += textwrap.wrap(key.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def markdown(schema: type) -> str:
    """The keys of a schema as Markdown tables, one per section, for the reference pages."""
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    tables: dict[str, list[str]] = {"": [*head]}
    for entry in _entries(schema, "", None):
        if entry.type == SECTION:
            tables[entry.name] = [f"### {entry.name}", "", *([entry.text, ""] if entry.text else []), *head]
            continue
        cells = (f"`{entry.name}`", f"`{entry.type}`", f"`{entry.default}`", entry.text)
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        tables[entry.name.rpartition(".")[0]].append(f"| {row} |")
    return "\n\n".join("\n".join(lines) for lines in tables.values() if lines[-1] != head[-1]) + "\n"


def _entries(schema: type, prefix: str, defaults: Any) -> Iterator[Key]:
    """Keys and, before the keys of each, sections of a schema; `defaults` is an instance with other defaults."""
    hints, texts = _hints(schema), _attribute_texts(schema)
    for field in dataclasses.fields(schema):
        name, text = prefix + field.name, texts.get(field.name, "")
        hint, marks = _plain(hints[field.name])
        default = getattr(defaults, field.name) if defaults is not None else _default(field)
        if is_dataclass(hint):
            yield Key(name, SECTION, "", text or _summary(hint))
            yield from _entries(cast(type, hint), f"{name}.", default)
            continue
        yield Key(name, _type_name(hint), _yaml(default), text, marks)
        item = get_args(hint)[-1] if get_origin(hint) is dict else None
        if is_dataclass(item):
            yield Key(f"{name}.NAME", SECTION, "", _summary(item))
            yield from _entries(cast(type, item), f"{name}.NAME.", None)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without Annotated, and the further arguments of Annotated."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    inner, *marks = get_args(hint)
    return inner, tuple(marks)


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _type_name(hint: Any) -> str:
    if hint is Any:
        return "any"
    if _is_optional(hint):
        return " | ".join([_type_name(part) for part in get_args(hint) if part is not type(None)] + ["null"])
    if arguments := get_args(hint):
        names = ["..." if part is ... else _type_name(part) for part in arguments]
        return f"{_type_name(get_origin(hint))}[{', '.join(names)}]"
    return getattr(hint, "__name__", str(hint))


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def _yaml(value: Any) -> str:
    """A default as an override writes it."""
    if value == MISSING:
        return REQUIRED
    return value if isinstance(value, str) and value else json.dumps(value, default=dataclasses.asdict)  # JSON is YAML


def _summary(cls: Any) -> str:
    """The first line of a class's docstring; "" for the signature that `dataclass` puts where there is none."""
    first = (inspect.getdoc(cls) or "").partition("\n")[0]
    return "" if first.startswith(f"{cls.__name__}(") else first


def _attribute_texts(schema: type) -> dict[str, str]:
    """Attribute -> the string literal below it, of a dataclass and its bases; a derived class beats its bases."""
    texts: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if is_dataclass(cls):
            texts |= _own_texts(cls)
    return texts


@functools.cache
def _own_texts(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except OSError:  # defined where no source file is, as in an interactive session
        return {}
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body
    texts = {}
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _instance(merged: DictConfig, source: str) -> Any:
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{source}: '{missing[0]}' has no value; give it as {missing[0]}=VALUE")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere
        raise ConfigError(f"{source}: {getattr(error, 'full_key', '')}: {first_line(error)}") from error


def _unset(hint: Any, given: Any) -> Any:
    """What was given for a key or section of type `hint`, with None where it means "unset"."""
    plain, marks = _plain(hint)
    if isinstance(given, dict) and is_dataclass(plain):
        hints = _hints(cast(type, plain))
        return {key: _unset(hints.get(key, Any), value) for key, value in given.items()}
    if isinstance(given, dict) and get_origin(plain) is dict:
        return {key: _unset(get_args(plain)[1], value) for key, value in given.items()}
    unset = ["", *(mark.value for mark in marks if isinstance(mark, Sentinel))]
    if _is_optional(plain) and not isinstance(given, bool) and given in unset:
        return None
    return given


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {first_line(error)}") from error
    except OSError as error:  # unreadable, or OmegaConf's way of refusing a bare number
        raise ConfigError(f"{path}: cannot be read as a config: {first_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: the top level of a config must be a mapping of keys to values")
    return content


def _merge(base: DictConfig, schema: type, extra: DictConfig, source: str) -> DictConfig:
    given = cast(dict[str, Any], OmegaConf.to_container(extra))
    _check_keys(base, given, source, "")
    try:
        return cast(DictConfig, OmegaConf.merge(base, OmegaConf.create(_unset(schema, given))))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {getattr(error, 'full_key', '') or 'value'}: {first_line(error)}") from error


def _check_keys(section: Any, given: Any, source: str, prefix: str) -> None:
    # Only dataclass sections have fixed keys; a field of type dict takes any.
    if not isinstance(section, DictConfig) or not is_dataclass(OmegaConf.get_type(section)):
        return
    valid = [str(key) for key in section]
    if not isinstance(given, dict):
        if given is None:
            return
        name = prefix.rstrip(".")
        raise ConfigError(f"{source}: '{name}' is a section with the keys {', '.join(valid)}, not a single value")
    for key, value in given.items():
        if key not in valid:
            nearest = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.0)
            hint = f"did you mean '{prefix}{nearest[0]}'?" if nearest else "this section takes no keys"
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {hint}")
        if not OmegaConf.is_missing(section, key) and not OmegaConf.is_interpolation(section, key):
            _check_keys(section[key], value, source, f"{prefix}{key}.")
