"""Calibration of a model: how reliable its views are, measured on objects with true views.

For each object the model generates the views from the true view 0. Grid nodes inside that view's outline are labelled
by the visual hull of the true views. A logistic regression of the labels on the generated masks and the inflated
outline gives the weights of `nova3d.calibration.Calibration`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.calibration import OFFSETS_DEG, Calibration, offset_shares
from nova3d.data.shards import ShardReader
from nova3d.errors import InputError
from nova3d.evaluation.classification import logistic_regression
from nova3d.foreground import foreground_colours
from nova3d.hull import carve
from nova3d.inflate import inflate, inflated_views
from nova3d.metrics import mask_iou, normal_angle
from nova3d.metrics.colours import colour_moments
from nova3d.pipeline.folder import model_folder, model_hashes
from nova3d.sampling import SampleConfig, generate_views, load_pipeline
from nova3d.utils import hub, provenance, resources
from nova3d.utils.progress import Progress, silent
from nova3d.views import ViewSet
from nova3d.volume import (
    column_points,
    columns_are_rays,
    outline_columns,
    prior_features,
    sample_columns,
    solid_of,
    view_coverage,
)

_NODES = 64  # along each side of the box; weights per node do not depend on it
_RADIUS = 0.6
_POINTS = 4000  # of each object
_SHIFTS = (-0.2, 0.0, 0.2, 0.4, 0.6)  # of the log-odds, among which the solids' volume IoU chooses
_LEAST_OBJECTS = 4
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Sample:
    """Measurements of one object: at m nodes inside the trusted outline, features [m,15] and truth [m] in {0,1}.

    columns, height: [n,n] as `nova3d.volume.solid_of` takes them. hull: bool [n,n,n] of the true views. angles: mean
    degrees between the true normals of view 0 and mixtures of generated and inflated ones, with SHARES of the latter.
    colours: [8,4], see `colour_moments`.
    """

    features: Tensor
    truth: Tensor
    columns: Tensor
    height: Tensor
    hull: Tensor
    angles: tuple[float, ...]
    colours: Tensor


def calibrate_model(
    model: str, shards: Sequence[str | Path], objects: int, device: str = "cpu", progress: Progress | None = None
) -> tuple[Calibration, Path]:
    """Measure a model's calibration and write it into the model's folder.

    Args:
        model: a model folder or the name of a shipped model.
        shards: folders of shards of objects that the model was not trained on. Never those of an evaluation.
        objects: of each folder, at most.
        device: where the networks run.
        progress: called as (objects done, objects, "calibrating").

    Returns:
        The calibration and the path of its file.

    Raises:
        InputError: where the model or the shards cannot be read, or have too few objects, and for a hub id.
    """
    if resources.locate(model, "model") is None and hub.is_hub_id(model):
        raise InputError(
            f"model '{model}' is a hub id, and its calibration would be written into the hub's cache: "
            f"`hf download {model} --local-dir FOLDER`, then calibrate FOLDER"
        )
    progress = progress or silent
    pipeline = load_pipeline(SampleConfig(model=model), device)
    pipeline.calibration = None  # view 0 keeps the generated normals, which are measured here
    readers = [ShardReader(folder) for folder in shards]
    todo = [(reader, i) for reader in readers for i in range(min(objects, len(reader)))]
    if len(todo) < _LEAST_OBJECTS:
        raise InputError(f"{len(todo)} objects are too few to calibrate a model: give {_LEAST_OBJECTS} or more")
    samples = []
    for done, (reader, i) in enumerate(todo):
        truth = reader.views(i)
        views, _ = generate_views(pipeline, truth.straight_alpha(0), SampleConfig(model=model, framed=True, seed=i))
        samples.append(sample_of(views, truth))
        progress(done + 1, len(todo), "calibrating")
    calibration = fit_calibration(samples)
    facts = {
        **calibration.facts,
        "model": model_hashes(model),
        "shards": [provenance.hash_file(Path(folder) / "index.json") for folder in shards],
    }
    calibration = Calibration(**{**calibration.to_dict(), "facts": facts})
    return calibration, calibration.save(model_folder(model))


def sample_of(views: ViewSet, truth: ViewSet) -> Sample:
    """Features and labels of one object at the nodes inside view 0's outline.

    Args:
        views: generated ones, whose view 0 shows the true picture.
        truth: the true views, of the same cameras.

    Returns:
        The sample.

    Raises:
        InputError: where view 0's camera does not look along the z axis.
    """
    cameras, masks = views.cameras, views.mask
    if not columns_are_rays(cameras, 0):
        raise InputError("a model is calibrated for a level orthographic input view from the front")
    columns = outline_columns(masks[0], cameras[0], _NODES, _RADIUS)
    prior = inflate(masks[0], 1 / float(cameras.intrinsics[0, 0])).prior
    points = column_points(torch.ones_like(columns), _RADIUS)
    shape = sample_columns(prior, cameras[0], _NODES, _RADIUS)
    inside = column_points(columns, _RADIUS)
    shares = offset_shares(cameras.azimuth_elevation()[1:, 0] - cameras.azimuth_elevation()[0, 0])
    votes = view_coverage(inside, masks[1:], cameras[1:]).T @ shares
    features = torch.cat([prior_features(shape[:, columns].repeat(1, _NODES), inside[:, 2]), votes], dim=-1)
    hull = carve(points, truth.mask, truth.cameras).reshape((_NODES,) * 3)
    inflated = inflated_views(truth.straight_alpha(0), cameras)
    mixtures = [F.normalize(torch.lerp(views.normals[:1], inflated.normals[:1], share), dim=-1) for share in SHARES]
    angles = [float(normal_angle(mixed, truth.normals[:1], truth.mask[:1])["mean"]) for mixed in mixtures]
    return Sample(
        features,
        hull[:, columns].flatten().float(),
        columns,
        shape[0],
        hull,
        tuple(angles),
        colour_moments(foreground_colours(views, 0), inflated, truth),
    )


def fit_calibration(samples: Sequence[Sample], seed: int = 0) -> Calibration:
    """Fit the weights on some objects.

    Args:
        samples: of the objects.
        seed: of the choice of nodes.

    Returns:
        The calibration. Its facts hold the number of objects and means over them: `volume_iou` with the true hull of
        the solids, `inflated_volume_iou` of the inflated outlines, `normals_deg` of view 0 with each of SHARES;
        `colour_error_ratio`, for each of OFFSETS_DEG, is the model's squared colour error over that of the picture's
        colours carried through the object.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(len(s.truth), generator=generator)[:_POINTS] for s in samples]
    features = torch.cat([s.features[i] for s, i in zip(samples, chosen, strict=True)])
    truth = torch.cat([s.truth[i] for s, i in zip(samples, chosen, strict=True)])
    weights = logistic_regression(features, truth)
    prior, slopes = weights[: -len(OFFSETS_DEG)].clone(), weights[-len(OFFSETS_DEG) :]
    # For a full set of views any split of the constant is equal. Here a view with the mean coverage of its azimuth
    # contributes zero.
    mean = features[:, -len(OFFSETS_DEG) :].mean(dim=0)
    count = offset_shares(torch.deg2rad(torch.tensor([*OFFSETS_DEG, *(-o for o in OFFSETS_DEG[:-1])]))).sum(dim=0)
    mean = mean / count
    prior[0] += (slopes * mean * count).sum()
    scores = {shift: float(np.mean([_solid_iou(s, weights, shift) for s in samples])) for shift in _SHIFTS}
    shift = max(scores, key=lambda s: scores[s])
    prior[0] += shift
    angles = np.array([s.angles for s in samples])
    # Squares, because large errors on some objects are worse than small ones on all.
    share = SHARES[int(np.square(angles).mean(axis=0).argmin())]
    common, apart, of_model, of_picture = torch.stack([s.colours for s in samples]).sum(dim=0).T
    colours = (common / apart.clamp_min(1e-9)).clamp(0, 1)  # the least squares of t - p by g - p
    inflated = [float(mask_iou(_inflated_solid(s)[None], s.hull[None])) for s in samples]
    facts = {
        "objects": len(samples),
        "volume_iou": round(scores[shift], 4),
        "inflated_volume_iou": round(float(np.mean(inflated)), 4),
        "normals_deg": [round(float(angle), 2) for angle in angles.mean(axis=0)],
        "colour_error_ratio": [round(float(ratio), 2) for ratio in of_model / of_picture.clamp_min(1e-9)],
    }
    return Calibration(
        tuple((slopes * (1 - mean)).tolist()),
        tuple((-slopes * mean).tolist()),
        tuple(prior.tolist()),
        tuple(colours.tolist()),
        share,
        facts,
    )


def _solid_iou(sample: Sample, weights: Tensor, shift: float) -> float:
    """Volume IoU with the true hull of the solid that weights give, with all log-odds shifted."""
    evidence = torch.zeros(sample.hull.shape)
    evidence[:, sample.columns] = (sample.features @ weights + shift).reshape(_NODES, -1)
    solid, _ = solid_of(evidence.numpy(), sample.height.numpy(), sample.columns.numpy(), _RADIUS)
    return float(mask_iou(torch.from_numpy(solid)[None], sample.hull[None]))


def _inflated_solid(sample: Sample) -> Tensor:
    depth = torch.linspace(-_RADIUS, _RADIUS, _NODES).abs()
    return depth[:, None, None] < sample.height
