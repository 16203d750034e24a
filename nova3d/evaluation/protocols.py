"""A protocol: every setting that changes a score, frozen and hashed."""

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from nova3d.config import Sentinel
from nova3d.errors import InputError
from nova3d.utils.provenance import hash_json

# Part of every hash: raise it when a choice that all protocols share changes. A metric has a version of its own.
METRICS_VERSION = 2

KINDS = ("views", "meshes", "textures")
Failures = Literal["refuse", "score"]
Edges = Literal["blended", "hard"]
Frame = Literal["shared", "unit"]
POINTS = ("area", "visible16")
MESH_REGISTRATIONS = ("known", "bbox", "bbox_yaw", "bbox_yaw_icp", "bbox_yaw_icp_scale")
_IOU = re.compile(r"iou[1-9]\d*_(flood)|iou64_(mesh2sdf)")
SPHERE = "sphere26"


@dataclass(frozen=True)
class ViewRules:
    """How predicted views are scored."""

    cameras: str = "ortho16"
    """The preset (nova3d.cameras) the reference views must have been rendered with; "any" skips that check."""
    count: Annotated[int | None, Sentinel(0)] = 16
    """How many views an object has; null takes the reference's number."""
    size: Annotated[int | None, Sentinel(0)] = 256
    """Pixels of a side; null takes the reference's."""
    include_input_view: bool = False
    """Whether view 0, which a method is given, is scored with the others."""
    scored: tuple[int, ...] = ()
    """The views that are scored, by index; empty means all."""
    background: float = 1.0
    """Grey level in [0,1] under what is transparent."""
    edges: Edges = "blended"
    """"blended" composites by alpha; "hard" gives every reference pixel with any alpha its full colour (EscherNet)."""
    as_they_are: bool = False
    """Whether pictures without transparency are scored as they are. Otherwise they are cut out of their plain
    background first, which takes a rim with it, and stand on `background`."""
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
    """Names of nova3d.metrics.VIEW_METRICS; docs/reference/protocols.md defines each. Companions are added
    automatically."""
    shifts: tuple[int, ...] = (1,)
    """The baselines "true views, n px off"."""


@dataclass(frozen=True)
class MeshRules:
    """How predicted meshes are scored."""

    frame: Frame = "shared"
    """"shared" moves both meshes by the similarity that centres the reference's box and makes its longest side 1;
    "unit" moves only the reference, and assumes that the prediction is in that frame already (SyncDreamer)."""
    alignments: tuple[str, ...] = ("known",)
    """Alignments of the prediction, one group of columns each; see `mesh_scores.align`."""
    points: tuple[str, ...] = ("area",)
    """Where distances are measured: "area" (surface_samples area-weighted points of each mesh) and "visible16" (what 16
    depth maps see, `mesh_metrics.visible_points`)."""
    surface_samples: int = 100_000
    """Points of each mesh, for "area"."""
    f_score_thresholds: tuple[float, ...] = (0.01, 0.02)
    """In longest sides of the reference, for "area"."""
    ious: tuple[str, ...] = ("iou128_flood",)
    """"iou<R>_flood" (`mesh_metrics.volume_iou` at R voxels) or "iou64_mesh2sdf" (`mesh_metrics.mesh2sdf_iou`)."""
    mirror_margin: bool = True
    """Whether to compute the column of that name: the distance of the mirrored prediction minus its own."""


@dataclass(frozen=True)
class TextureRules:
    """How textured meshes are drawn before their pictures are scored.

    The light is flat (the base colour itself), the background white; no view is an input view.
    """

    cameras: str = "envision32"
    """A preset of nova3d.cameras, or "sphere26": 12 views at elevation 30, 12 at -30 and the two poles."""
    size: int = 256
    """Pixels of a side."""
    supersample: int = 3
    """Samples per pixel and axis."""
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
    """Names of nova3d.metrics.VIEW_METRICS."""


@dataclass(frozen=True)
class Protocol:
    """What is scored and how; the schema of configs/eval/*.yaml."""

    name: str = "nova3d-el0"
    """Printed with the hash over every table."""
    kinds: tuple[str, ...] = ("views", "meshes")
    """What is scored, of KINDS; a kind that predictions or references lack for all objects is left out, unless it
    is the only one."""
    objects: tuple[str, ...] = ()
    """The objects to score; empty means every object of the references."""
    failures: Failures = "refuse"
    """What a missing or unusable prediction does: "refuse" raises InputError naming it; "score" scores a white picture
    or a tiny cube in its place, and names it in the table."""
    seed: int = 0
    """Of the surface samples."""
    hull_cells: Annotated[int | None, Sentinel(0)] = 96
    """Cells along each side of the unit cube in which visual hulls, two of the baselines, are carved. null leaves the
    hulls out."""
    views: ViewRules = field(default_factory=ViewRules)
    meshes: MeshRules = field(default_factory=MeshRules)
    textures: TextureRules = field(default_factory=TextureRules)

    def __post_init__(self) -> None:
        from nova3d.cameras import preset
        from nova3d.metrics.registry import VIEW_METRICS

        self._each_of("kinds", self.kinds, KINDS)
        self._each_of("failures", (self.failures,), get_args(Failures))
        self._check_views(self.views, tuple(VIEW_METRICS))
        self._check_meshes(self.meshes)
        self._each_of("textures.metrics", self.textures.metrics, tuple(VIEW_METRICS))
        if min(self.textures.size, self.textures.supersample) < 1:
            raise InputError(f"protocol '{self.name}': textures.size and textures.supersample must be at least 1")
        if (self.hull_cells or 0) < 0:
            raise InputError(f"protocol '{self.name}': hull_cells must not be negative")
        if self.textures.cameras != SPHERE:
            preset(self.textures.cameras)
        if self.views.cameras != "any":
            preset(self.views.cameras)

    @property
    def hash(self) -> str:
        """16 hex digits over every field and the versions of its metrics; equal hashes make comparable tables.

        Metrics of version 1 and `views.as_they_are=false` are left out, so that hashes of earlier versions stay equal.
        Unset sizes and counts are hashed as 0, as in files of earlier versions.
        """
        rules: dict[str, Any] = asdict(self)
        rules["hull_cells"] = self.hull_cells or 0
        rules["views"] |= {"count": self.views.count or 0, "size": self.views.size or 0}
        if not self.views.as_they_are:
            del rules["views"]["as_they_are"]
        raised = {name: version for name, version in self.versions().items() if version > 1}
        return hash_json({"metrics": METRICS_VERSION, **rules, **({"versions": raised} if raised else {})})

    def versions(self) -> dict[str, int]:
        """Metric -> its declared version, of all metrics of the protocol's kinds."""
        from nova3d.evaluation.mesh_metrics import VERSIONS
        from nova3d.metrics.registry import VIEW_METRICS, with_companions

        named = {"views": self.views.metrics, "textures": self.textures.metrics}
        images = (name for kind in self.kinds for name in with_companions(named.get(kind, ())))
        found = {name: VIEW_METRICS[name].version for name in images}
        if "meshes" in self.kinds:
            ious = (match[1] or match[2] for iou in self.meshes.ious if (match := _IOU.fullmatch(iou)))
            found |= {name: VERSIONS[name] for name in (*self.meshes.points, *ious, "watertight", "shape")}
        return found

    def _check_views(self, rules: ViewRules, metrics: tuple[str, ...]) -> None:
        self._each_of("views.metrics", rules.metrics, metrics)
        self._each_of("views.edges", (rules.edges,), get_args(Edges))
        if min(rules.count or 0, rules.size or 0, *rules.scored, *rules.shifts, 0) < 0:
            raise InputError(f"protocol '{self.name}': views.count, size, scored and shifts must not be negative")
        if not 0 <= rules.background <= 1:
            raise InputError(f"protocol '{self.name}': views.background must be a grey level in [0,1]")

    def _check_meshes(self, rules: MeshRules) -> None:
        self._each_of("meshes.frame", (rules.frame,), get_args(Frame))
        self._each_of("meshes.alignments", rules.alignments, MESH_REGISTRATIONS)
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
