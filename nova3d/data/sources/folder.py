"""Any folder of mesh files."""

import itertools
from pathlib import Path

from nova3d.data.sources.base import (
    RENDERABLE_SUFFIXES,
    Asset,
    SourceConfig,
    check_file,
    licence_rows,
    select_uids,
    uid_of,
)
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.utils.files import check_folder, readable
from nova3d.utils.progress import Progress


class FolderSource:
    """The GLB, glTF, OBJ and PLY files of a folder, used where they lie.

    A file's stem is its uid (see `uid_of`) and its name in the licence file. Hidden files are passed over. Of a glTF or
    OBJ in several files, the SHA-256 covers the main one.
    """

    def __init__(self, config: SourceConfig):
        self.config = config

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """List the files sorted by uid. Raises InputError for a missing or empty folder, or two files with one uid."""
        folder = check_folder(self.config.path, "source folder")
        found = folder.rglob("*") if self.config.recursive else folder.iterdir()
        found = (p for p in found if p.suffix.lower() in RENDERABLE_SUFFIXES and not p.name.startswith("."))
        paths = sorted((p for p in found if p.is_file()), key=lambda p: (uid_of(p.stem), p))
        if not paths:
            raise InputError(f"no meshes ({', '.join(RENDERABLE_SUFFIXES)}) in '{folder}'")
        for a, b in itertools.pairwise(paths):
            if uid_of(a.stem) == uid_of(b.stem):
                raise InputError(f"'{a}' and '{b}' have the same uid '{uid_of(a.stem)}': rename one of them")
        chosen = select_uids((uid_of(p.stem) for p in paths), self.config)
        paths = [p for p in paths if uid_of(p.stem) in chosen]
        rows = licence_rows(self.config.licences, folder)
        assets = []
        for done, path in enumerate(paths, start=1):
            row = rows.get(path.stem, {})
            assets.append(
                Asset(
                    uid=uid_of(path.stem),
                    source="folder",
                    path=str(path),
                    url=str(row.get("url") or row.get("source_repo") or ""),
                    sha256=str(row.get("sha256", "")),
                    size_bytes=path.stat().st_size,
                    licence=spdx(str(row.get("licence", ""))),
                    attribution=str(row.get("attribution", "")),
                    title=str(row.get("title") or readable(path.stem)),
                    category=str(row.get("category", "")),
                )
            )
            if progress:
                progress(done, len(paths), f"reading, {readable(path.name)}")
        return assets

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """Return the file where it lies, once checked; `folder` is not used."""
        return check_file(Path(asset.path), asset)
