"""Views that any tool or published method wrote, read as `nova3d.views.ViewSet`. docs/layouts.md describes each."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nova3d.errors import InputError
from nova3d.layouts import named, orbits, pictures, transforms
from nova3d.layouts.base import Assume, Loaded
from nova3d.layouts.checks import check_for_fusion
from nova3d.layouts.placement import Placement, normalise
from nova3d.transforms import read_transforms
from nova3d.views import ViewSet

__all__ = [
    "LAYOUTS",
    "Assume",
    "Layout",
    "Loaded",
    "Placement",
    "check_for_fusion",
    "detect",
    "load",
    "normalise",
    "read",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """matches: whether a folder looks like this one. read: (folder, size, assume) to views and their placement."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, int | None, Assume], tuple[ViewSet, Placement]]


def load(folder: str | Path, layout: str = "auto", size: int | None = None, assume: Assume | None = None) -> Loaded:
    """Read the views in `folder`, whoever wrote them, in our frame, with the placement from the source's frame.

    layout: a name in LAYOUTS, or "auto" to tell it from the files. size: pixels of the pictures' longer side; None
    keeps the files'. assume: what the layout does not say. A folder of our own is read unchanged. Raises InputError
    with one line for whatever cannot be read.
    """
    folder, assume = Path(folder), assume or Assume()
    if size is not None and size < 1:
        raise InputError(f"size must be positive, not {size}")
    name = detect(folder) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise InputError(f"layout '{name}' is not one of auto, {', '.join(LAYOUTS)}")
    _require_folder(folder)
    views, placement = LAYOUTS[name].read(folder, size, assume)
    log.info("%d views of %dx%d from '%s' (%s)", len(views), views.cameras.width, views.cameras.height, folder, name)
    return Loaded(views, name, placement)


def read(folder: str | Path, layout: str = "auto", size: int | None = None, assume: Assume | None = None) -> ViewSet:
    """The views of `load` alone."""
    return load(folder, layout, size, assume).views


def detect(folder: str | Path) -> str:
    """The layout of a folder, a name in LAYOUTS, told by its files. Raises InputError where there is none."""
    folder = Path(folder)
    _require_folder(folder)
    for name, layout in LAYOUTS.items():
        if layout.matches(folder):
            return name
    if folder.is_dir() and not any(folder.iterdir()):
        raise InputError(f"view folder '{folder}' is empty")
    raise InputError(
        f"'{folder}' looks like none of the known layouts ({', '.join(LAYOUTS)}): name one, or pass numbered pictures "
        "as layout 'frames' with a camera preset"
    )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir() and transforms.find(folder) is None:
        raise InputError(f"view folder '{folder}' does not exist")


def _is_ours(folder: Path) -> bool:
    path = folder / transforms.FILES[0]
    if not path.is_file():
        return False
    frames = read_transforms(path).get("frames")
    first = frames[0] if isinstance(frames, list) and frames and isinstance(frames[0], dict) else {}
    return "normal_path" in first or (folder / "normal").is_dir()


def _read_ours(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    if assume != Assume():
        raise InputError(f"'{folder}' is a nova3d view folder, which says everything itself: nothing may be assumed")
    return pictures.resized(ViewSet.load(folder), size), Placement.identity()


def _in_folder(matches: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda folder: folder.is_dir() and matches(folder)


# In the order in which `detect` asks.
LAYOUTS: dict[str, Layout] = {
    "nova3d": Layout(_in_folder(_is_ours), _read_ours),
    "transforms": Layout(lambda folder: transforms.find(folder) is not None, transforms.read),
    "wonder3d": Layout(_in_folder(named.is_wonder3d), named.read_wonder3d),
    "envision3d": Layout(_in_folder(named.is_envision3d), named.read_envision3d),
    "syncdreamer": Layout(_in_folder(orbits.is_syncdreamer), orbits.read_syncdreamer),
    "era3d": Layout(_in_folder(named.is_era3d), named.read_era3d),
    "sv3d": Layout(_in_folder(orbits.is_sv3d), orbits.read_sv3d),
    "v3d": Layout(_in_folder(orbits.is_v3d), orbits.read_v3d),
    "frames": Layout(lambda folder: False, orbits.read_frames),  # only when named: pictures alone say nothing
}
