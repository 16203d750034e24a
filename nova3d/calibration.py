"""How far a model's views can be believed: weights of evidence for a solid, measured on objects with known views.

A calibration belongs to one model and lies in its folder as calibration.json. It travels with the views that the model
makes, in transforms.json, so that fusion needs no model. `nova3d.volume` and `nova3d.fusion.texture` use it;
nova3d calibrate makes it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.utils.files import read_json, write_json

FILE = "calibration.json"
OFFSETS_DEG = tuple(22.5 * k for k in range(1, 9))  # between a generated view and the trusted one
PRIOR_TERMS = (7, 5)  # of `nova3d.volume.prior_features`: all, or those of calibrations before the width of parts
_VIEWS = 16  # for which the votes are measured


@dataclass(frozen=True)
class Calibration:
    """Weights of evidence in log-odds, of what makes a point belong to the object, and of colours and normals.

    Attributes:
        object: for each of OFFSETS_DEG, the vote of a view at that azimuth from the trusted one where it shows object.
        background: the same where it shows background.
        prior: weights of `nova3d.volume.prior_features` of the inflated outline; fewer are those of the first ones.
        colours: for each of OFFSETS_DEG, the share in [0,1] of a view's colours at that azimuth in those of the object;
            the rest are the trusted picture's own, carried through the object.
        inflated_normals: share in [0,1] of the inflated outline's normals in those of the input view; the rest are the
            model's.
        facts: how it was measured, for readers: objects, figures, what it was fitted on.
    """

    object: tuple[float, ...]
    background: tuple[float, ...]
    prior: tuple[float, ...]
    colours: tuple[float, ...] = (1.0,) * len(OFFSETS_DEG)
    inflated_normals: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def votes(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The votes of views that show object and background, interpolated between the offsets that were measured.

        Args:
            offsets: [v] float, azimuth from the trusted view in radians, any sign.

        Returns:
            Two [v] float32 tensors, for object and for background.
        """
        shares = offset_shares(offsets)
        for_object, for_background = (shares @ shares.new_tensor(votes) for votes in (self.object, self.background))
        return for_object, for_background

    def colour_shares(self, offsets: Tensor) -> Tensor:
        """The shares of views in the object's colours, interpolated between the offsets that were measured.

        Args:
            offsets: [v] float, azimuth from the trusted view in radians, any sign.

        Returns:
            [v] float32 in [0,1].
        """
        shares = offset_shares(offsets)
        return (shares / shares.sum(dim=1, keepdim=True)) @ shares.new_tensor(self.colours)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Any, source: str) -> "Calibration":
        """The inverse of `to_dict`.

        Args:
            content: read from a file.
            source: the file's name, with which messages begin.

        Returns:
            The calibration.

        Raises:
            InputError: where a key is missing or unknown, or numbers are not finite or too few.
        """
        names = [f.name for f in fields(Calibration)]
        if not isinstance(content, Mapping) or set(content) != set(names):
            raise InputError(f"{source}: a calibration has the keys {', '.join(names)}")
        lengths = dict.fromkeys(("object", "background", "colours"), (len(OFFSETS_DEG),)) | {"prior": PRIOR_TERMS}
        for name, allowed in lengths.items():
            values = content[name]
            if not isinstance(values, list | tuple) or len(values) not in allowed or not all(map(_is_finite, values)):
                raise InputError(f"{source}: '{name}' of the calibration must be {allowed[0]} finite numbers")
        if not all(0 <= share <= 1 for share in content["colours"]):
            raise InputError(f"{source}: 'colours' of the calibration must be numbers from 0 to 1")
        share = content["inflated_normals"]
        if not _is_finite(share) or not 0 <= share <= 1 or not isinstance(content["facts"], Mapping):
            raise InputError(f"{source}: 'inflated_normals' must be a number from 0 to 1 and 'facts' an object")
        numbers = {name: tuple(map(float, content[name])) for name in lengths}
        return Calibration(**numbers, inflated_normals=float(share), facts=dict(content["facts"]))

    @staticmethod
    def load(folder: str | Path) -> "Calibration | None":
        """The calibration in a model's folder; None where it has none. Raises InputError for a file that is not one."""
        path = Path(folder) / FILE
        return Calibration.from_dict(read_json(path, dict, "calibration"), str(path)) if path.is_file() else None

    def save(self, folder: str | Path) -> Path:
        """Write calibration.json into a model's folder; returns its path."""
        return write_json(Path(folder) / FILE, self.to_dict())


def offset_shares(offsets: Tensor) -> Tensor:
    """Linear interpolation between OFFSETS_DEG, as a matrix.

    Args:
        offsets: [v] float, azimuths from the trusted view in radians, any sign.

    Returns:
        [v,8] float32. A row sums to 16 / (v + 1), so that few views count as much as 16 do against the prior.
    """
    turn = 2 * math.pi
    away = (offsets % turn).float()
    steps = torch.minimum(away, turn - away) / math.radians(OFFSETS_DEG[0]) - 1  # 0 at the first offset
    number = torch.arange(len(OFFSETS_DEG), device=offsets.device)
    hats = 1 - (steps.clamp(0, len(OFFSETS_DEG) - 1)[:, None] - number).abs()
    return hats.clamp_min(0) * _VIEWS / (len(offsets) + 1)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
