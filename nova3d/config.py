"""Typed configs: a dataclass schema, an optional YAML file and `key=value` overrides, merged by OmegaConf.

Precedence, lowest first: the schema's defaults, the file, the overrides. Nothing here knows of torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nova3d.errors import InputError

Schema = TypeVar("Schema")


class ConfigError(InputError):
    """An unknown key, a value of the wrong type or an unreadable file; the message names key and source."""


def load(schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Schema:
    """Merge `schema`'s defaults, the YAML at `path` and dotlist `overrides` into an instance of `schema`.

    Raises ConfigError naming the key, where it stands and the nearest valid key.
    """
    merged = OmegaConf.structured(schema)
    if path is not None:
        merged = _merge(merged, _read_yaml(Path(path)), str(path))
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override '{override}' is not of the form key=value")
        try:
            value = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override '{override}': {_first_line(error)}") from error
        merged = _merge(merged, value, f"override '{override}'")
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{path or 'config'}: '{missing[0]}' has no value; give it as {missing[0]}=VALUE")
        return cast(Schema, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere
        raise ConfigError(f"{path or 'config'}: {getattr(error, 'full_key', '')}: {_first_line(error)}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """A plain nested dict of a config instance, for records and checkpoints."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def save(config: Any, path: str | Path) -> None:
    """Write a config instance as YAML that `load` reads back."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_first_line(error)}") from error
    except OSError as error:  # unreadable, or OmegaConf's way of refusing a bare number
        raise ConfigError(f"{path}: cannot be read as a config: {_first_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: the top level of a config must be a mapping of keys to values")
    return content


def _merge(base: DictConfig, extra: DictConfig, source: str) -> DictConfig:
    _check_keys(base, OmegaConf.to_container(extra), source, "")
    try:
        return cast(DictConfig, OmegaConf.merge(base, extra))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {getattr(error, 'full_key', '') or 'value'}: {_first_line(error)}") from error


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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_config(value: Any) -> bool:
    """Whether `value` is an instance of a config schema (a dataclass instance)."""
    return is_dataclass(value) and not isinstance(value, type)
