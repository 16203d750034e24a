"""Pictures: reading, framing, colour, writing."""

from nova3d.images.framing import (
    FOREGROUND_RATIO,
    MATTE_DISTANCE,
    check_object,
    composite,
    frame_object,
    grid,
    linear_to_srgb,
    matte_plain_background,
    off_white,
    read_rgba,
    resize,
    save_animation,
    save_image,
    srgb_to_linear,
    to_uint8,
)

__all__ = [
    "FOREGROUND_RATIO",
    "MATTE_DISTANCE",
    "check_object",
    "composite",
    "frame_object",
    "grid",
    "linear_to_srgb",
    "matte_plain_background",
    "off_white",
    "read_rgba",
    "resize",
    "save_animation",
    "save_image",
    "srgb_to_linear",
    "to_uint8",
]
