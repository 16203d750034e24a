"""Pictures: files, colour, cut-out, framing.

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
from nova3d.images.cutout import (
    MATTE_DISTANCE,
    CutOut,
    alpha_separates,
    cut_out,
    matte_plain_background,
    read_rgba,
)
from nova3d.images.framing import (
    FOREGROUND_RATIO,
    check_framing,
    check_object,
    frame_object,
    interpolate,
    resize,
)
from nova3d.images.io import (
    check_together,
    grid,
    image_size,
    read_frames,
    read_image,
    read_images,
    save_animation,
    save_image,
    to_uint8,
)
from nova3d.images.pixels import MAX_MEGAPIXELS, Picture, check_pixels, decode
from nova3d.utils.suffixes import ANIMATION_SUFFIXES, IMAGE_SUFFIXES, PICTURE_SUFFIXES, VIDEO_SUFFIXES

__all__ = [
    "ANIMATION_SUFFIXES",
    "FOREGROUND_RATIO",
    "IMAGE_SUFFIXES",
    "MATTE_DISTANCE",
    "MAX_MEGAPIXELS",
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "CutOut",
    "Picture",
    "alpha_separates",
    "check_framing",
    "check_object",
    "check_pixels",
    "check_together",
    "composite",
    "cut_out",
    "decode",
    "frame_object",
    "grid",
    "image_size",
    "interpolate",
    "linear_to_srgb",
    "matte_plain_background",
    "premultiply",
    "read_frames",
    "read_image",
    "read_images",
    "read_rgba",
    "resize",
    "save_animation",
    "save_image",
    "srgb_to_linear",
    "to_uint8",
    "uncomposite",
    "unpremultiply",
]
