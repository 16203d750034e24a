"""Names that load their modules on first use, so that a config is read without torch."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def resolve(target: str) -> Any:
    """The object that "module:name" names; its module is imported.

    Raises:
        ImportError: where there is no such module.
        AttributeError: where the module has no such name.
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that exports names of its modules.

    Args:
        package: the package's `__name__`.
        modules: module -> the names that it defines; a module is named as the package's own, or in full.

    Returns:
        The two functions, to be assigned to `__getattr__` and `__dir__`. A name is imported once.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = homes[name]
        module = importlib.import_module(home if home.startswith("nova3d.") else f"{package}.{home}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(sys.modules[package].__all__)
