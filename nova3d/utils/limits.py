"""The sizes above which files are refused."""

MAX_MEGAPIXELS = 64.0  # of a picture; phones take up to 50
