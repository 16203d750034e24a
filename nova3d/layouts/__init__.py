"""Views that any tool or published method wrote, read as `nova3d.views.ViewSet`. docs/layouts.md lists them."""

import logging
from dataclasses import replace
from pathlib import Path

from nova3d.errors import InputError
from nova3d.layouts import transforms
from nova3d.layouts.base import Assume, Layout, Loaded, Orbit, orbit_views
from nova3d.layouts.checks import check_for_fusion
from nova3d.layouts.placement import Placement, normalise
from nova3d.layouts.registry import LAYOUTS
from nova3d.utils.files import check_folder
from nova3d.views import ViewSet, load_detail

__all__ = [
    "LAYOUTS",
    "Assume",
    "Layout",
    "Loaded",
    "Orbit",
    "Placement",
    "check_for_fusion",
    "detect",
    "load",
    "load_for_fusion",
    "normalise",
    "orbit_views",
    "read",
]

log = logging.getLogger(__name__)


def load(folder: str | Path, layout: str = "auto", size: int | None = None, assume: Assume | None = None) -> Loaded:
    """Read the views in a folder, whoever wrote them.

    Args:
        folder: the folder, or a transforms.json file.
        layout: a name in LAYOUTS, or "auto" to tell it from the files.
        size: pixels of the pictures' longer side in the result; None keeps the files' own.
        assume: what the layout does not say.

    Returns:
        The views in our frame, the layout's name, and the placement from the source's frame. A folder of our own is
        read unchanged.

    Raises:
        InputError: in one line, for whatever cannot be read.
    """
    folder, assume = Path(folder), assume or Assume()
    if size is not None and size < 1:
        raise InputError(f"size must be positive, not {size}")
    name = detect(folder) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise InputError(f"layout '{name}' is not one of auto, {', '.join(LAYOUTS)}")
    _require(folder)
    views, placement = LAYOUTS[name].read(folder, size, assume)
    log.info("%d views of %dx%d from '%s' (%s)", len(views), views.cameras.width, views.cameras.height, folder, name)
    return Loaded(views, name, placement)


def load_for_fusion(
    folder: str | Path, layout: str = "auto", assume: Assume | None = None
) -> tuple[Loaded, ViewSet | None]:
    """Read the views in a folder as the fusion takes them: the object centred, its longest side 1.

    Ours are in their place, even where a generated object is a little off.

    Args:
        folder: the folder, or a transforms.json file.
        layout: a name in LAYOUTS, or "auto" to tell it from the files.
        assume: what the layout does not say.

    Returns:
        What was read, in its place, and the trusted views that a folder of our own has at a resolution of their own.

    Raises:
        InputError: in one line, for whatever cannot be read.
    """
    loaded = load(folder, layout, assume=assume)
    if loaded.layout == "nova3d":
        return loaded, load_detail(folder, (assume or Assume()).max_megapixels)
    views, moved = normalise(loaded.views)
    return replace(loaded, views=views, placement=moved @ loaded.placement), None


def read(folder: str | Path, layout: str = "auto", size: int | None = None, assume: Assume | None = None) -> ViewSet:
    """The views of `load` alone.

    Args:
        folder: the folder, or a transforms.json file.
        layout: a name in LAYOUTS, or "auto" to tell it from the files.
        size: pixels of the pictures' longer side in the result; None keeps the files' own.
        assume: what the layout does not say.

    Returns:
        The views in our frame.

    Raises:
        InputError: in one line, for whatever cannot be read.
    """
    return load(folder, layout, size, assume).views


def detect(folder: str | Path) -> str:
    """Tell the layout of a folder by its files.

    Args:
        folder: the folder, or a transforms.json file.

    Returns:
        A name in LAYOUTS.

    Raises:
        InputError: where the folder does not exist or is like none of the layouts.
    """
    folder = Path(folder)
    _require(folder)
    if folder.is_file():
        return "transforms"
    for name, layout in LAYOUTS.items():
        if layout.matches is not None and layout.matches(folder):
            return name
    if not any(folder.iterdir()):
        raise InputError(f"view folder '{folder}' is empty")
    raise InputError(
        f"'{folder}' looks like none of the known layouts ({', '.join(LAYOUTS)}): name one; for numbered pictures "
        "--layout frames --assume cameras=PRESET"
    )


def _require(folder: Path) -> None:
    if not transforms.is_transforms(folder):
        check_folder(folder, "view folder")
