"""Pictures: files, colour, framing.

Images are float tensors in [0,1], [h,w,3] or [h,w,4] with straight alpha, unless a name says otherwise.
"""

from nova3d.images.colour import (
    composite,
    linear_to_srgb,
    premultiply,
    srgb_to_linear,
    uncomposite,
    unpremultiply,
)
from nova3d.images.framing import (
    FOREGROUND_RATIO,
    MATTE_DISTANCE,
    check_object,
    frame_object,
    interpolate,
    matte_plain_background,
    resize,
)
from nova3d.images.io import (
    ANIMATION_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    grid,
    image_size,
    read_frames,
    read_image,
    read_rgba,
    save_animation,
    save_image,
    to_uint8,
)

__all__ = [
    "ANIMATION_SUFFIXES",
    "FOREGROUND_RATIO",
    "IMAGE_SUFFIXES",
    "MATTE_DISTANCE",
    "VIDEO_SUFFIXES",
    "check_object",
    "composite",
    "frame_object",
    "grid",
    "image_size",
    "interpolate",
    "linear_to_srgb",
    "matte_plain_background",
    "premultiply",
    "read_frames",
    "read_image",
    "read_rgba",
    "resize",
    "save_animation",
    "save_image",
    "srgb_to_linear",
    "to_uint8",
    "uncomposite",
    "unpremultiply",
]
