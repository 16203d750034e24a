"""A protocol: every choice that moves a number, frozen and hashed."""

from dataclasses import asdict, dataclass

from nova3d.errors import InputError
from nova3d.provenance import hash_json

METRICS_VERSION = 1  # part of every hash: raise it whenever a metric's or a floor's definition changes


@dataclass(frozen=True)
class Protocol:
    """What is scored and how; the schema of configs/eval/*.yaml.

    name: printed with the hash over every table.
    cameras: the preset (nova3d.cameras) the reference views must have been rendered with; "any" skips that check.
    include_input_view: whether view 0, which a method is given, is scored with the others.
    objects: the folders to score; empty means every object of the references.
    surface_samples, seed: points per mesh for Chamfer distance, F-score and normal consistency.
    f_score_thresholds: in longest sides of the reference's box.
    iou_resolution: voxels along the longest side.
    """

    name: str = "nova3d-el0"
    cameras: str = "ortho16"
    include_input_view: bool = False
    objects: tuple[str, ...] = ()
    surface_samples: int = 100_000
    f_score_thresholds: tuple[float, ...] = (0.01, 0.02)
    iou_resolution: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.surface_samples < 1 or self.iou_resolution < 2:
            raise InputError(f"protocol '{self.name}': surface_samples must be at least 1 and iou_resolution 2")
        if not all(limit > 0 for limit in self.f_score_thresholds):
            raise InputError(f"protocol '{self.name}': f_score_thresholds must be positive")

    @property
    def hash(self) -> str:
        """16 hex digits over every field and the version of the metrics; equal hashes make comparable tables."""
        return hash_json({"metrics": METRICS_VERSION, **asdict(self)})
