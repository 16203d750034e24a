"""Objects made by number: no file and no network is needed."""

from pathlib import Path

from nova3d.data.sources.base import Asset, SourceConfig, select_uids
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.progress import Progress

LICENCE = "CC0-1.0"


class ProceduralSource:
    """`count` made-up household objects (`nova3d.data.procedural`).

    An object depends on `seed` and its number alone, so a larger `count` adds objects and changes none. The uid is
    procedural_NUMBER; with a seed other than 0, procedural_NUMBER_SEED.
    """

    def __init__(self, config: SourceConfig):
        if config.count < 1 or config.seed < 0:
            raise InputError(
                f"source.count must be at least 1 and source.seed at least 0, got {config.count} and {config.seed}"
            )
        self.config = config
        self._numbers = {self._uid(number): number for number in range(config.count)}

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """List the objects by number. Raises InputError where the uid lists leave none."""
        chosen = select_uids(self._numbers, self.config)
        assets = [
            Asset(uid, "procedural", licence=LICENCE, title=f"Procedural object {number}")
            for uid, number in self._numbers.items()
            if uid in chosen
        ]
        if progress:
            progress(len(assets), len(assets), "procedural objects")
        return assets

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """Make the object and write it into `folder` as a GLB."""
        from nova3d.data.procedural import make_object

        if asset.uid not in self._numbers:
            raise RenderError(Reason.FETCH_FAILED, f"'{asset.uid}' is not one of the {self.config.count} objects")
        path = folder / f"{asset.uid}.glb"
        path.write_bytes(make_object(self.config.seed, self._numbers[asset.uid]).export(file_type="glb"))
        return path

    def _uid(self, number: int) -> str:
        return f"procedural_{number:06d}" + (f"_{self.config.seed}" if self.config.seed else "")
