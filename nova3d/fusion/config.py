"""The schema of `configs/fusion/*.yaml`. Lengths are world units (the object's longest side is 1, an image spans 1.5).

The paper names the terms of the loss but prints no weight; each default names where its value comes from.
Systems cited: Wonder3D (arXiv 2310.15008, released code), NeuS (2106.10689), SparseNeuS (2206.05737),
instant-nsr-pl (bennyguo), BARF (2104.06405). Values marked "measured" were chosen by `benchmarks/fusion.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from nova3d.errors import InputError
from nova3d.fusion.schedules import check

# A weight that may change over the run: a number, or [start, value, value, stop] (see nova3d.fusion.schedules).
Weight = Any

CONFLICT_MODES = ("mlp", "closed_form", "trimmed", "none")


@dataclass
class EncodingConfig:
    """The multi-resolution hash grid (Instant-NGP, 2201.05989)."""

    backend: str = "auto"  # torch | numba (CPU) | tcnn (CUDA); auto: the fastest one that is installed
    levels: int = 10
    features: int = 2  # per level; Instant-NGP
    log2_table: int = 15  # entries per level; Instant-NGP and Wonder3D 19, which 256 px images do not need (measured)
    base: int = 16  # cells across the box at the coarsest level; Instant-NGP
    finest: int | None = None  # at the finest level; null: the images' height (measured: finer diverges)
    start_levels: float = 4.0  # open at the start, then one by one; Neuralangelo, Wonder3D: 4
    open_until: float = 0.8  # share of the run after which all levels are open (measured)
    init: float = 1e-4  # tables start uniform in +-init; Instant-NGP


@dataclass
class FieldConfig:
    hidden: int = 64  # one hidden layer; Wonder3D
    geometry_features: int = 12  # beside the SDF; Wonder3D
    beta: float = 100.0  # of the softplus; NeuS
    colour_hidden: int = 64  # two hidden layers; Wonder3D
    inv_s: float = 60.0  # sharpness at the start; NeuS and Wonder3D exp(3) = 20 on a sphere; a hull is a better guess
    normals: str = "analytic"  # or "tetrahedral": finite differences over a cell of the finest open level; Neuralangelo
    radius: float = 0.6  # half the side of the box the field fills; the object's own half side is 0.5
    init: str = "hull"  # "hull": fit the visual hull first; "sphere": the geometric initialisation of IDR and NeuS


@dataclass
class HullConfig:
    resolution: int = 96  # cells across the box of the visual hull and of the cached SDF that guides sampling
    dilate: float = 0.02  # how far outside the hull the surface may lie
    tolerance: float = 0.1  # share of views that may disagree before a cell is carved away (one of 16)
    fit_steps: int = 120  # steps that regress the hull's distance, without rendering
    refresh: int = 25  # steps between two readings of the SDF into the cache


@dataclass
class SamplingConfig:
    backend: str = "auto"  # of the march through empty space: torch | nerfacc (CUDA); auto: the latter where it works
    rays: int = 256  # per step (measured: more steps beat more rays)
    samples: int = 16  # per ray
    probes: int = 128  # steps of the march across the box, where the cached SDF is read to place the samples
    min_weight: float = 1e-3  # samples with less weight are not asked for colour, normal and conflict
    random_points: int = 256  # per step, for the regularisers; Wonder3D 2048 beside 262144 samples
    foreground: float = 0.7  # share of rays drawn on the object, the others on the ring around it
    ring_px: float = 6.0  # width of that ring at 256 px


@dataclass
class LossConfig:
    colour: Weight = 1.0  # the paper's sum has no weights
    normal: Weight = 1.0  # Wonder3D
    mask: Weight = 1.0  # Wonder3D
    eikonal: Weight = 0.1  # NeuS; Wonder3D 0.2, "too large causes holes in thin objects"
    sparse: Weight = 0.1  # Wonder3D 0.5, SparseNeuS 0.02
    smooth: Weight = 0.1  # Wonder3D 1.0
    sparse_tau: float = 200.0  # SparseNeuS: 100 where the box's half side is 1
    smooth_delta: float = 0.005  # Wonder3D: 0.01 where the box's half side is 1
    normal_keep: float = 1.0  # share of rays with the lowest normal error that count; Wonder3D 0.8, blunter (measured)
    input_view: float = 2.0  # weight of view 0, the one picture that is not generated

    def __post_init__(self) -> None:
        for name in ("colour", "normal", "mask", "eikonal", "sparse", "smooth"):
            check(f"loss.{name}", getattr(self, name))


@dataclass
class PoseConfig:
    """The per-view refinement M_v (paper III)."""

    enabled: bool = True
    start: float = 0.05  # share of the run before which, and after `stop` of which, poses stand still
    stop: float = 0.8
    lr: float = 1e-3  # BARF
    final_lr: float = 0.01  # of the first; BARF
    average: float = 0.98  # of the running mean that is taken when the poses are frozen: of about the last 50 steps
    prior_rotation: float = 0.004  # per radian (measured)
    prior_translation: float = 0.004  # per world unit (measured)
    recarve: float = 0.2  # share of the run after which the hull is carved anew by the poses so far
    slack: float = 0.06  # how much further outside the hull the surface may lie while poses may still be wrong
    max_rotation_deg: float = 8.0
    max_translation: float = 0.1
    normals_follow: bool = False  # whether a view's normals turn with its pose; they share one frame, so no


@dataclass
class ConflictConfig:
    """The conflict field f_psi and its penalty lambda_0 (paper III)."""

    mode: str = "mlp"  # the paper's f_psi; ablation arms: closed_form (no network), trimmed (Wonder3D), none
    start: float = 0.2  # share of the run before which H is 0, so that "ignore everything" is never the cheapest answer
    hidden: int = 64
    layers: int = 2
    bands: int = 5  # of the positional encoding of x (measured)
    view_embedding: int = 16
    bias: float = -4.0  # h starts at sigmoid(bias) = 0.02
    lambda_start: float = 1.0  # annealed to lambda_end; H* = r / (2 lambda_0): at 0.15 a residual of 0.3 is ignored
    lambda_end: float = 0.15
    floor: float = 10.5  # lambda_0 stays above this times the mean residual: mean H then stays below 1 / (2 floor)
    consensus: bool = True  # after the fit, H rests on what the other views show there; false: the paper alone
    polish_steps: int = 600  # in which f_psi learns that (measured)
    polish_rays: int = 2048
    trim: float = 0.2  # share of rays that "trimmed" leaves out; Wonder3D
    detach: bool = True  # whether f_psi's inputs and rendering weights carry no gradient to geometry and colour
    warn_mean: float = 0.5  # mean H on the foreground above which the log warns

    def __post_init__(self) -> None:
        if self.mode not in CONFLICT_MODES:
            raise InputError(f"conflict.mode '{self.mode}' is none of {', '.join(CONFLICT_MODES)}")


@dataclass
class OptimConfig:
    steps: int = 1000  # measured
    lr_grid: float = 1e-2  # Wonder3D 1e-3 for 3000 steps, instant-nsr-pl 1e-2
    lr_mlp: float = 1e-3  # Wonder3D 1e-3 geometry; measured
    lr_inv_s: float = 1e-3  # Wonder3D
    lr_conflict: float = 1e-2  # f_psi starts late and has little time (measured)
    warm_up: float = 0.03
    final_lr: float = 0.05  # of the first; NeuS
    seed: int = 0
    time_budget: float | None = None  # seconds for the whole reconstruction; the schedule is hurried to meet it


@dataclass
class ExtractConfig:
    resolution: int = 192  # marching cubes cells across the box; Wonder3D
    coarse: int = 64  # only cells of this grid that are near the surface are evaluated finely
    min_component: float = 0.01  # parts with less than this share of the largest one's area are dropped
    faces: int = 20000  # budget after decimation


@dataclass
class TextureConfig:
    mode: str = "uv"  # "uv": an atlas with a texture; "vertex": vertex colours only
    size: int = 1024
    atlas: str = "projected"  # flat projections, in a second; "xatlas": fewer, less stretched charts in 5 to 15 s
    atlas_seconds: float = 60.0  # after which xatlas is ended and the projections take over
    power: float = 2.0  # views are blended by cos^power * (1 - H)^2
    top_views: int = 3  # best views per texel that are blended; 0: all (measured: equal on true views, else sharper)
    input_view: float = 3.0  # weight of view 0, the one picture that is not generated
    min_cos: float = 0.15  # more grazing views are not used
    erode_px: float = 1.0  # rim of the masks, at 256 px, whose colours are not used
    smooth_unseen: bool = True  # shift the colour field's fill to meet the baked colours at the border


@dataclass
class FusionConfig:
    encoding: EncodingConfig = dataclasses.field(default_factory=EncodingConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    hull: HullConfig = dataclasses.field(default_factory=HullConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    pose: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    conflict: ConflictConfig = dataclasses.field(default_factory=ConflictConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    extract: ExtractConfig = dataclasses.field(default_factory=ExtractConfig)
    texture: TextureConfig = dataclasses.field(default_factory=TextureConfig)
