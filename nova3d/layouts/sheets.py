"""Layouts of methods that write all views of an object into one picture, without normals.

Each is a pair `is_<name>`, `read_<name>`; `nova3d.layouts.base.Layout` has their arguments and results. File names,
numbers and conventions are from the methods' own programs. docs/reference/layout-sources.md names the files and their
licences.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from nova3d import images
from nova3d.errors import InputError
from nova3d.layouts.base import Assume, Orbit, orbit_views, pick_sample, split_tiles, squares_side_by_side
from nova3d.layouts.placement import Placement
from nova3d.utils.files import files_in
from nova3d.views import ViewSet

MV_ADAPTER_AZIMUTHS = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
MV_ADAPTER_SPAN = 1.1  # left, right, bottom and top at 0.55
OUROBOROS3D_AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 337.5)  # hyper/c2w.npy
_OUROBOROS3D = Orbit(OUROBOROS3D_AZIMUTHS, "perspective", 0.0, 1.7417, 39.598)  # hyper/c2w.npy and fov.npy
_RULE = 2  # pixels between and around the tiles of torchvision's grids
KISS3DGEN_AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
_KISS3DGEN = Orbit(KISS3DGEN_AZIMUTHS, "perspective", 5.0, 4.5, 30.0)


def is_mv_adapter(folder: Path) -> bool:
    """A picture of 6 squares side by side, with NAME_reference.png beside NAME.png."""
    return bool(_mv_adapter_sheets(folder))


def read_mv_adapter(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<name>.png: 6 views of 768x768 side by side on grey, at the azimuths that the program takes by default.

    Orthographic, elevation 0, 1.1 world units across.
    """
    path = _sheet(_mv_adapter_sheets(folder), folder, "6 squares side by side, with its _reference.png", assume)
    sheet = images.read_image(path, max_megapixels=assume.max_megapixels)
    pictures = split_tiles(sheet, len(MV_ADAPTER_AZIMUTHS), str(path))
    orbit = Orbit(MV_ADAPTER_AZIMUTHS, "orthographic", span=MV_ADAPTER_SPAN)
    return _views("mv_adapter", path, pictures, orbit, size, assume)


def is_ouroboros3d(folder: Path) -> bool:
    """A grid of 2 rows of 4 squares with rules of 2 pixels, with NAME_input.png beside NAME.png."""
    return bool(_ouroboros3d_sheets(folder))


def read_ouroboros3d(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<name>.png: 8 views of 512x512 on white in 2 rows, 2 pixels between and around them.

    Pinhole, field of view 39.6 degrees, radius 1.74, elevation 0. The azimuths are not even: the last one is 337.5.
    """
    path = _sheet(_ouroboros3d_sheets(folder), folder, "2 rows of 4 squares, with its _input.png", assume)
    sheet = images.read_image(path, max_megapixels=assume.max_megapixels)
    step = (sheet.shape[0] - _RULE) // 2
    pictures = [
        sheet[_RULE + row * step : (row + 1) * step, _RULE + column * step : (column + 1) * step]
        for row in range(2)
        for column in range(4)
    ]
    return _views("ouroboros3d", path, pictures, _OUROBOROS3D, size, assume)


def is_kiss3dgen(folder: Path) -> bool:
    """A picture NAME_3d_bundle.png of 2 rows of 4 squares."""
    return bool(_bundles(folder))


def read_kiss3dgen(folder: Path, size: int | None, assume: Assume) -> tuple[ViewSet, Placement]:
    """<name>_3d_bundle.png: 4 views of 512x512 on white above their normal maps, which are not read.

    Pinhole, field of view 30 degrees, radius 4.5, elevation 5.
    """
    path = _sheet(_bundles(folder), folder, "2 rows of 4 squares, named NAME_3d_bundle.png", assume)
    sheet = images.read_image(path, max_megapixels=assume.max_megapixels)
    pictures = split_tiles(sheet[: sheet.shape[0] // 2], len(KISS3DGEN_AZIMUTHS), str(path))
    return _views("kiss3dgen", path, pictures, _KISS3DGEN, size, assume)


def _mv_adapter_sheets(folder: Path) -> list[Path]:
    count = len(MV_ADAPTER_AZIMUTHS)
    return [path for path in _with_companion(folder, "_reference.png") if squares_side_by_side(path) == count]


def _ouroboros3d_sheets(folder: Path) -> list[Path]:
    found = []
    for path in _with_companion(folder, "_input.png"):
        width, height = images.image_size(path)
        if height > _RULE and (height - _RULE) % 2 == 0 and width - _RULE == 2 * (height - _RULE):
            found.append(path)
    return found


def _bundles(folder: Path) -> list[Path]:
    return [p for p in files_in(folder) if p.stem.endswith("_3d_bundle") and squares_side_by_side(p) == 2]


def _with_companion(folder: Path, ending: str) -> list[Path]:
    return [path for path in files_in(folder) if path.with_name(path.stem + ending).is_file()]


def _sheet(sheets: Sequence[Path], folder: Path, what: str, assume: Assume) -> Path:
    if not sheets:
        raise InputError(f"'{folder}' has no picture of {what}")
    return pick_sample(sheets, assume.sample, "sheets")


def _views(
    layout: str, path: Path, pictures: Sequence[Tensor], orbit: Orbit, size: int | None, assume: Assume
) -> tuple[ViewSet, Placement]:
    names = [f"{path} (view {k})" for k in range(len(pictures))]
    return orbit_views(layout, pictures, names, orbit, size, assume)
