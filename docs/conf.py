"""Sphinx: the pages of this folder, the keys of every config, and the docstrings of the public names."""

import importlib
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nova3d import __version__, config  # noqa: E402  the package is found by the path above
from nova3d.utils.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

project = "nova3d"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"nova3d {release}"
html_show_copyright = False
smartquotes = False  # quotes are values of keys

myst_heading_anchors = 3
exclude_patterns = ["images"]

autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

KEYS = re.compile(r"^<!-- keys: (\S+):(\S+) -->$", re.MULTILINE)


def insert_keys(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace each `<!-- keys: module:Class -->` of a page by the tables of that config's keys."""

    def tables(match: re.Match[str]) -> str:
        return config.markdown(getattr(importlib.import_module(match[1]), match[2]))

    source[0] = KEYS.sub(tables, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", insert_keys)
