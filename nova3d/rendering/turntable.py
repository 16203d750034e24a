"""Pictures of a finished mesh for people: a turntable and a preview."""

import importlib.util
import logging
from pathlib import Path

from torch import Tensor

from nova3d import images
from nova3d.cameras import orbit
from nova3d.rendering import render_object
from nova3d.utils.files import remove, writing

PREVIEW_SIZE = 512  # pixels
_PREVIEW_AZIMUTH, _ELEVATION = 30.0, 10.0  # degrees
_TURN_SECONDS = 4.0
_SUPERSAMPLE = 2

log = logging.getLogger(__name__)


def write_preview(mesh: str | Path, path: str | Path) -> Tensor:
    """Write a picture of a mesh from front right, slightly from above.

    Args:
        mesh: a file in the world frame, with its longest side of about 1.
        path: the PNG to write, PREVIEW_SIZE pixels a side, transparent around the mesh.

    Returns:
        The picture: [h,w,4] float32 in [0,1], straight alpha.

    Raises:
        InputError: where the mesh cannot be read or the file cannot be written.
    """
    camera = orbit(1, elevation_deg=_ELEVATION, size=PREVIEW_SIZE, start_azimuth_deg=_PREVIEW_AZIMUTH)
    # flat: the light of the pictures is already in the texture
    drawn = render_object(mesh, camera, supersample=_SUPERSAMPLE, light="flat", normalise=False)
    picture = drawn.straight_alpha(0)
    with writing(f"'{path}'"):
        images.save_image(path, picture)
    return picture


def write_turntable(mesh: str | Path, folder: str | Path, frames: int, size: int) -> Path:
    """Write a film of a mesh over one full turn, slightly from above, on white.

    Args:
        mesh: a file in the world frame, with its longest side of about 1.
        folder: gets turntable.mp4, or where PyAV is not installed turntable.webp. The other one is removed.
        frames: pictures of the turn, which takes four seconds.
        size: their side in pixels.

    Returns:
        The file.

    Raises:
        InputError: where the mesh cannot be read or the file cannot be written.
    """
    written, stale = ".mp4", ".webp"
    if importlib.util.find_spec("av") is None:
        written, stale = stale, written
        log.info("PyAV is not installed: the turntable is an animated WebP; `pip install nova3d[video]` gives an mp4")
    cameras = orbit(frames, elevation_deg=_ELEVATION, size=size)
    drawn = render_object(mesh, cameras, supersample=_SUPERSAMPLE, light="flat", normalise=False)
    path = Path(folder) / f"turntable{written}"
    with writing(f"'{path}'"):
        images.save_animation(path, drawn.rgb, _TURN_SECONDS / frames)
        remove(path.with_suffix(stale))
    return path
