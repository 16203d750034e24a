"""Sources of objects: a list of assets, and the file of each when it is needed.

To add a source, write a module with a class that follows `Source` and add one line to `SOURCES`.
"""

from collections.abc import Callable

from nova3d.data.sources.base import Asset, Source, SourceConfig, read_uids
from nova3d.data.sources.folder import FolderSource
from nova3d.data.sources.gso import GsoSource
from nova3d.data.sources.objaverse import ObjaverseSource
from nova3d.data.sources.procedural import ProceduralSource
from nova3d.errors import InputError

__all__ = ["SOURCES", "Asset", "Source", "SourceConfig", "make_source", "read_uids"]

SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
    "folder": FolderSource,
    "objaverse": ObjaverseSource,
    "gso": GsoSource,
    "procedural": ProceduralSource,
}


def make_source(config: SourceConfig) -> Source:
    """Make the source that a config describes.

    Args:
        config: the settings; `kind` is a key of SOURCES.

    Returns:
        The source.

    Raises:
        InputError: for an unknown kind or a missing package.
    """
    if config.kind not in SOURCES:
        raise InputError(f"source kind '{config.kind}' is not one of {', '.join(SOURCES)}")
    return SOURCES[config.kind](config)
