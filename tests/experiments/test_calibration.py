from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit, preset
from nova3d.errors import InputError
from nova3d.experiments.calibration import calibrate_model, fit_calibration, sample_of
from nova3d.images import composite
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet


def solid(seed: int) -> ViewSet:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        part = trimesh.creation.box(rng.uniform(0.1, 0.6, 3))
        part.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        part.apply_translation(rng.uniform(-0.15, 0.15, 3))
        parts.append(part)
    whole: Any = trimesh.util.concatenate(parts)
    raster = rasterize(from_trimesh([whole]), preset("ortho16", 32), supersample=2)
    return ViewSet(composite(raster.rgba), raster.normals, raster.rgba[..., 3], preset("ortho16", 32))


@pytest.fixture(scope="module")
def truths() -> list[ViewSet]:
    return [solid(seed) for seed in range(8)]


def test_views_that_are_right_get_the_votes_and_those_that_are_wrong_none(truths: list[ViewSet]) -> None:
    """Views within 67.5 degrees of the input are true, the others are those of another object."""
    right = [1, 2, 3, 13, 14, 15]
    samples = []
    for i, truth in enumerate(truths):
        mask = truths[i - 1].mask.clone()
        mask[[0, *right]] = truth.mask[[0, *right]]
        samples.append(sample_of(replace(truth, mask=mask), truth))
    calibration = fit_calibration(samples)
    swing = np.array(calibration.object) - np.array(calibration.background)
    assert swing[:3].min() > 3 * np.abs(swing[3:]).max()
    assert min(calibration.object[:3]) > 0 > max(calibration.background[:3])
    facts = calibration.facts
    assert facts["volume_iou"] > facts["inflated_volume_iou"] + 0.1
    assert facts["objects"] == 8
    assert facts["normals_deg"][0] < 1e-3 and calibration.inflated_normals == 0  # the true ones were given


def test_colours_are_believed_where_they_are_true(truths: list[ViewSet]) -> None:
    """Views within 67.5 degrees of the input have the true colours, the others noise."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for truth in truths:
        noise = torch.rand(truth.rgb.shape, generator=generator) * truth.mask[..., None] + 1 - truth.mask[..., None]
        noise[[0, 1, 2, 3, 13, 14, 15]] = truth.rgb[[0, 1, 2, 3, 13, 14, 15]]
        samples.append(sample_of(replace(truth, rgb=noise), truth))
    calibration = fit_calibration(samples)
    ratio = calibration.facts["colour_error_ratio"]
    assert min(calibration.colours[:3]) > 0.8 and max(calibration.colours[3:]) < 0.3
    assert max(ratio[:3]) < 0.5 and min(ratio[3:]) > 1


def test_the_nearer_normals_of_the_input_are_chosen(truths: list[ViewSet]) -> None:
    wrong = [sample_of(replace(t, normals=t.normals.flip(-1)), t) for t in truths[:4]]
    calibration = fit_calibration(wrong)
    assert calibration.inflated_normals > 0
    assert calibration.facts["normals_deg"][0] > calibration.facts["normals_deg"][4] > 1


def test_another_rig_is_refused(truths: list[ViewSet]) -> None:
    tilted = replace(truths[0], cameras=orbit(16, 30.0, 32))
    with pytest.raises(InputError, match="level orthographic input view from the front"):
        sample_of(tilted, tilted)


def test_a_hub_id_is_refused_as_its_calibration_would_lie_in_the_cache() -> None:
    with pytest.raises(InputError, match=r"'owner/name' is a hub id, .* `hf download owner/name --local-dir FOLDER`"):
        calibrate_model("owner/name", [], 4)
