"""The sizes above which files are refused."""

MAX_MEGAPIXELS = 64.0  # of an input picture; phones take up to 50
MAX_VIEW_MEGAPIXELS = 32.0  # of a view, or of a sheet of views
VIEWS_TOGETHER = 4  # all views of an object have at most this many times the pixels of the largest one
