"""Sources of objects: a list of assets, and the file of each when it is needed.

To add a source, write a module with a class that follows `Source` and add one line to `SOURCES`.
"""

from typing import cast

from nova3d.data.sources.base import Asset, Source, SourceConfig, read_uids
from nova3d.errors import InputError
from nova3d.utils import lazy

__all__ = ["SOURCES", "Asset", "Source", "SourceConfig", "make_source", "read_uids"]

# Kind: "module:class". A module is imported when a source of it is made, as an engine's is.
SOURCES = {
    "folder": "nova3d.data.sources.folder:FolderSource",
    "objaverse": "nova3d.data.sources.objaverse:ObjaverseSource",
    "gso": "nova3d.data.sources.gso:GsoSource",
    "procedural": "nova3d.data.sources.procedural:ProceduralSource",
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
    return cast(Source, lazy.resolve(SOURCES[config.kind])(config))
