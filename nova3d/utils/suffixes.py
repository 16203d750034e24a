"""The suffixes of the pictures and films that are read."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of views
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif")  # of input pictures
ANIMATION_SUFFIXES = (".gif",)  # read by Pillow
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi")  # read by PyAV
