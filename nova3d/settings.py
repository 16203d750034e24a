"""Settings from a picture to a mesh, read and checked without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nova3d.choices import CutoutMethod, Guidance, NetworkDtype, Solver
from nova3d.config import Range, Sentinel
from nova3d.fusion.config import FusionConfig
from nova3d.pipeline.folder import check_model
from nova3d.utils.files import check_file, check_replaceable, to_component, writable_folder
from nova3d.utils.limits import MAX_MEGAPIXELS
from nova3d.utils.resources import Shipped

OUTPUTS = Path("outputs")
"""Where results go when no folder is named."""
LEAST_DEPTH_RATIO, MOST_DEPTH_RATIO = 0.05, 4.0
"""Beyond it the object would be too small in its frame."""
_MOST_SEED = 2**32 - 1


@dataclass
class SampleConfig:
    """The keys of `nova3d sample`."""

    image: Annotated[str, Shipped("asset")] = "assets/images/horse.png"
    """The picture: a file. Its object is cut out as `cutout` says."""
    model: Annotated[str, Shipped("model")] = "assets/nova3d-mini"
    """A model folder, the name of a shipped model or a hub id."""
    out: str | None = None
    """The view folder to write. null: outputs/NAME/views, NAME being the picture's file name without its suffix."""
    steps: Annotated[int | None, Sentinel(0), Range(1)] = None
    """Denoising steps; the pipeline calls them num_inference_steps. null: the model's own."""
    solver: Solver | None = None
    """The solver of the sampling ODE. null: the model's own."""
    guidance_low: Annotated[float | None, Sentinel(-1), Range(0)] = None
    """Guidance scale at the input view (triangle) or at the first view (linear). null: the model's own."""
    guidance_high: Annotated[float | None, Sentinel(-1), Range(0)] = None
    """Guidance scale behind the object (triangle), at the last view (linear) or everywhere (constant). null: the
    model's own. Low and high of 1 turn guidance off at half the time."""
    guidance_kind: Guidance = "triangle"
    """triangle: over the azimuth. linear: over the views, as SVD. constant: guidance_high everywhere."""
    noise_aug: Annotated[float, Range(0)] = 0.02
    """Standard deviation of the noise on the condition picture, pixels in [-1,1]; the pipeline's noise_aug_strength."""
    keep_input: bool = True
    """View 0 shows the input picture itself."""
    keep_known: bool = False
    """Every estimate of the views keeps what is known before sampling: view 0's colours, and background that no object
    with the picture's outline reaches. Needs level orthographic cameras."""
    framed: bool = False
    """The picture is already what view 0's camera sees."""
    depth_ratio: Annotated[float | None, Range(LEAST_DEPTH_RATIO, MOST_DEPTH_RATIO)] = None
    """Length of the object from front to back over its longest side in the picture, where it is known. Above 1 it is
    framed that much smaller, which tells the model that it is longer. `generate` gives the mesh this depth;
    `reconstruct` has extract.depth_ratio for it. null: unknown."""
    cutout: CutoutMethod = "auto"
    """What cuts the object out. alpha: the picture's own. plain: a background of one colour. model: U-2-Net. none: the
    whole picture is the object. auto: alpha where it separates an object, else plain, else model."""
    mask: str | None = None
    """A picture of the same size whose white is the object, instead of `cutout`. null: none."""
    elevation_deg: Annotated[float, Range(-90, 90)] = 0.0
    """Degrees from which the picture looks down on the object. It is recorded and compared with the model's input view.
    A model for level pictures cannot use it: a warning says so."""
    max_megapixels: Annotated[float, Range(0.001)] = MAX_MEGAPIXELS
    """Millions of pixels above which a picture is refused before it is decoded."""
    seed: Annotated[int, Range(0, _MOST_SEED)] = 0
    """Of all noise."""
    seeds: list[int] = field(default_factory=list)
    """Sample views with each of these seeds, and take those that agree best with one another and with the picture
    (`nova3d.candidates`). Empty: `seed` alone."""
    keep_candidates: bool = False
    """Write the views of all `seeds` into OUT/candidates too."""
    dtype: NetworkDtype = "float32"
    """Of the networks. The sampler's state is always float32."""
    low_memory: bool = False
    """The smallest pieces, and on an accelerator only the network that works: less memory, more time, the same
    result."""
    compile: bool = False
    """torch.compile of the UNet: pays only where many pictures follow one another."""

    @property
    def framing_ratio(self) -> float:
        """How many times smaller than by its outline the object is framed, at least 1."""
        return max(self.depth_ratio or 1.0, 1.0)


@dataclass
class GenerateConfig:
    """The keys of `nova3d generate`."""

    out: str | None = None
    """The folder to write. null: outputs/NAME, NAME being the picture's file name without its suffix; of several
    pictures each has a folder of its own in OUT, and null is outputs."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Picture to views; `sample.out` is OUT/views whatever it says."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Views to mesh."""
    turntable_frames: Annotated[int, Range(1, 3600)] = 36
    """Pictures of the film of one turn, turntable.mp4."""
    turntable_size: Annotated[int, Range(16, 4096)] = 320
    """Their side in pixels."""


def default_out(picture: str | Path) -> Path:
    """The folder for the results of a picture when none is named.

    Args:
        picture: its file.

    Returns:
        outputs/NAME, NAME being the file's name without its suffix.
    """
    return OUTPUTS / to_component(Path(picture).stem)


def check_inputs(config: SampleConfig) -> None:
    """Check that the picture, its mask and the model are there, before torch is imported and anything is read.

    Args:
        config: the settings. A hub id is not looked up.

    Raises:
        InputError: naming the first that is missing.
    """
    check_file(config.image, "image")
    if config.mask:
        check_file(config.mask, "mask")
    check_model(config.model)


def views_folder(config: SampleConfig, make: bool = True) -> Path:
    """Check, and make, the folder that views are sampled into.

    Args:
        config: the settings.
        make: False leaves the disk as it is.

    Returns:
        `out`, or outputs/NAME/views.

    Raises:
        InputError: where it cannot be written, or holds folders of the same names that are no earlier result's.
    """
    folder = writable_folder(config.out or default_out(config.image) / "views", make)
    check_replaceable(folder, ("rgb", "normal", "detail", "candidates"))
    return folder


def results_folder(config: GenerateConfig, make: bool = True) -> Path:
    """Check, and make, the folder of one picture's results.

    Args:
        config: the settings.
        make: False leaves the disk as it is.

    Returns:
        `out`, or outputs/NAME.

    Raises:
        InputError: where it cannot be written, or holds a folder `views` that is no earlier result's, neither of this
            verb nor of `nova3d sample`.
    """
    folder = writable_folder(config.out or default_out(config.sample.image), make)
    check_replaceable(folder, ("views",))
    return folder
