"""Modules of a user's own, imported for the alignment arms, layouts, metrics or sources that they add."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nova3d.errors import InputError, first_line

_VARIABLE = "NOVA3D_IMPORTED"  # set by `import_modules` for the processes that this one starts


def import_modules(names: Sequence[str]) -> None:
    """Import modules here, and have the processes that this one starts import them (see `import_inherited`).

    Args:
        names: names as in an `import` statement. They are looked up on Python's path, then in the working directory,
            which is put at the end of that path.

    Raises:
        InputError: where a name is no module's, or its module or one that it imports is not found.
    """
    folder = str(Path.cwd())
    if names and folder not in sys.path:
        sys.path.append(folder)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise InputError(f"--import takes the name of a module, as in 'import my_arms', not '{name}'")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise InputError(f"--import: no module '{name}' on Python's path or in '{folder}'") from error
            raise InputError(f"--import {name}: {first_line(error)}") from error
    if names:
        os.environ[_VARIABLE] = ",".join(names)


def imported() -> list[str]:
    """The modules that `import_modules` has imported here or in the process that started this one."""
    return [name for name in os.environ.get(_VARIABLE, "").split(",") if name]


def import_inherited() -> None:
    """Import what the process that started this one has imported by `import_modules`."""
    import_modules(imported())
