"""Installed packages: which are there, and a torchvision that does not fit torch."""

import importlib
import importlib.util
import logging
import sys
from functools import cache
from typing import Literal

from nova3d.errors import InputError, first_line

_log = logging.getLogger(__name__)

TorchvisionState = Literal["absent", "sound", "repaired"]

# Declared by torchvision's C++ library; without it the package's own Python fails at import when it adds to them.
_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def ensure_torchvision() -> TorchvisionState:
    """Make `import torchvision` work where its C++ library does not fit torch; call before importing diffusers.

    diffusers and transformers import torchvision whenever it is installed, and one built for another torch (the
    CUDA wheel beside a CPU torch) fails with "operator torchvision::nms does not exist" and takes them down with
    it. Declaring the missing operators lets the pure Python parts load; calling such an operator still fails.
    Does nothing where torchvision is absent or sound. Raises InputError where it is broken in another way.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "absent"
    error = _import_error()
    if error is None:
        return "sound"
    declared = [name for name in _OPERATORS if f"operator torchvision::{name} does not exist" in str(error)]
    if declared:
        _declare_operators()
        _unload("torchvision")
        error = _import_error()
    if error is not None:
        raise InputError(
            f"torchvision is installed but cannot be imported ({first_line(error)}): "
            "uninstall it, or install the release built for this torch"
        ) from error
    _log.warning("torchvision's compiled operators do not fit this torch; its Python parts are used without them")
    return "repaired"


@cache
def _declare_operators() -> object:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library  # kept by the cache: operators vanish with the library that declared them


def _import_error() -> Exception | None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        return error
    return None


def _unload(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def has(package: str) -> bool:
    """Whether a top-level package can be found; nothing is imported."""
    return importlib.util.find_spec(package) is not None
