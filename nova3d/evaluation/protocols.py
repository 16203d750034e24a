"""A protocol: every choice that moves a number, frozen and hashed."""

import re
from dataclasses import asdict, dataclass, field

from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.utils.provenance import hash_json

METRICS_VERSION = 2  # part of every hash: raise it whenever a metric's or a floor's definition changes

KINDS = ("views", "meshes", "textures")
FAILURES = ("refuse", "score")
EDGES = ("blended", "hard")
FRAMES = ("shared", "unit")
POINTS = ("area", "visible16")
ALIGNMENTS = ("known", "bbox", "bbox_yaw", "bbox_yaw_icp", "bbox_yaw_icp_scale")
IMAGE_METRICS = (
    "psnr",
    "psnr_u8",
    "psnr_foreground",
    "psnr_registered4",
    "ssim",
    "ssim_foreground",
    "ssim_own_range",
    "ssim_uniform7_u8",
    "lpips_vgg",
    "lpips_alex",
    "clip_vit_l_14",
    "mask_iou",
    "normals",
)
_IOU = re.compile(r"iou[1-9]\d*_flood|iou64_mesh2sdf")
SPHERE = "sphere26"


@dataclass(frozen=True)
class ViewRules:
    """How predicted views are scored.

    cameras: the preset (nova3d.cameras) the reference views must have been rendered with; "any" skips that check.
    count: how many views an object has; 0 takes the reference's word. size: pixels of a side; 0 likewise.
    include_input_view: whether view 0, which a method is given, is scored with the others.
    scored: the views that are scored, by index; empty means all.
    background: grey level in [0,1] under what is transparent.
    edges: "blended" composites by alpha; "hard" gives every reference pixel with any alpha its full colour (EscherNet).
    metrics: the columns, of IMAGE_METRICS; docs/evaluation.md defines each.
    shifts: the floors "true views shifted by n px".
    """

    cameras: str = "ortho16"
    count: int = 16
    size: int = 256
    include_input_view: bool = False
    scored: tuple[int, ...] = ()
    background: float = 1.0
    edges: str = "blended"
    metrics: tuple[str, ...] = (
        "psnr",
        "psnr_foreground",
        "psnr_registered4",
        "ssim",
        "ssim_foreground",
        "lpips_vgg",
        "lpips_alex",
        "clip_vit_l_14",
        "mask_iou",
        "normals",
    )
    shifts: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class MeshRules:
    """How predicted meshes are scored.

    frame: "shared" moves both meshes by the similarity that centres the reference's box and makes its longest side 1;
        "unit" moves only the reference so, and takes the prediction to be in that frame already (SyncDreamer).
    alignments: what more is done to the prediction, one group of columns each; see `alignment.align`.
    points: where distances are measured: "area" (surface_samples area-weighted points of each mesh) and "visible16"
        (what 16 depth maps see, `mesh_sync`).
    f_score_thresholds: in longest sides of the reference, for "area".
    ious: "iou<R>_flood" (`meshes.volume_iou` at R voxels) or "iou64_mesh2sdf" (`mesh_sync.mesh2sdf_iou`).
    mirror_margin: whether the column of that name is there: the distance of the mirrored prediction minus its own.
    """

    frame: str = "shared"
    alignments: tuple[str, ...] = ("known",)
    points: tuple[str, ...] = ("area",)
    surface_samples: int = 100_000
    f_score_thresholds: tuple[float, ...] = (0.01, 0.02)
    ious: tuple[str, ...] = ("iou128_flood",)
    mirror_margin: bool = True


@dataclass(frozen=True)
class TextureRules:
    """How textured meshes are drawn before their pictures are scored.

    cameras: a preset of nova3d.cameras, or "sphere26": 12 views at elevation 30, 12 at -30 and the two poles.
    size: pixels of a side. supersample: samples per pixel and axis. metrics: of IMAGE_METRICS.
    The light is flat (the base colour itself), the background white; no view is an input view.
    """

    cameras: str = "envision32"
    size: int = 256
    supersample: int = 3
    metrics: tuple[str, ...] = (
        "psnr",
        "psnr_foreground",
        "ssim",
        "lpips_vgg",
        "lpips_alex",
        "clip_vit_l_14",
        "mask_iou",
        "normals",
    )


@dataclass(frozen=True)
class Protocol:
    """What is scored and how; the schema of configs/eval/*.yaml.

    name: printed with the hash over every table.
    kinds: what is scored, of KINDS; a kind that one side has nowhere is left out, unless it is the only one.
    objects: the objects to score; empty means every object of the references.
    failures: what a missing or unusable prediction does: "refuse" raises InputError naming it; "score" gives it the
        score of having returned nothing (a white picture, a speck) and names it in the table.
    seed: of the surface samples.
    hull_cells: along each side of the unit cube in which visual hulls, two of the floors, are carved; 0 for none.
    """

    name: str = "nova3d-el0"
    kinds: tuple[str, ...] = ("views", "meshes")
    objects: tuple[str, ...] = ()
    failures: str = "refuse"
    seed: int = 0
    hull_cells: int = 96
    views: ViewRules = field(default_factory=ViewRules)
    meshes: MeshRules = field(default_factory=MeshRules)
    textures: TextureRules = field(default_factory=TextureRules)

    def __post_init__(self) -> None:
        self._each_of("kinds", self.kinds, KINDS)
        self._each_of("failures", (self.failures,), FAILURES)
        self._check_views(self.views)
        self._check_meshes(self.meshes)
        self._each_of("textures.metrics", self.textures.metrics, IMAGE_METRICS)
        if min(self.textures.size, self.textures.supersample) < 1:
            raise InputError(f"protocol '{self.name}': textures.size and textures.supersample must be at least 1")
        if self.hull_cells < 0:
            raise InputError(f"protocol '{self.name}': hull_cells must not be negative")
        if self.textures.cameras != SPHERE:
            preset(self.textures.cameras)

    @property
    def hash(self) -> str:
        """16 hex digits over every field and the version of the metrics; equal hashes make comparable tables."""
        return hash_json({"metrics": METRICS_VERSION, **asdict(self)})

    def _check_views(self, rules: ViewRules) -> None:
        self._each_of("views.metrics", rules.metrics, IMAGE_METRICS)
        self._each_of("views.edges", (rules.edges,), EDGES)
        if rules.cameras != "any":
            preset(rules.cameras)
        if min(rules.count, rules.size, *rules.scored, *rules.shifts, 0) < 0:
            raise InputError(f"protocol '{self.name}': views.count, size, scored and shifts must not be negative")
        if not 0 <= rules.background <= 1:
            raise InputError(f"protocol '{self.name}': views.background must be a grey level in [0,1]")

    def _check_meshes(self, rules: MeshRules) -> None:
        self._each_of("meshes.frame", (rules.frame,), FRAMES)
        self._each_of("meshes.alignments", rules.alignments, ALIGNMENTS)
        self._each_of("meshes.points", rules.points, POINTS)
        for iou in rules.ious:
            if not _IOU.fullmatch(iou):
                raise InputError(f"protocol '{self.name}': meshes.ious: '{iou}' is not iou<R>_flood or iou64_mesh2sdf")
        if rules.surface_samples < 1 or not all(limit > 0 for limit in rules.f_score_thresholds):
            raise InputError(
                f"protocol '{self.name}': meshes.surface_samples and meshes.f_score_thresholds must be positive"
            )

    def _each_of(self, key: str, values: tuple[str, ...], valid: tuple[str, ...]) -> None:
        if not values:
            raise InputError(f"protocol '{self.name}': {key} is empty; give some of {', '.join(valid)}")
        for value in values:
            if value not in valid:
                raise InputError(f"protocol '{self.name}': {key}: '{value}' is not one of {', '.join(valid)}")
