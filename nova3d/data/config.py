"""Settings of data sets: shard folders, augmentation, the filters of renders. They are read without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class AugmentConfig:
    """What may change; the defaults change nothing."""

    mirror: float = 0.0
    """Share of the samples that are mirrored, left to right."""
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Least and greatest factor of the size."""
    hue_deg: float = 0.0
    """The colour circle turns by up to so many degrees, either way."""
    saturation: float = 0.0
    """Saturation is multiplied by a factor between 1 - x and 1 + x."""
    brightness: float = 0.0
    """Brightness is multiplied by a factor between 1 - x and 1 + x."""
    light: float = 0.0
    """A directional light from a random side multiplies the brightness by 1 + light where a surface faces it, by
    1 - light where it faces away."""
    frame: float = 0.0
    """Share of the samples that are framed as a photo is, in place of `scale`: the outline in the input view fills two
    thirds of the picture, or less where another view would be cut."""

    @property
    def active(self) -> bool:
        """Whether any sample can come out changed."""
        return self != AugmentConfig()


@dataclass
class FilterConfig:
    """Thresholds. A measure on the wrong side of its threshold tags the object; the codes in `reject` refuse it."""

    empty_view: float = 0.0005
    """A view with less coverage shows nothing (0.0005: 33 pixels of 256x256)."""
    empty_views: float = 0.25
    """blank_render above this share of such views; a card seen edge-on (2 of 16) is thin instead."""
    darkness: float = 2 / 255
    """blank_render where no pixel of any view is brighter (sRGB); below 2/255 a picture is a silhouette."""
    border: float = 0.004
    """clipped where a view's outermost pixels are covered by more than this share (0.004: 4 of 1020 pixels)."""
    coverage: float = 0.02
    """tiny_coverage below this mean share of the picture, as when a stray speck shrinks the object."""
    thin: float = 0.05
    """thin below this ratio of the smallest view's area to the largest's."""
    opacity: float = 0.8
    """transparent below this mean opacity of the surface."""
    mask_agreement: float = 0.95
    """transparent where a smaller share of the colour mask's pixels have a normal."""
    overexposed: float = 0.05
    """emissive above this share of covered pixels clipped at white."""
    colour_spread: float = 0.02
    """untextured below this relative deviation of the colours from a uniform matt surface under any light."""
    magenta: float = 0.01
    """missing_texture above this share of pure magenta, Blender's colour of a missing picture."""
    normals_angle_deg: float = 75.0
    """The largest angle between a normal and the depth's normal at which they agree. Smooth shading of coarse meshes is
    up to 50 degrees off, pixels that mix two faces up to 70, a flipped face 180."""
    normals_agree: float = 0.9
    """normals_disagree where a smaller share of the pixels agree."""
    inverted_hull: float = 0.0
    """inverted_hull above this share of faces that are a toon outline: a shell turned inside out around the object."""
    reject: list[str] = field(
        default_factory=lambda: [
            "blank_render",
            "clipped",
            "tiny_coverage",
            "thin",
            "transparent",
            "missing_texture",
            "normals_disagree",
        ]
    )
    """The codes that refuse an object; the others only tag it."""


def shard_folders(folder: str | Path | Sequence[str | Path]) -> list[Path]:
    """The folders that a setting names: one, a sequence, or text with commas between them."""
    if not isinstance(folder, str | Path):
        return [Path(f) for f in folder]
    if isinstance(folder, Path) or "," not in folder or Path(folder).is_dir():
        return [Path(folder)]
    return [Path(name.strip()) for name in folder.split(",") if name.strip()]
