"""The schema of `configs/fusion/*.yaml`. Lengths are world units: the object's longest side is 1, an image spans 1.5.

The paper names the terms of the loss but prints no weight, so each default says where its value comes from.
Systems cited: Wonder3D (arXiv 2310.15008, released code), NeuS (2106.10689), SparseNeuS (2206.05737), Instant-NGP
(2201.05989), Neuralangelo (2306.03092), instant-nsr-pl (bennyguo), BARF (2104.06405). "Measured" values were chosen
with `benchmarks/fusion.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from nova3d.config import Range, Sentinel
from nova3d.errors import InputError

Weight = Any
"""A loss weight: a number, or a schedule [start, value, value, stop] over the share of the run."""

ConflictMode = Literal["mlp", "closed_form", "trimmed", "none"]
CONFLICT_MODES: tuple[ConflictMode, ...] = get_args(ConflictMode)
MLP, CLOSED_FORM, TRIMMED, NONE = CONFLICT_MODES


@dataclass
class EncodingConfig:
    """The multi-resolution hash grid (Instant-NGP, arXiv 2201.05989)."""

    backend: Literal["auto", "torch", "numba", "tcnn"] = "auto"
    """torch, numba (CPU) or tcnn (CUDA); auto takes the fastest one that is installed."""
    levels: Annotated[int, Range(1, 32)] = 10
    """Number of grid levels."""
    features: Annotated[int, Range(1, 16)] = 2
    """Features per level. Instant-NGP: 2."""
    log2_table: Annotated[int, Range(1, 26)] = 15
    """Log2 of the entries per level. Instant-NGP and Wonder3D: 19, which 256 px images do not need (measured)."""
    base: Annotated[int, Range(1, 4096)] = 16
    """Cells across the box at the coarsest level. Instant-NGP: 16."""
    finest: Annotated[int | None, Range(1, 65536)] = None
    """Cells across the box at the finest level; null: the images' height (measured: finer grids diverge)."""
    start_levels: Annotated[float, Range(0)] = 4.0
    """Levels that are open at the start; the others open one by one. Neuralangelo and Wonder3D: 4."""
    open_until: Annotated[float, Range(0, 1)] = 0.8
    """Share of the run after which all levels are open (measured)."""
    init: Annotated[float, Range(0, 1)] = 1e-4
    """Tables start uniform in +-init. Instant-NGP: 1e-4."""


@dataclass
class FieldConfig:
    """The networks of signed distance and colour, and the sharpness of the surface."""

    hidden: Annotated[int, Range(1, 4096)] = 64
    """Width of the SDF network's one hidden layer. Wonder3D: 64."""
    geometry_features: Annotated[int, Range(1, 4096)] = 12
    """Outputs of the SDF network beside the distance. Wonder3D: 12."""
    beta: Annotated[float, Range(1e-3, 1_000_000)] = 100.0
    """Sharpness of the softplus activation. NeuS: 100."""
    colour_hidden: Annotated[int, Range(1, 4096)] = 64
    """Width of the colour network's two hidden layers. Wonder3D: 64."""
    inv_s: Annotated[float, Range(1e-3, 1_000_000)] = 60.0
    """Inverse standard deviation s of the NeuS paper at the start. NeuS and Wonder3D start at exp(3) = 20 on a sphere.

    A visual hull is a better first guess, so the start is sharper here.
    """
    normals: Literal["analytic", "tetrahedral"] = "analytic"
    """analytic, or tetrahedral: finite differences over a cell of the finest open level, as in Neuralangelo."""
    radius: Annotated[float, Range(0.1, 10)] = 0.6
    """Half the side of the box that the field fills; the object's own half side is 0.5."""
    init: Literal["hull", "sphere"] = "hull"
    """hull: regress the visual hull's distance first; sphere: the geometric initialisation of IDR and NeuS."""


@dataclass
class HullConfig:
    """The visual hull, and the SDF cached on its grid, which guide the sampling."""

    resolution: Annotated[int, Range(8, 1024)] = 96
    """Grid nodes along each side of the box."""
    dilate: Annotated[float, Range(0, 1)] = 0.02
    """How far outside the hull the surface may lie."""
    reach: Annotated[float, Range(0, 1)] = 0.01
    """How far the surface may lie from the consistent volume, on either side, where views carry a calibration.

    About the step of the grid (measured).
    """
    tolerance: Annotated[float, Range(0, 1)] = 0.1
    """Share of the views that may see background at a node which is kept (1 of 16)."""
    fit_steps: Annotated[int, Range(0, 1_000_000)] = 120
    """Steps that regress the hull's distance before any rendering."""
    refresh: Annotated[int, Range(1, 1_000_000)] = 25
    """Steps between two evaluations of the cached SDF."""


@dataclass
class SamplingConfig:
    """Rays per step and points per ray."""

    backend: Literal["auto", "torch", "nerfacc"] = "auto"
    """Ray marching by torch or nerfacc (CUDA); auto takes nerfacc where it works."""
    rays: Annotated[int, Range(1, 2**20)] = 256
    """Rays per step (measured: more steps are better than more rays)."""
    samples: Annotated[int, Range(1, 4096)] = 16
    """Samples per ray."""
    probes: Annotated[int, Range(1, 65536)] = 128
    """Marching steps across the box's diagonal, at which the cached SDF is read."""
    min_weight: Annotated[float, Range(0, 1)] = 1e-3
    """Samples with a lower rendering weight get no colour, normal and conflict."""
    random_points: Annotated[int, Range(1, 2**20)] = 256
    """Random points per step for the regularisers. Wonder3D: 2048 beside 262144 samples."""
    foreground: Annotated[float, Range(0, 1)] = 0.7
    """Share of the rays drawn on the object; the others come from the ring around it."""
    ring_px: Annotated[float, Range(0, 10_000)] = 6.0
    """Width of that ring in pixels at 256 px."""


@dataclass
class LossConfig:
    """Weights of the terms of eq. 6. Each may be a number or a schedule [start, value, value, stop]."""

    colour: Weight = 1.0
    """Colour term, eq. 5. The paper's sum has no weights."""
    normal: Weight = 1.0
    """Normal term. Wonder3D: 1."""
    mask: Weight = 1.0
    """Mask term. Wonder3D: 1."""
    eikonal: Weight = 0.1
    """Eikonal term. NeuS: 0.1; Wonder3D: 0.2, "too large causes holes in thin objects"."""
    sparse: Weight = 0.1
    """Sparsity term. Wonder3D: 0.5; SparseNeuS: 0.02."""
    smooth: Weight = 0.1
    """Smoothness term. Wonder3D: 1."""
    solid: Weight = 10.0
    """Weight of staying within `hull.reach` of the consistent volume, where views carry a calibration (measured)."""
    sparse_tau: Annotated[float, Range(0, 1_000_000)] = 200.0
    """tau of the sparsity term. SparseNeuS: 100 where the box's half side is 1."""
    smooth_delta: Annotated[float, Range(0, 1)] = 0.005
    """Standard deviation of the smoothness term's offsets. Wonder3D: 0.01 where the box's half side is 1."""
    normal_keep: Annotated[float, Range(0, 1)] = 1.0
    """Share of the rays, lowest normal error first, that count. Wonder3D: 0.8, which is blunter (measured)."""
    input_view: Annotated[float, Range(0, 1_000_000)] = 2.0
    """Weight of the trusted views, such as the input picture, among views that are not. Where all views are alike: of
    view 0, while the other poses are refined."""

    def __post_init__(self) -> None:
        for name in ("colour", "normal", "mask", "eikonal", "sparse", "smooth", "solid"):
            check_weight(f"loss.{name}", getattr(self, name))


@dataclass
class PoseConfig:
    """The per-view pose refinement M_v (paper III)."""

    enabled: bool = True
    """Whether poses are refined."""
    start: Annotated[float, Range(0, 1)] = 0.05
    """Share of the run before which poses are fixed."""
    stop: Annotated[float, Range(1e-6, 1)] = 0.8
    """Share of the run after which poses are fixed."""
    lr: Annotated[float, Range(0, 10)] = 1e-3
    """Learning rate. BARF: 1e-3."""
    final_lr: Annotated[float, Range(0, 1)] = 0.01
    """Learning rate at `stop` as a share of `lr`. BARF: 0.01."""
    average: Annotated[float, Range(0, 1)] = 0.98
    """Decay of the running mean that replaces the poses when they are frozen (about the last 50 steps)."""
    prior_rotation: Annotated[float, Range(0, 1_000_000)] = 0.004
    """Weight of the rotation prior per radian (measured)."""
    prior_translation: Annotated[float, Range(0, 1_000_000)] = 0.004
    """Weight of the translation prior per world unit (measured)."""
    recarve: Annotated[float, Range(0, 1)] = 0.2
    """Share of the run after which the hull is carved again with the current poses."""
    slack: Annotated[float, Range(0, 1)] = 0.06
    """How much further outside the hull the surface may lie while poses move."""
    max_rotation_deg: Annotated[float, Range(0, 180)] = 8.0
    """Largest rotation of a view, in degrees."""
    max_translation: Annotated[float, Range(0, 10)] = 0.1
    """Largest translation of a view."""
    normals_follow: bool = False
    """Whether a view's normals rotate with its pose. All normal maps share one frame, so by default they do not."""


@dataclass
class ConflictConfig:
    """The conflict field f_psi and its penalty lambda_0 (paper III, eq. 5)."""

    mode: ConflictMode = "mlp"
    """mlp: the paper's f_psi. Ablation arms: closed_form (no network), trimmed (Wonder3D), none."""
    start: Annotated[float, Range(0, 1)] = 0.2
    """Share of the run before which H is 0, so that ignoring everything is never the cheapest answer."""
    hidden: Annotated[int, Range(1, 4096)] = 64
    """Width of f_psi's hidden layers."""
    layers: Annotated[int, Range(1, 32)] = 2
    """Number of f_psi's hidden layers."""
    bands: Annotated[int, Range(0, 32)] = 5
    """Frequency bands of the positional encoding of x (measured)."""
    view_embedding: Annotated[int, Range(1, 4096)] = 16
    """Width of the view embedding l."""
    bias: Annotated[float, Range(-100, 100)] = -4.0
    """Bias of f_psi's output: h starts at sigmoid(bias) = 0.02."""
    lambda_start: Annotated[float, Range(1e-6, 1_000_000)] = 1.0
    """lambda_0 at `start`."""
    lambda_end: Annotated[float, Range(0, 1_000_000)] = 0.15
    """lambda_0 at the end. H* = r / (2 lambda_0), so at 0.15 a residual of 0.3 is ignored."""
    floor: Annotated[float, Range(0, 1_000_000)] = 10.5
    """lambda_0 stays above this multiple of the mean residual; mean H then stays below 1 / (2 floor)."""
    consensus: bool = True
    """After the fit, base H on what the other views show at the same point; false: the paper alone."""
    polish_steps: Annotated[int, Range(0, 1_000_000)] = 600
    """Steps in which f_psi learns from the consensus (measured)."""
    polish_rays: Annotated[int, Range(1, 2**20)] = 2048
    """Pixels per step of that."""
    trim: Annotated[float, Range(0, 1)] = 0.2
    """Share of the rays that `trimmed` leaves out. Wonder3D: 0.2."""
    detach: bool = True
    """Whether f_psi's inputs and rendering weights are detached from geometry and colour."""
    warn_mean: Annotated[float, Range(0, 1)] = 0.5
    """Mean H on the foreground above which a warning is logged."""

    def __post_init__(self) -> None:
        if self.mode not in CONFLICT_MODES:
            raise InputError(f"conflict.mode '{self.mode}' is none of {', '.join(CONFLICT_MODES)}")


@dataclass
class FitConfig:
    """The optimiser and its schedule."""

    steps: Annotated[int, Range(0, 10_000_000)] = 1000
    """Number of steps (measured)."""
    lr_grid: Annotated[float, Range(0, 10)] = 1e-2
    """Learning rate of the hash grid. Wonder3D: 1e-3 for 3000 steps; instant-nsr-pl: 1e-2."""
    lr_mlp: Annotated[float, Range(0, 10)] = 1e-3
    """Learning rate of the SDF and colour networks. Wonder3D: 1e-3 (measured)."""
    lr_inv_s: Annotated[float, Range(0, 10)] = 1e-3
    """Learning rate of the sharpness. Wonder3D: 1e-3."""
    lr_conflict: Annotated[float, Range(0, 10)] = 1e-2
    """Learning rate of f_psi, which starts late and has little time (measured)."""
    warm_up: Annotated[float, Range(0, 1)] = 0.03
    """Share of the run with a linear warm-up."""
    final_lr: Annotated[float, Range(0, 1)] = 0.05
    """Learning rate at the end as a share of the first. NeuS: 0.05."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random."""
    time_budget: Annotated[float | None, Range(0)] = None
    """Seconds for the whole reconstruction, which the schedule is shortened to meet; null: no limit."""


@dataclass
class ExtractConfig:
    """Mesh extraction by marching cubes."""

    resolution: Annotated[int, Range(8, 2048)] = 192
    """Marching cubes cells across the box. Wonder3D: 192."""
    coarse: Annotated[int, Range(4, 1024)] = 64
    """Cells of the coarse grid; only those near the surface are evaluated finely."""
    min_component: Annotated[float, Range(0, 1)] = 0.01
    """Components with less than this share of the largest one's area are dropped."""
    faces: Annotated[int, Range(4, 100_000_000)] = 20000
    """Number of faces after decimation."""
    kernel: Literal["skimage", "mcubes"] = "skimage"
    """Marching cubes by skimage or mcubes (PyMCubes, the extra `mcubes`); they differ only in ambiguous cells."""
    depth_ratio: Annotated[float | None, Range(0.05, 10)] = None
    """Length of the object from front to back over its longest side in the picture, where it is known. The finished
    mesh is stretched or compressed to it; seen from the front it stays the same. Only for views made from one picture.
    null: as fitted."""


@dataclass
class TextureConfig:
    """The texture and its atlas."""

    mode: Literal["uv", "vertex"] = "uv"
    """uv: an atlas with a texture; vertex: vertex colours only."""
    size: Annotated[int, Range(16, 16384)] = 1024
    """Side of the texture in texels."""
    most: Annotated[int, Range(16, 16384)] = 2048
    """Largest side that the texture grows to where trusted views, such as the input picture, have finer pixels."""
    atlas: Literal["projected", "xatlas"] = "projected"
    """projected: flat projections, in a second; xatlas (the extra `xatlas`): fewer, less stretched charts in
    5 to 15 seconds."""
    atlas_seconds: Annotated[float, Range(0)] = 60.0
    """Time limit of xatlas, after which `projected` is used."""
    power: Annotated[float, Range(0, 100)] = 2.0
    """Views are blended by cos^power * (1 - H)^2."""
    top_views: Annotated[int | None, Sentinel(0), Range(1)] = 3
    """Best views per texel that are blended; null: all (measured: equal on true views, otherwise sharper)."""
    min_cos: Annotated[float, Range(0, 1)] = 0.15
    """Least cosine between the surface normal and the direction to a view that is used."""
    erode_px: Annotated[float, Range(0, 10_000)] = 1.0
    """Width of the masks' rim whose colours are not used: in pixels at 256 px, and in own pixels of trusted views among
    others."""
    smooth_unseen: bool = True
    """Shift the colour field where no view sees the surface, so that it meets the baked colours."""


@dataclass
class FusionConfig:
    """All settings of `nova3d.fusion.reconstruct`."""

    encoding: EncodingConfig = dataclasses.field(default_factory=EncodingConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    hull: HullConfig = dataclasses.field(default_factory=HullConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    pose: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    conflict: ConflictConfig = dataclasses.field(default_factory=ConflictConfig)
    optim: FitConfig = dataclasses.field(default_factory=FitConfig)
    extract: ExtractConfig = dataclasses.field(default_factory=ExtractConfig)
    texture: TextureConfig = dataclasses.field(default_factory=TextureConfig)


def check_weight(name: str, weight: Any) -> None:
    """Check a loss weight.

    Args:
        name: the config key, for the message.
        weight: a number, or [start, value, value, stop] with 0 <= start < stop <= 1.

    Raises:
        InputError: naming the key, where `weight` is neither.
    """
    numbers = weight if isinstance(weight, list | tuple) else [weight]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise InputError(f"{name}: '{weight}' must be a number or [start, value, value, stop]")
    if isinstance(weight, list | tuple) and (len(weight) != 4 or not 0 <= weight[0] < weight[3] <= 1):
        raise InputError(f"{name}: {list(weight)} must be [start, value, value, stop] with 0 <= start < stop <= 1")
