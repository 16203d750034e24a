"""YAML in and out with every scalar as text, so that who reads a value decides what its text means."""

from pathlib import Path
from typing import Any

import yaml

from nova3d.errors import InputError, first_line, system_reason
from nova3d.utils.files import write_text

NULLS = ("", "~", "null", "Null", "NULL")
"""The texts that mean null where they stand without quotes."""
_FILE_BYTES = 4 << 20  # the most that `read_mapping` reads


class Plain(str):
    """A scalar that stands in YAML without quotes, or on the command line."""

    __slots__ = ()


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; {} for an empty one.

    Args:
        path: the file.

    Returns:
        Nested dicts and lists of texts. Those without quotes are of the class Plain.

    Raises:
        InputError: where it is missing, too large, not UTF-8, not YAML or no mapping.
    """
    if not path.is_file():
        raise InputError(f"config file '{path}' does not exist")
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise InputError(f"{path}: it has {path.stat().st_size} bytes, more than a config can have")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a config: {system_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from error
    content = parse(text, str(path))
    if isinstance(content, str):
        raise InputError(f"{path}: cannot be read as a config: it holds the one value '{content[:40]}'")
    if not isinstance(content, dict | None):
        raise InputError(f"{path}: the top level of a config must be a mapping of keys to values")
    return content or {}


def parse(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: the YAML.
        source: where it stands, with which messages begin.

    Returns:
        As `read_mapping`, of any shape; None for nothing.

    Raises:
        InputError: where it is not YAML, a key stands twice or is not text, or a list or mapping is repeated by an
            alias (a few hundred bytes of those can stand for gigabytes).
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _value(root, set())
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}: not valid YAML: {problem or first_line(error, 100)}{where}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML: {first_line(error, 100)}") from error


def dump(value: Any) -> str:
    """Nested dicts, lists and scalars as YAML that `parse` reads back."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def write(path: str | Path, value: Any) -> Path:
    """Write nested dicts, lists and scalars as YAML that `read_mapping` reads back; returns the path."""
    return write_text(path, dump(value))


def typed(text: Plain) -> bool | int | float | str | None:
    """A scalar without quotes as YAML's core schema reads it."""
    if text in NULLS:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return str(text)


def typed_all(value: Any) -> Any:
    """Nested dicts and lists with `typed` scalars."""
    match value:
        case Plain():
            return typed(value)
        case list():
            return [typed_all(entry) for entry in value]
        case dict():
            return {key: typed_all(entry) for key, entry in value.items()}
    return value


def _value(node: yaml.Node, seen: set[int]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return Plain(node.value) if node.style is None else str(node.value)
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise ValueError(f"the list or mapping of line {line} is repeated by an alias: write it out")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, seen) for item in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in found:
            what = f"'{key.value[:40]}' stands twice" if isinstance(key, yaml.ScalarNode) else "is not text"
            raise ValueError(f"the key in line {key.start_mark.line + 1} {what}")
        found[key.value] = _value(value, seen)
    return found


class _Dumper(yaml.SafeDumper):
    """Quotes what would be refused or read otherwise without quotes."""


def _dump_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = "${" in text or text in NULLS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _dump_text)
