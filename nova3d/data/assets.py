"""One object to render: what it is, where it comes from, and on what terms."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Asset:
    """uid: the object's key everywhere, without dots (a WebDataset key ends at the first). path: the local mesh file,
    "" until fetched. url: where it is fetched from. sha256 and size_bytes of the mesh file, "" and 0 where the source
    does not say. licence: SPDX-like name; attribution: the credit it asks for. split: "train" or "val"."""

    uid: str
    source: str
    path: str = ""
    url: str = ""
    sha256: str = ""
    size_bytes: int = 0
    licence: str = ""
    attribution: str = ""
    title: str = ""
    category: str = ""
    split: str = "train"

    def to_row(self) -> dict[str, Any]:
        """A JSON row; `from_row` reads it back."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Asset":
        """From a row of a plan or a manifest; other columns are ignored."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})
