"""What the readers of layouts share: options, files, masks, and the views of an orbit of pictures.

A layout is a pair of functions, `Layout`. `nova3d/layouts/registry.py` explains how to add one.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import ORTHO_SPAN, CameraModel, Cameras, look_from, preset
from nova3d.errors import InputError
from nova3d.images import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from nova3d.layouts.placement import Placement
from nova3d.utils.files import files_in, is_file
from nova3d.utils.limits import MAX_VIEW_MEGAPIXELS
from nova3d.utils.text import shorten
from nova3d.views import ViewSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assume:
    """What a layout does not say. None (or "auto") takes the layout's own default, which the log states."""

    cameras: str | None = None
    """A preset's name (`nova3d.cameras.preset`) instead of the layout's rig."""
    elevation_deg: float | None = None
    """Of all cameras, in degrees."""
    azimuth_deg: float | None = None
    """Of view 0, the input view, in degrees."""
    radius: float | None = None
    """The cameras' distance from the origin, in world units."""
    fov_deg: float | None = None
    """Field of view across the width of perspective pictures, in degrees."""
    span: float | None = None
    """World units across the width of orthographic pictures."""
    sample: int = 0
    """Which sample of several in the folder, from 0 (files sorted by name)."""
    up: str = "auto"
    """Of a transforms.json only: the world's up axis, "z", "y" or "cameras" (the mean of the cameras' own up)."""
    front: int | None = None
    """Of a transforms.json only: the index of the view that becomes view 0 at azimuth 0."""
    as_they_are: bool = False
    """Whether pictures without transparency keep their pixels, as published scripts score them, and are not put on
    white. Their mask is what stands out from a plain background, and all of them where there is none."""
    max_megapixels: float = MAX_VIEW_MEGAPIXELS
    """Millions of pixels above which a picture is refused before it is decoded. All pictures of a folder may have 4
    times as many together."""


@dataclass(frozen=True)
class Layout:
    """How one kind of view folder is detected and read.

    Attributes:
        matches: whether an existing folder looks like this layout; None where the layout must be named.
        read: (folder, size, assume) to the views in our frame and their placement from the source's frame. `size` is
            the pixels of the pictures' longer side, None for the files' own. Raises InputError in one line.
    """

    matches: Callable[[Path], bool] | None
    read: Callable[[Path, int | None, Assume], tuple[ViewSet, Placement]]


@dataclass(frozen=True)
class Loaded:
    """Views that were read.

    Attributes:
        views: in our frame.
        layout: the name they were read as.
        placement: from the source's world frame to ours.
    """

    views: ViewSet
    layout: str
    placement: Placement


@dataclass(frozen=True)
class Orbit:
    """Cameras at one elevation, all facing the origin.

    Attributes:
        azimuths_deg: of the views in order, in degrees.
        model: "orthographic" or "perspective".
        elevation_deg: in degrees.
        radius: distance from the origin, in world units.
        fov_deg: field of view across the width, in degrees (perspective).
        span: world units across the width (orthographic).
    """

    azimuths_deg: Sequence[float]
    model: CameraModel
    elevation_deg: float = 0.0
    radius: float = 1.5
    fov_deg: float = 33.8
    span: float = ORTHO_SPAN

    def cameras(self, width: int, height: int) -> Cameras:
        """The cameras for pictures of width x height pixels."""
        azimuth = torch.deg2rad(torch.tensor(self.azimuths_deg, dtype=torch.float64))
        elevation = torch.full_like(azimuth, math.radians(self.elevation_deg))
        c2w = look_from(azimuth, elevation, self.radius).float()
        across = self.span if self.model == "orthographic" else 2 * math.tan(math.radians(self.fov_deg) / 2)
        focal = width / across
        intrinsics = torch.tensor([focal, focal, width / 2, height / 2]).repeat(len(azimuth), 1)
        return Cameras(c2w, intrinsics, width, height, self.model)


def orbit_views(
    layout: str,
    pictures: Sequence[Tensor],
    names: Sequence[str | Path],
    orbit: Orbit,
    size: int | None,
    assume: Assume,
    normal_maps: Sequence[Tensor] | None = None,
) -> tuple[ViewSet, Placement]:
    """The views of an orbit whose files name no cameras: what most layouts' `read` ends with.

    Args:
        layout: the layout's name, for the log.
        pictures: v of [h,w,3|4] float in [0,1]. Those without transparency are cut out of their plain background.
        names: of the pictures, for messages.
        orbit: the layout's own cameras, with one azimuth for each picture.
        size: pixels of the pictures' longer side in the result; None keeps theirs.
        assume: what replaces the layout's own values.
        normal_maps: v of [h,w,3] unit normals or zero, in the frame of the front camera (view 0 at azimuth 0).

    Returns:
        The views, and the identity placement: the source's frame is ours.

    Raises:
        InputError: where `assume` does not fit the layout, a picture cannot be cut out, or sizes differ.
    """
    height, width = pictures[0].shape[:2]
    cameras = rig(layout, orbit, width, height, assume)
    cut = [with_alpha(p, str(name), assume.as_they_are) for p, name in zip(pictures, names, strict=True)]
    log_keyed(sum(keyed for _, keyed in cut), len(cut), layout)
    rgba = [picture for picture, _ in cut]
    if normal_maps is not None:
        for normal, picture, name in zip(normal_maps, rgba, names, strict=True):
            if normal.shape[:2] != picture.shape[:2]:
                raise InputError(f"'{name}' and its normal map differ in size")
    for picture, name in zip(rgba, names, strict=True):
        if picture.shape[:2] != (height, width):
            raise InputError(
                f"'{name}' is {picture.shape[1]}x{picture.shape[0]}, the others are {width}x{height}: "
                "all views must have one size"
            )
    surface = None
    if normal_maps is not None:
        # The front camera's frame is the world's unless `assume` places it elsewhere.
        surface = torch.stack([normals.rotate(normal, cameras.c2w[0, :3, :3]) for normal in normal_maps])
    views = ViewSet.from_rgba(torch.stack(rgba), surface, cameras, size)
    if assume.as_they_are:
        views = replace(views, rgb=unkeyed(views.rgb, torch.stack(rgba), [keyed for _, keyed in cut]))
    return views, Placement.identity()


def rig(layout: str, default: Orbit, width: int, height: int, assume: Assume) -> Cameras:
    """A layout's cameras with the values of `assume` in their place; the log states them.

    Args:
        layout: the layout's name, for the log.
        default: the layout's own cameras.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.
        assume: a preset's name, or single numbers of the orbit.

    Returns:
        One camera for each azimuth of `default`.

    Raises:
        InputError: where a preset has another number of views, or a number means nothing to these cameras.
    """
    count = len(default.azimuths_deg)
    given = [name for name in ("elevation_deg", "radius", "fov_deg", "span") if getattr(assume, name) is not None]
    if assume.cameras is not None:
        if given or assume.azimuth_deg is not None:
            raise InputError("give either the preset `cameras` or single numbers of the rig, not both")
        cameras = preset(assume.cameras, width)
        if len(cameras) != count:
            raise InputError(f"camera preset '{assume.cameras}' has {len(cameras)} views, the folder has {count}")
        if width != height:
            raise InputError(f"camera presets are for square pictures, these are {width}x{height}")
        log.info("%s: cameras of the preset '%s'", layout, assume.cameras)
        return cameras
    _check_numbers(default.model, assume)
    orbit = replace(default, **{name: getattr(assume, name) for name in given})
    if assume.azimuth_deg is not None:
        turn = assume.azimuth_deg - default.azimuths_deg[0]
        orbit = replace(orbit, azimuths_deg=[a + turn for a in default.azimuths_deg])
    lens = f"span {orbit.span:g}" if orbit.model == "orthographic" else f"field of view {orbit.fov_deg:g} degrees"
    log.info(
        "%s: the files name no cameras; %s, %d views, elevation %g degrees, radius %g, %s%s",
        layout,
        orbit.model,
        count,
        orbit.elevation_deg,
        orbit.radius,
        lens,
        f" ({', '.join(given)} as given)" if given else " (the layout's published values)",
    )
    return orbit.cameras(width, height)


def _check_numbers(model: CameraModel, assume: Assume) -> None:
    values = {name: getattr(assume, name) for name in ("elevation_deg", "azimuth_deg", "radius", "fov_deg", "span")}
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value}")
    for name in ("radius", "span"):
        if values[name] is not None and values[name] <= 0:
            raise InputError(f"{name} must be positive, not {values[name]:g}")
    if values["fov_deg"] is not None and not 0 < values["fov_deg"] < 180:
        raise InputError(f"fov_deg must be between 0 and 180, not {values['fov_deg']:g}")
    wrong = "fov_deg" if model == "orthographic" else "span"
    if values[wrong] is not None:
        raise InputError(f"these cameras are {model}: '{wrong}' means nothing to them")


def has_alpha(picture: Tensor) -> bool:
    """Whether a picture [h,w,3|4] float in [0,1] is transparent anywhere."""
    return picture.shape[-1] == 4 and bool((picture[..., 3] < 1).any())


def with_alpha(picture: Tensor, name: str, whole: bool = False) -> tuple[Tensor, bool]:
    """A picture with an alpha that separates the object.

    Keying finds what has the border's colour and is connected to the border. Parts of the object that have the
    background's colour and touch it are lost.

    Args:
        picture: [h,w,3|4] float in [0,1].
        name: the picture's name for the message.
        whole: take all of a picture that has neither transparency nor a plain background.

    Returns:
        rgba: [h,w,4] float in [0,1], straight alpha.
        keyed: whether its plain background was keyed, since it has no transparency.

    Raises:
        InputError: where there is neither transparency nor a plain background, unless `whole`.
    """
    if has_alpha(picture):
        return picture, False
    try:
        alpha = images.matte_plain_background(picture[..., :3], name)
    except InputError as error:
        if not whole:
            raise
        log.info("%s; all of it is taken as the object", error)
        alpha = torch.ones_like(picture[..., 0])
    return torch.cat([picture[..., :3], alpha[..., None]], dim=-1), True


def unkeyed(rgb: Tensor, rgba: Tensor, keyed: Sequence[bool]) -> Tensor:
    """Pictures on white, with the file's own pixels in those that were keyed (`Assume.as_they_are`).

    Args:
        rgb: [v,h,w,3] float in [0,1], on white.
        rgba: [v,H,W,4] float in [0,1], the pictures as `with_alpha` gives them.
        keyed: which of the v had no transparency.

    Returns:
        [v,h,w,3] float in [0,1].
    """
    height, width = rgb.shape[1:3]
    own = [
        images.interpolate(picture[..., :3], width, height) if was else old
        for old, picture, was in zip(rgb, rgba, keyed, strict=True)
    ]
    return torch.stack(own)


def log_keyed(keyed: int, count: int, layout: str) -> None:
    """Log how many of `count` pictures had no mask and were keyed; nothing where none was."""
    if keyed:
        log.info("%s: %d of %d pictures have no mask; their plain background is keyed out", layout, keyed, count)


def numbered(paths: Sequence[Path]) -> list[Path]:
    """The files whose name is a number, or all where none is: `000-depth.png` is not a frame beside `000.png`."""
    return [path for path in paths if path.stem.isdecimal()] or list(paths)


def frames_in(folder: Path, layout: str, assume: Assume) -> tuple[list[Tensor], list[str]]:
    """The frames of a folder's `sample`-th animation or video or, without any, its pictures.

    Args:
        folder: an existing folder.
        layout: the layout's name, for the log.
        assume: `sample`, which animation or video, and `max_megapixels` are used.

    Returns:
        pictures: v of [h,w,3|4] float in [0,1].
        names: of the pictures, for messages.

    Raises:
        InputError: where there is nothing, or a file cannot be read.
    """
    moving = files_in(folder, ANIMATION_SUFFIXES + VIDEO_SUFFIXES)
    if moving:
        path = pick_sample(moving, assume.sample, layout)
        pictures = images.read_frames(path, assume.max_megapixels)
        return pictures, [f"{path} (frame {k})" for k in range(len(pictures))]
    paths = numbered(files_in(folder))
    if not paths:
        raise InputError(f"'{folder}' holds no pictures and no video")
    return images.read_images(paths, assume.max_megapixels), [str(path) for path in paths]


def frame_count(folder: Path) -> int:
    """The number of frames of a folder's first animation or video or, without any, of its pictures."""
    moving = files_in(folder, ANIMATION_SUFFIXES + VIDEO_SUFFIXES)
    return len(images.read_frames(moving[0])) if moving else len(numbered(files_in(folder)))


def require_files(paths: Sequence[Path], folder: Path) -> None:
    """Raise InputError naming those of the files that are missing, relative to `folder`."""
    missing = [
        shorten(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
        for path in paths
        if not is_file(path)
    ]
    if missing:
        names = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise InputError(f"'{folder}' is incomplete: {names} missing")


def pick_sample(paths: Sequence[Path], sample: int, layout: str) -> Path:
    """The `sample`-th of several samples, logged; raises InputError where there are fewer."""
    if not 0 <= sample < len(paths):
        raise InputError(f"sample {sample} does not exist: '{paths[0].parent}' holds {len(paths)} (from 0)")
    if len(paths) > 1:
        log.info("%s: %d samples, number %d is read: %s", layout, len(paths), sample, paths[sample].name)
    return paths[sample]


def squares_side_by_side(path: Path) -> int | None:
    """How many squares side by side a picture file holds; None where that is not a whole number, or for other files."""
    width, height = images.image_size(path)
    return width // height if height and width % height == 0 else None


def split_tiles(sheet: Tensor, count: int, name: str) -> list[Tensor]:
    """Cut a wide picture into tiles.

    Args:
        sheet: [h,count*w,c] float.
        count: the number of tiles.
        name: the picture's name for the message.

    Returns:
        `count` of [h,w,c], from left to right.

    Raises:
        InputError: where the width is not a multiple of `count`.
    """
    if sheet.shape[1] % count:
        raise InputError(f"'{name}' is {sheet.shape[1]} pixels wide, which is not {count} pictures side by side")
    return list(sheet.split(sheet.shape[1] // count, dim=1))
