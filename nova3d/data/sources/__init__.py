"""Where the objects come from: a list of assets, and the file of each when it is needed."""

from nova3d.data.assets import Asset
from nova3d.data.sources.base import Progress, Source, SourceConfig, read_uids
from nova3d.data.sources.folder import FolderSource
from nova3d.data.sources.gso import GsoSource
from nova3d.data.sources.objaverse import ObjaverseSource
from nova3d.errors import InputError

__all__ = ["Asset", "Progress", "Source", "SourceConfig", "make_source", "read_uids"]


def make_source(config: SourceConfig) -> Source:
    """The source that `config` describes. Raises InputError for an unknown kind or a missing package."""
    match config.kind:
        case "folder":
            return FolderSource(config)
        case "gso":
            return GsoSource(config)
        case "objaverse":
            return ObjaverseSource(config)
    raise InputError(f"source kind '{config.kind}' is not one of folder, objaverse, gso")
