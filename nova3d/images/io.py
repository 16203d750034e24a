"""Image files: pictures, animations and videos read as float tensors, and written."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images.pixels import EXIF_ORIENTATION, EXIF_TURNED, check_pixels, has_alpha, open_picture
from nova3d.utils.files import replacing
from nova3d.utils.limits import MAX_VIEW_MEGAPIXELS, VIEWS_TOGETHER
from nova3d.utils.suffixes import ANIMATION_SUFFIXES


def read_image(path: str | Path, upright: bool = True, max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> Tensor:
    """Read a picture's own values.

    Args:
        path: the file, of any mode with 8 bits per channel.
        upright: turn it as its EXIF orientation says.
        max_megapixels: millions of pixels that its header may state.

    Returns:
        [h,w,3] float32 in [0,1], or [h,w,4] (straight alpha) where the file has transparency.

    Raises:
        InputError: where the file is missing, broken, too large, or of more than 8 bits per channel.
    """
    with open_picture(path, max_megapixels=max_megapixels) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"'{path}' has mode {image.mode}: save it with 8 bits per channel")
        shown = ImageOps.exif_transpose(image) if upright else image
        pixels = np.asarray(shown.convert("RGBA" if has_alpha(image) else "RGB")).copy()
    return torch.from_numpy(pixels).float().div_(255)


def read_images(paths: Sequence[str | Path], max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> list[Tensor]:
    """Read pictures of one object, whose sizes are checked together before the first is decoded.

    Args:
        paths: the files, as `read_image` reads them.
        max_megapixels: millions of pixels of one file; all together may have VIEWS_TOGETHER times as many.

    Returns:
        [h,w,3|4] float32 in [0,1] of each.

    Raises:
        InputError: as `read_image`, and where they are too large together.
    """
    check_together([image_size(path) for path in paths], str(Path(paths[0]).parent) if paths else "", max_megapixels)
    return [read_image(path, max_megapixels=max_megapixels) for path in paths]


def check_together(sizes: Sequence[tuple[int, int]], name: str, max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> None:
    """Refuse pictures of one object that are too large together.

    Args:
        sizes: width and height of each in pixels.
        name: where they are from, for the message.
        max_megapixels: millions of pixels of one; all together may have VIEWS_TOGETHER times as many.

    Raises:
        InputError: where they have more.
    """
    total = sum(width * height for width, height in sizes) / 1e6
    if total > max_megapixels * VIEWS_TOGETHER:
        raise InputError(
            f"'{name}': {len(sizes)} pictures have {total:.4g} million pixels together; at most "
            f"{max_megapixels * VIEWS_TOGETHER:g} million are read: scale them down, or raise max_megapixels"
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an upright image file in pixels, from its header; (0, 0) where it is not an image."""
    try:
        with open_picture(path, max_megapixels=math.inf) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(EXIF_ORIENTATION, 1) in EXIF_TURNED else (width, height)
    except InputError:
        return 0, 0


def read_frames(path: str | Path, max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> list[Tensor]:
    """Read the frames of an animated GIF or of a video.

    Args:
        path: a file with one of ANIMATION_SUFFIXES or VIDEO_SUFFIXES. Videos need PyAV.
        max_megapixels: millions of pixels of a frame; all together may have VIEWS_TOGETHER times as many.

    Returns:
        [h,w,3] float32 in [0,1] for each frame, or [h,w,4] for those of a GIF with transparency.

    Raises:
        InputError: where the file is missing, broken, too large or without frames, or PyAV is not installed.
    """
    path = Path(path)
    frames: list[np.ndarray] = []
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        with open_picture(path, "animation", max_megapixels) as image:
            mode = "RGBA" if "transparency" in image.info else "RGB"
            for frame in ImageSequence.Iterator(image):
                check_together([image.size] * (len(frames) + 1), str(path), max_megapixels)
                frames.append(np.asarray(frame.convert(mode)).copy())
    else:
        frames = _video_frames(path, max_megapixels)
    return [torch.from_numpy(frame).float() / 255 for frame in frames]


def _video_frames(path: Path, max_megapixels: float) -> list[np.ndarray]:
    if not path.is_file():
        raise InputError(f"video '{path}' does not exist")
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading the video '{path}' needs PyAV: `pip install 'nova3d[video]'`, or pass its frames as PNG files"
        ) from error
    try:
        with av.open(str(path)) as container:
            frames: list[np.ndarray] = []
            stream = container.streams.video[0]
            check_pixels(stream.width, stream.height, str(path), max_megapixels)
            for frame in container.decode(stream):
                check_together([(frame.width, frame.height)] * (len(frames) + 1), str(path), max_megapixels)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"'{path}' cannot be read as a video: {error}") from error
    if not frames:
        raise InputError(f"the video '{path}' has no frames")
    return frames


def to_uint8(image: Tensor) -> np.ndarray:
    """Float in [0,1] (clipped to it) to uint8, rounded, as a numpy array of the same shape."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def save_image(path: str | Path, image: Tensor | np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG file, aside and renamed.

    Args:
        path: the file.
        image: [h,w], [h,w,3] or [h,w,4]; float in [0,1], or uint8.
        text: what goes into the file's text chunks.
    """
    pixels = to_uint8(image) if isinstance(image, Tensor) and image.dtype != torch.uint8 else np.asarray(image)
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    with replacing(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG", pnginfo=info)


def save_animation(path: str | Path, frames: Tensor, seconds_per_frame: float = 0.12) -> None:
    """Write an animation, aside and renamed.

    Args:
        path: the file; its suffix, .webp, .gif (both loop) or .mp4, is the format. mp4 is H.264 and needs PyAV.
        frames: [n,h,w,3] float in [0,1]. An mp4 lacks the last row or column of an odd size.
        seconds_per_frame: how long each frame is shown.

    Raises:
        InputError: where PyAV is not installed or cannot encode the frames.
    """
    pixels = to_uint8(frames)
    if Path(path).suffix.lower() == ".mp4":
        _save_video(Path(path), pixels, seconds_per_frame)
        return
    pictures = [Image.fromarray(frame) for frame in pixels]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    with replacing(path) as aside:
        pictures[0].save(aside, duration=round(seconds_per_frame * 1000), **options)


def _save_video(path: Path, frames: np.ndarray, seconds_per_frame: float) -> None:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"writing the video '{path}' needs PyAV: `pip install 'nova3d[video]'`, or write a .webp"
        ) from error
    height, width = (side // 2 * 2 for side in frames.shape[1:3])  # its chroma has half the resolution
    rate = Fraction(1 / seconds_per_frame).limit_denominator(1000)
    try:
        with replacing(path) as aside, av.open(str(aside), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames[:, :height, :width]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"the video '{path}' cannot be written: {error}") from error


def grid(images: Tensor, columns: int, padding: int = 2, background: float = 1.0) -> Tensor:
    """Tile images row by row into one picture.

    Args:
        images: [n,h,w,c] float in [0,1].
        columns: tiles in a row.
        padding: pixels between tiles and around them.
        background: the padding's level, in [0,1].

    Returns:
        [rows * (h + padding) + padding, columns * (w + padding) + padding, c] float in [0,1].
    """
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    sheet = images.new_full((rows * (h + padding) + padding, columns * (w + padding) + padding, c), background)
    for index in range(n):
        y = padding + (index // columns) * (h + padding)
        x = padding + (index % columns) * (w + padding)
        sheet[y : y + h, x : x + w] = images[index]
    return sheet
