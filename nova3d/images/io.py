"""Image files: pictures, animations and videos read as float tensors, and written."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin
from torch import Tensor

from nova3d.errors import InputError
from nova3d.images.pixels import EXIF_ORIENTATION, EXIF_TURNED, has_alpha, open_picture
from nova3d.utils.files import replacing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of views
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif")  # of input pictures
ANIMATION_SUFFIXES = (".gif",)  # read by Pillow
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi")  # read by PyAV


def read_image(path: str | Path, upright: bool = True) -> Tensor:
    """Read a picture's own values.

    Args:
        path: the file, of any mode with 8 bits per channel.
        upright: turn it as its EXIF orientation says.

    Returns:
        [h,w,3] float32 in [0,1], or [h,w,4] (straight alpha) where the file has transparency.

    Raises:
        InputError: where the file is missing, broken, or of more than 8 bits per channel.
    """
    with open_picture(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"'{path}' has mode {image.mode}: save it with 8 bits per channel")
        shown = ImageOps.exif_transpose(image) if upright else image
        pixels = np.asarray(shown.convert("RGBA" if has_alpha(image) else "RGB")).copy()
    return torch.from_numpy(pixels).float().div_(255)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an upright image file in pixels, from its header; (0, 0) where it is not an image."""
    try:
        with open_picture(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(EXIF_ORIENTATION, 1) in EXIF_TURNED else (width, height)
    except InputError:
        return 0, 0


def read_frames(path: str | Path) -> list[Tensor]:
    """Read the frames of an animated GIF or of a video.

    Args:
        path: a file with one of ANIMATION_SUFFIXES or VIDEO_SUFFIXES. Videos need PyAV.

    Returns:
        [h,w,3] float32 in [0,1] for each frame, or [h,w,4] for those of a GIF with transparency.

    Raises:
        InputError: where the file is missing, broken or without frames, or PyAV is not installed.
    """
    path = Path(path)
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        with open_picture(path, "animation") as image:
            mode = "RGBA" if "transparency" in image.info else "RGB"
            frames = [np.asarray(frame.convert(mode)).copy() for frame in ImageSequence.Iterator(image)]
    else:
        frames = _video_frames(path)
    return [torch.from_numpy(frame).float() / 255 for frame in frames]


def _video_frames(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise InputError(f"video '{path}' does not exist")
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading the video '{path}' needs PyAV: `pip install av`, or pass its frames as numbered PNG files"
        ) from error
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
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
        raise InputError(f"writing the video '{path}' needs PyAV: `pip install av`, or write a .webp") from error
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
