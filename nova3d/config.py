"""Typed configs: a dataclass schema, an optional YAML file and `key=value` overrides, merged key by key.

Precedence, lowest first: the schema's defaults, the file, the overrides. This module does not import torch.

A schema is a dataclass. The string literal below an attribute documents that key:

    @dataclass
    class TrainConfig:
        steps: int = 30_000
        \"""Optimizer steps in all.\"""
        limit: Annotated[int | None, Sentinel(0)] = None
        \"""The most objects to read; null reads all.\"""

`fields` reads these texts for `--help` (`help_text`) and for the reference pages (`markdown`).

The type of a key decides how its text is read. A string is its text as it stands: `010`, `yes`, `2024_01_15` and
`run #2` mean themselves. An override may put the whole of it in quotes. Numbers and switches are read from their text,
lists and mappings as YAML. Nothing is interpolated: `${...}` is refused in a file unless it is quoted.

`Annotated[int, Range(1, 4096)]` gives the values that a number may have, `Literal["euler", "heun"]` the texts of a key
with a fixed set of them.

An optional key (`T | None`) is set to None by `key=null`, by `key=` and by an empty string. `Sentinel` names a further
value that meant "unset" in files of earlier versions; it is read as null.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import math
import operator
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from nova3d.errors import InputError
from nova3d.utils import yaml_text
from nova3d.utils.files import writing
from nova3d.utils.resources import Shipped, locate

Schema = TypeVar("Schema")

MISSING: Any = "???"
"""The default of a key that must be given."""
REQUIRED = "required"
SECTION = "section"
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class ConfigError(InputError):
    """An unknown key, a value of the wrong type or an unreadable file; the message names key and source."""


@dataclass(frozen=True)
class Sentinel:
    """Marks an optional key whose unset state had a value of its own before: `Annotated[int | None, Sentinel(0)]`."""

    value: int | float | str
    """The value that is read as null."""


@dataclass(frozen=True)
class Range:
    """Marks a number, or an optional one, with the values that it may have: `Annotated[int, Range(1, 4096)]`."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"at least {self.least:.10g}"
        return f"from {self.least:.10g} to {self.most:.10g}"


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
    """The attribute docstring on one line, or "". A section without one has the first line of its class's docstring."""
    marks: tuple[Any, ...] = ()
    """The further arguments of `Annotated`: Sentinel, Range, or what another module defines."""
    choices: tuple[str, ...] = ()
    """The texts that an override of the key may have; empty where they are not a fixed set."""


def load(
    schema: type[Schema],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Schema:
    """Merge a schema's defaults, a YAML file and overrides.

    Args:
        schema: a dataclass.
        path: a YAML file, None for the defaults alone.
        overrides: `key=value` texts, the key dotted and the value as the key's type reads it.
        values: dotted key -> a Python value. It takes precedence over the overrides.

    Returns:
        An instance of `schema`.

    Raises:
        ConfigError: naming the key, where it stands and a valid key that is near.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        content = _parse(yaml_text.read_mapping, Path(path))
        _merge(merged, schema, schema, content, str(path), "")
    _merge_overrides(merged, schema, overrides)
    for key, value in (values or {}).items():
        _merge(merged, schema, schema, _nest(key, value), f"'{key}'", "")
    return cast(Schema, _instance(schema, merged, str(path or "config"), ""))


def changed(config: Schema, overrides: Sequence[str]) -> Schema:
    """A copy of a config with some keys changed.

    Args:
        config: an instance of a schema; it stays as it is.
        overrides: `key=value` texts, as `load` takes them.

    Returns:
        A new instance.

    Raises:
        ConfigError: as `load` does.
    """
    schema, merged = type(config), cast(dict[str, Any], {})
    _merge(merged, schema, schema, to_dict(config), "config", "")
    _merge_overrides(merged, schema, overrides)
    return cast(Schema, _instance(schema, merged, "config", ""))


def shipped_paths(config: Any) -> dict[str, str]:
    """The paths of what a config names and this project ships (see `nova3d.utils.resources.Shipped`).

    Args:
        config: an instance of a config.

    Returns:
        Dotted key -> path, for `load(values=...)`. Keys whose value is not shipped are left out.
    """
    found = {}
    for key in fields(type(config)):
        for mark in key.marks:
            value = operator.attrgetter(key.name)(config) if isinstance(mark, Shipped) else None
            if isinstance(value, str) and (path := locate(value, mark.kind, mark.stage)):
                found[key.name] = str(path)
    return found


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
    merged: dict[str, Any] = {}
    _merge(merged, schema, schema, content, source, "")
    return cast(Schema, _instance(schema, merged, source, ""))


def validate(config: Any) -> None:
    """Check an instance that was made in Python as `load` checks a file: types, ranges and choices.

    Args:
        config: an instance of a schema.

    Raises:
        ConfigError: naming the key.
    """
    from_dict(type(config), to_dict(config), "config")


def to_dict(config: Any) -> dict[str, Any]:
    """A plain nested dict of a config instance, for records and checkpoints; a Path is its text."""
    return cast(dict[str, Any], _to_plain(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one whose keys are dotted.

    Args:
        values: the mapping.
        prefix: what every key begins with.

    Returns:
        Dotted key -> value, in the order of `values`; an empty mapping leaves nothing.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def save(config: Any, path: str | Path) -> None:
    """Write a config instance as YAML that `load` reads back; raises InputError where it cannot be written."""
    with writing(f"'{path}'"):
        yaml_text.write(path, to_dict(config))


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
        limits = [f"{str(mark).capitalize()}." for mark in marks if isinstance(mark, Range)]
        yield Key(name, _type_name(hint), _yaml(default), " ".join([text, *limits]).strip(), marks, _choices(hint))
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


def _choices(hint: Any) -> tuple[str, ...]:
    """The texts of a Literal or a switch, and null where it is optional."""
    inner = _inner(hint)
    texts = get_args(inner) if get_origin(inner) is Literal else ("true", "false") if inner is bool else ()
    return (*texts, "null") if texts and _is_optional(hint) else texts


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _type_name(hint: Any) -> str:
    if hint is Any:
        return "any"
    if _is_optional(hint):
        return " | ".join([_type_name(part) for part in get_args(hint) if part is not type(None)] + ["null"])
    if get_origin(hint) is Literal:
        return " | ".join(get_args(hint))
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
    """Attribute -> the string literal below it, of a dataclass and its bases. A derived class overrides its bases."""
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


def _to_plain(value: Any) -> Any:
    if is_config(value):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _nest(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return cast(dict[str, Any], value)


def _merge_overrides(into: dict[str, Any], schema: type, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override '{override}' is not of the form key=value")
        source = f"override '{override}'"
        _merge(into, schema, schema, _nest(key, _override_value(schema, key, text, source)), source, "")


def _override_value(schema: type, key: str, text: str, source: str) -> Any:
    """The text of an override as the type of its key has it: a string as it stands, else YAML."""
    hint: Any = schema
    for name in key.split("."):
        inner = _inner(_plain(hint)[0])
        if is_dataclass(inner):
            hint = _hints(cast(type, inner)).get(name, str)  # an unknown key is named when it is merged
        else:
            hint = get_args(inner)[1] if get_origin(inner) is dict else str
    plain = _plain(hint)[0]
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if quoted or not (_inner(plain) is str or get_origin(_inner(plain)) is Literal):
        return _parse(yaml_text.parse, text, source)
    return None if _is_optional(plain) and text in yaml_text.NULLS else text


def _parse(parse: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except InputError as error:
        raise ConfigError(str(error)) from error


def _merge(into: dict[str, Any], root: type, section: Any, given: Any, source: str, prefix: str) -> None:
    """Merge the given values of a section into `into`. Values are read by type; sections become nested dicts."""
    hints = _hints(section)
    if not isinstance(given, Mapping):
        name = prefix.rstrip(".")
        raise ConfigError(f"{source}: '{name}' is a section with the keys {', '.join(hints)}, not a single value")
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(f"{source}: unknown key '{name[:80]}'; {_near(root, name, prefix, list(hints), value)}")
        hint = _plain(hints[key])[0]
        if is_dataclass(hint):
            _merge(into.setdefault(key, {}), root, hint, value, source, f"{name}.")
        elif get_origin(hint) is dict and is_dataclass(item := _plain(get_args(hint)[1])[0]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {name}: {_shown(value)} is not a mapping of names")
            entries = into.setdefault(key, {})
            for entry, content in value.items():
                _merge(entries.setdefault(str(entry), {}), root, item, content, source, f"{name}.{entry}.")
        elif get_origin(hint) is dict and isinstance(value, Mapping):
            into.setdefault(key, {}).update(_value(hints[key], value, source, name))
        else:
            into[key] = _value(hints[key], value, source, name)


def _near(root: type, name: str, prefix: str, valid: list[str], value: Any) -> str:
    """What to write in place of an unknown key with a value, where something is near."""
    last = name.rpartition(".")[2]
    every = [key.name for key in fields(root)]
    innermost = last
    while isinstance(value, Mapping) and len(value) == 1:  # `sample.seed` where the section is the whole schema
        ((innermost, value),) = value.items()
    if innermost != last and (named := [key for key in every if key.rpartition(".")[2] == innermost]):
        return f"did you mean '{named[0]}'?"
    if found := difflib.get_close_matches(last, valid, n=1, cutoff=0.6):
        return f"did you mean '{prefix}{found[0]}'?"
    elsewhere = [key for key in every if key.rpartition(".")[2] == last] or difflib.get_close_matches(
        name, every, 1, 0.7
    )
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    more = f" and {len(valid) - 12} more" if len(valid) > 12 else ""
    return f"the keys here are {', '.join(valid[:12])}{more}" if valid else "this section takes no keys"


def _instance(schema: type, given: Mapping[str, Any], source: str, prefix: str, base: Any = None) -> Any:
    """An instance of a schema with the values of `given`; the others are those of `base`, or the schema's defaults."""
    hints, arguments = _hints(schema), {}
    for field in dataclasses.fields(schema):
        hint, name = _plain(hints[field.name])[0], f"{prefix}{field.name}"
        default = _default(field) if base is None else getattr(base, field.name)
        value = given.get(field.name, default)
        if is_dataclass(hint):
            value = _instance(cast(type, hint), given.get(field.name, {}), source, f"{name}.", default)
        elif get_origin(hint) is dict and field.name in given:
            item: Any = _plain(get_args(hint)[1])[0]
            value = dict(default) if isinstance(default, Mapping) else {}
            for key, content in given[field.name].items():
                entry = f"{name}.{key}."
                section = cast(type, item) if is_dataclass(item) else None
                value[key] = _instance(section, content, source, entry, value.get(key)) if section else content
        if isinstance(value, str) and value == MISSING:
            raise ConfigError(f"{source}: '{name}' has no value; give it as {name}=VALUE")
        arguments[field.name] = value
    return schema(**arguments)


def _inner(hint: Any) -> Any:
    """The type of an optional key without None; any other type as it is."""
    return next(part for part in get_args(hint) if part is not type(None)) if _is_optional(hint) else hint


def _value(hint: Any, given: Any, source: str, name: str) -> Any:
    """What was given for a key, as its type has it. Raises ConfigError that names the key."""
    value = _typed(hint, given, source, name)
    for limits in (mark for mark in _plain(hint)[1] if isinstance(mark, Range)):
        if value is not None and not limits.least <= value <= limits.most:
            raise ConfigError(f"{source}: {name}: {_shown(value)} is not {limits}")
    return value


def _typed(hint: Any, given: Any, source: str, name: str) -> Any:
    """What was given for a key, as its type has it, whatever its value."""
    plain, marks = _plain(hint)
    if _is_optional(plain):
        sentinels = [mark.value for mark in marks if isinstance(mark, Sentinel)]
        typed = yaml_text.typed(given) if isinstance(given, yaml_text.Plain) else given
        if typed is None or given == "":
            return None
        if not isinstance(typed, bool | list | dict) and typed in sentinels:
            return None
        plain = _inner(plain)
    if get_origin(plain) is Literal:
        if isinstance(given, str) and given in get_args(plain):
            return str(given)
        raise ConfigError(f"{source}: {name}: {_shown(given)} is not one of {', '.join(get_args(plain))}")
    if isinstance(given, str) and plain in (int, float, bool, str):
        return _scalar(plain, given, source, name)
    if plain is Any:
        return yaml_text.typed_all(given)
    if get_origin(plain) in (list, tuple) and isinstance(given, list | tuple):
        items = get_args(plain)
        kinds = items if get_origin(plain) is tuple and ... not in items else (items[0],) * len(given)
        if len(kinds) == len(given):
            pairs = enumerate(zip(kinds, given, strict=True))
            made = [_value(kind, each, source, f"{name}[{i}]") for i, (kind, each) in pairs]
            return tuple(made) if get_origin(plain) is tuple else made
    elif get_origin(plain) is dict and isinstance(given, Mapping):
        return {str(key): _value(get_args(plain)[1], each, source, f"{name}.{key}") for key, each in given.items()}
    elif isinstance(given, int | float) and (isinstance(given, bool) == (plain is bool)):
        if plain is float or isinstance(given, plain):
            return plain(given)
    elif plain is str and isinstance(given, str):
        return str(given)
    raise ConfigError(f"{source}: {name}: {_shown(given)} is not of the type {_type_name(plain)}")


def _scalar(plain: Any, text: str, source: str, name: str) -> Any:
    """The text of a string, a number or a switch. Raises ConfigError."""
    if plain is str:
        if isinstance(text, yaml_text.Plain) and (text in yaml_text.NULLS or "${" in text):
            what = "is not a text" if text in yaml_text.NULLS else "would not be interpolated"
            raise ConfigError(f"{source}: {name}: '{text[:60]}' {what}; quote it to mean the text itself")
        return str(text)
    word = text.strip()
    try:
        if plain is bool and word.lower() in _SWITCHES:
            return _SWITCHES[word.lower()]
        if plain is int:
            return int(word)
        if plain is float:
            return float(word.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # falls through to the message
        pass
    raise ConfigError(f"{source}: {name}: {_shown(text)} is not of the type {_type_name(plain)}")


def _shown(value: Any) -> str:
    """A value in a message; what holds others is only named, since aliases of YAML may make it very long."""
    if isinstance(value, str | int | float) or value is None:
        return f"'{str(value)[:60]}'"
    return f"a {type(value).__name__}"
